"""Looks at the keys of `tune.space`: each must be one that can be searched, and its bounds values that it may have."""

from collections.abc import Iterator
from typing import Any

from fismo_cli.preset.document import Path
from fismo_cli.preset.reference import Key, OptimizerKind, reference
from fismo_cli.preset.schema import Preset
from fismo_cli.preset.schema_tune import Scalar, SearchedConfig
from fismo_cli.preset.settings import COMPLEMENT, NEAR_ONE, get_setting, key_path, with_settings
from fismo_cli.preset.suggestions import unknown_key

__all__ = ["as_searched", "changed_values", "is_whole", "space_notes", "space_problems"]

FIXED = {
    **dict.fromkeys(("train.epochs", "train.steps"), "every trial sees the same number of samples"),
    **dict.fromkeys(
        ("train.seed", "train.device", "train.threads", "train.deterministic"), "it is alike in all trials"
    ),
    **dict.fromkeys(("train.log_every", "train.compile", "data.workers"), "it does not change what is learnt"),
    "optimizer.name": "fismo compare is for comparing optimizers",
    "train.max_loss": "it does not change what is learnt",
}
"""Keys that cannot be searched, and why."""

SEARCHED_DATA = (
    *("crop", "horizontal_flip", "auto_augment", "random_erasing"),
    *("mixup_alpha", "cutmix_alpha", "mix_probability", "label_smoothing"),
)
"""Of `data`, what changes training alone: anything else would change what is measured."""


def space_problems(preset: Preset) -> Iterator[tuple[Path, str]]:
    """Paths and messages of what is wrong with the keys of a preset's `tune.space`, its values aside."""
    kind: OptimizerKind = "fismo" if preset.optimizer.name == "fismo" else "baseline"
    keys = reference(preset.task, kind)
    for name, searched in preset.tune.space.items():
        place: Path = ("tune", "space", name)
        path = key_path(name)
        known = keys.get(path)
        if name.startswith(COMPLEMENT) or path[0] not in ("model", "data", "optimizer", "train"):
            yield place, "must be a key under optimizer, train, model or data, such as optimizer.metric.damping"
        elif name in FIXED:
            yield place, f"cannot be searched: {FIXED[name]}"
        elif path[0] == "data" and known is not None and path[1] not in SEARCHED_DATA:
            yield place, "cannot be searched: it changes the data that trials are judged by"
        elif known is not None and known.kind != "value":
            yield place, "is a section: name one of its keys"
        elif known is None and not any(
            keys[path[:n]].kind == "mapping" for n in range(1, len(path)) if path[:n] in keys
        ):
            yield place, unknown_key(path, preset.task, kind, preset.optimizer.name)[0]
        elif searched is not None and searched.log and searched.low is not None and searched.high is not None:
            if name.rsplit(".", 1)[-1] in NEAR_ONE:
                if searched.high >= 1:
                    yield (*place, "high"), "must be below 1 where log is true: the scale is that of 1 less the value"
            elif searched.low <= 0:
                yield (*place, "low"), f"must be above 0 where log is true, got {searched.low:g}"


def is_whole(preset: Preset, name: str, searched: SearchedConfig) -> bool:
    """Whether a range holds whole numbers alone.

    The key's type says so. A key of `model.args` or `optimizer.args` has none that is known here: then its value in
    the preset does, and without one the way that both bounds are written.
    """
    path = key_path(name)
    known = _reference(preset).get(path)
    if path[-1] == "betas" or (known is not None and known.number is not None):
        return known is not None and known.number == "integer"
    start = get_setting(preset.model_dump(exclude={"tune"}), name)
    return isinstance(searched.low, int) and isinstance(searched.high, int) and (start is None or type(start) is int)


def as_searched(preset: Preset, name: str, value: Scalar) -> Scalar:
    """A bound or a choice with the type of its key: 1 for a key of numbers is 1.0, 32.0 for one of integers is 32."""
    known = _reference(preset).get(key_path(name))
    number = None if known is None else known.number
    if number == "number" and type(value) is int:
        return float(value)
    return int(value) if number == "integer" and isinstance(value, float) and value.is_integer() else value


def space_notes(preset: Preset) -> list[str]:
    """What a user may not have meant: whole numbers, because bounds were written so, of a key whose type is unknown."""
    values, keys = preset.model_dump(exclude={"tune"}), _reference(preset)
    return [
        f"tune.space: {name} is searched in whole numbers, as its bounds are written; write {searched.low}.0 for any "
        "number between them"
        for name, searched in preset.tune.space.items()
        if searched is not None
        and searched.choices is None
        and key_path(name) not in keys
        and get_setting(values, name) is None
        and is_whole(preset, name, searched)
    ]


def changed_values(preset: Preset, name: str, searched: SearchedConfig) -> Iterator[tuple[Path, Any, dict[str, Any]]]:
    """For each value that a search could end at: where it stands, the value, and the preset's values with it."""
    values = preset.model_dump(exclude={"tune"})
    if searched.choices is not None:
        ends: list[tuple[Path, Any]] = [(("choices", index), value) for index, value in enumerate(searched.choices)]
    else:
        ends = [(("low",), searched.low), (("high",), searched.high)]
    for end, given in ends:
        value = as_searched(preset, name, given)
        yield end, value, with_settings(values, {name: value})


def _reference(preset: Preset) -> dict[tuple[str, ...], Key]:
    return reference(preset.task, "fismo" if preset.optimizer.name == "fismo" else "baseline")
