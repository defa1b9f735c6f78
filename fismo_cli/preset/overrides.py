"""`a.b.c=value` overrides, laid over the values of a preset file.

Knows what optimizer sections share and which keys a data source uses, nothing else of what presets mean.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from fismo_cli.preset.document import DocumentError, Path, dotted, parse_scalar
from fismo_cli.preset.nested import MISSING, leaf, without
from fismo_cli.preset.optimizer_names import takes_matrices
from fismo_cli.preset.schema_data import unused_keys
from fismo_cli.preset.schema_tune import SearchedConfig
from fismo_core.config import FORMS

__all__ = ["Layered", "Override", "apply_overrides", "parse_overrides"]

SHARED_OPTIMIZER_KEYS = frozenset(
    {"name", "adamw", "rules", "weight_decay", "weight_decay_on", "layer_decay", "variance_reduction", "mars_gamma"}
)
"""What an optimizer section keeps when an override chooses another optimizer (`rules`: if that treats matrices)."""

FORM_KEYS = frozenset(name for form in FORMS.values() for name in form.changes())
"""What a preset's optimizer section does not keep when an override chooses another form of FISMO."""


@dataclass(frozen=True)
class Override:
    """One override: its path, its value and how it was written."""

    path: tuple[str, ...]
    value: Any
    text: str


@dataclass
class Layered:
    """Values of a preset after overrides; `origins` maps the paths that overrides set to how they were written."""

    values: dict[str, Any]
    origins: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[tuple[str, str]]]:
    """Parse overrides; returns them with the problems `(text, message)` of those that are malformed."""
    overrides, problems = [], []
    for text in texts:
        key, equals, value = text.partition("=")
        parts = tuple(key.strip().split("."))
        if not equals:
            first = "; a preset goes before all overrides" if text.endswith((".yaml", ".yml")) else ""
            problems.append((text, f"must be KEY=VALUE, such as train.seed=3{first}"))
        elif not all(parts) or any(part != part.strip() for part in parts):
            problems.append((text, "must be KEY=VALUE with a key such as train.seed"))
        else:
            try:
                overrides.append(Override(_joined(parts), parse_scalar(value), text))
            except DocumentError as error:
                problems.append((text, error.problems[0][1]))
    return overrides, problems


def _joined(path: tuple[str, ...]) -> tuple[str, ...]:
    """`tune.space.optimizer.metric.damping.low`: the keys of `tune.space` are paths themselves."""
    if path[:2] != ("tune", "space") or len(path) < 4:
        return path
    own = path[2:-1] if path[-1] in SearchedConfig.model_fields else path[2:]
    return (*path[:2], ".".join(own), *path[2 + len(own) :])


def apply_overrides(values: dict[str, Any], overrides: Sequence[Override], source: str) -> Layered:
    """Lay overrides over a preset file's values, in order; the last one on a key wins.

    Choosing another optimizer leaves out the file's keys that belong to the file's optimizer, because they mean nothing
    to the other one: only `SHARED_OPTIMIZER_KEYS` stay. Choosing another form of FISMO leaves out the keys that forms
    define, choosing another data source (or the byte tokenizer) those that it does not use, and `train.steps` takes the
    place of the file's `train.epochs`, or the other way round.
    """
    layered = Layered(_copy(values))
    _leave_out(layered, overrides, source)
    for override in overrides:
        _set(layered, override)
    return layered


def _leave_out(layered: Layered, overrides: Sequence[Override], source: str) -> None:
    optimizer, chosen = layered.values.get("optimizer"), _chosen(overrides, "optimizer")
    if isinstance(optimizer, dict):
        before, name = optimizer.get("name"), chosen.get("name", optimizer.get("name"))
        form_before = optimizer.get("form", "default")
        if before is not None and name != before:
            shared = SHARED_OPTIMIZER_KEYS - (set() if takes_matrices(str(name)) else {"rules"})
            _drop(layered, "optimizer", set(optimizer) - shared, chosen, f"not for {name}", source)
        elif name == "fismo" and chosen.get("form", form_before) != form_before:
            paths = {
                ".".join(override.path[1:]): override.value for override in overrides if override.path[0] == "optimizer"
            }
            _drop(layered, "optimizer", FORM_KEYS, paths, "the other form's", source)
    data, chosen = layered.values.get("data"), _chosen(overrides, "data")
    if isinstance(data, dict) and not {"source", "tokenizer"}.isdisjoint(chosen):
        for key, why in unused_keys({**data, **chosen}).items():
            if key not in chosen:
                _drop(layered, "data", {key}, chosen, why, source)
    chosen = _chosen(overrides, "train")
    for length, other in (("steps", "epochs"), ("epochs", "steps")):
        if chosen.get(length) is not None and other not in chosen:
            _drop(layered, "train", {other}, chosen, f"train.{length} takes its place", source)


def _chosen(overrides: Sequence[Override], section: str) -> dict[str, Any]:
    paths = ((override.path, override.value) for override in overrides)
    return {path[1]: value for path, value in paths if len(path) == 2 and path[0] == section}


def _drop(layered: Layered, section: str, keys: Set[str], chosen: dict[str, Any], reason: str, source: str) -> None:
    """Leave keys out of a section of the file, and note those that no override sets anew."""
    before = layered.values.get(section)
    if not isinstance(before, dict):
        return
    gone = []
    for key in sorted(keys):
        if (value := leaf(before, key, MISSING)) is not MISSING:
            layered.values[section] = without(layered.values[section], key)
            if key not in chosen and value not in (None, {}):
                gone.append(f"{section}.{key}")
    if gone:
        layered.notes.append(f"left out of {source}: {', '.join(gone)} ({reason})")


def _set(layered: Layered, override: Override) -> None:
    target = layered.values
    for depth, part in enumerate(override.path[:-1], start=1):
        path = override.path[:depth]
        child = target.get(part)
        if child is None or (isinstance(child, bool) and path[0] == "logging"):  # `wandb: true` may get keys
            child = target[part] = {}
            layered.origins[path] = override.text
        elif not isinstance(child, dict):
            kind = "a list, which is overridden as a whole" if isinstance(child, list) else "a plain value"
            layered.problems.append((override.text, f"{dotted(path)} is {kind} and has no keys of its own"))
            return
        target = child
    target[override.path[-1]] = _copy(override.value)
    for stale in [path for path in layered.origins if path[: len(override.path)] == override.path]:
        del layered.origins[stale]
    layered.origins[override.path] = override.text


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
