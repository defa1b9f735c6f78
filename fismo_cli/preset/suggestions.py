"""Which key or word a user may have meant. Pure text; knows the keys from `reference.py`, nothing of files."""

from collections.abc import Iterable
from difflib import get_close_matches

from fismo_cli.preset.document import dotted
from fismo_cli.preset.reference import TASKS, Key, OptimizerKind, reference

__all__ = ["did_you_mean", "near", "unknown_key"]

# What other tools call it; tried after the names themselves.
_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "max_steps": ("train", "steps"),
    "num_steps": ("train", "steps"),
    "num_epochs": ("train", "epochs"),
    "num_workers": ("data", "workers"),
    "warmup_steps": ("train", "schedule", "warmup"),
    "warmup_ratio": ("train", "schedule", "warmup"),
    "gradient_accumulation_steps": ("train", "accumulate"),
    "grad_clip": ("train", "clip_grad_norm"),
    "max_grad_norm": ("train", "clip_grad_norm"),
    "amp": ("train", "precision"),
    "dtype": ("train", "precision"),
}
_RATE_NAMES = ("lr", "learning_rate", "trust_radius")


def near(word: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The choices that are most like a word, ignoring case; none when nothing is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in get_close_matches(word.lower(), by_lower, n=count, cutoff=0.6)]


def did_you_mean(suggestions: Iterable[str]) -> str:
    """` Did you mean a or b?`, or nothing."""
    names = list(suggestions)
    return f" Did you mean {' or '.join(names)}?" if names else ""


def unknown_key(
    path: tuple[str, ...], task: str, optimizer: OptimizerKind, optimizer_name: str
) -> tuple[str, list[tuple[str, ...]]]:
    """The message for an unknown key (where it belongs, or which known key is like it), and the keys it suggests."""
    keys = reference(task, optimizer)
    other_task = next(other for other in TASKS if other != task)
    if path in reference(other_task, optimizer):
        return f"unknown key: it belongs to the task {other_task}", []
    if optimizer == "baseline" and path in reference(task, "fismo"):
        return f"unknown key for {optimizer_name}: it belongs to fismo", []
    meant = _meant(path, keys)
    if meant:
        return f"unknown key.{did_you_mean(map(dotted, meant))}", meant
    if path[0] == "optimizer" and len(path) == 2 and optimizer == "baseline":
        return f"unknown key for {optimizer_name}: other arguments go under optimizer.args", []
    if path in reference(task, "baseline"):
        return f"unknown key for {optimizer_name}: it belongs to other optimizers", []
    return f"unknown key; {_listed(path[:-1], keys)}", []


def _meant(path: tuple[str, ...], keys: dict[tuple[str, ...], Key]) -> list[tuple[str, ...]]:
    name = path[-1]
    if name in _RATE_NAMES:
        inner = path[:2] == ("optimizer", "adamw")
        return [("optimizer", "adamw", "lr") if inner else ("optimizer", "lr")]
    same = [key for key in keys if key[-1] == name]
    if 1 <= len(same) <= 2:
        return same
    siblings = {key[-1]: key for key in keys if key[:-1] == path[:-1]}
    like = near(name, siblings)
    if like:
        return [siblings[like[0]]]
    if name in _OTHER_NAMES:
        return [_OTHER_NAMES[name]]
    elsewhere = {key[-1]: key for key in reversed(keys)}
    return [elsewhere[match] for match in get_close_matches(name, elsewhere, n=1, cutoff=0.8)]


def _listed(section: tuple[str, ...], keys: dict[tuple[str, ...], Key]) -> str:
    names = ", ".join(key[-1] for key in keys if key[:-1] == section)
    return f"{dotted(section)} has {names}" if section else f"a preset has {names}"
