"""Looks at the keys of `tune.space`: each must be one that can be searched, and its bounds values that it may have."""

from collections.abc import Iterator
from typing import Any

from fismo_cli.preset.document import Path
from fismo_cli.preset.reference import OptimizerKind, reference
from fismo_cli.preset.schema import Preset
from fismo_cli.preset.schema_tune import SearchedConfig
from fismo_cli.preset.settings import COMPLEMENT, NEAR_ONE, get_setting, key_path, with_settings
from fismo_cli.preset.suggestions import unknown_key

__all__ = ["changed_values", "space_problems"]

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
            yield place, "must be a key under optimizer, train, model or data, such as optimizer.damping"
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


def changed_values(preset: Preset, name: str, searched: SearchedConfig) -> Iterator[tuple[Path, Any, dict[str, Any]]]:
    """For each value that a search could end at: where it stands, the value, and the preset's values with it."""
    values = preset.model_dump(exclude={"tune"})
    if searched.choices is not None:
        ends: list[tuple[Path, Any]] = [(("choices", index), value) for index, value in enumerate(searched.choices)]
    else:
        ends = [(("low",), searched.low), (("high",), searched.high)]
        if isinstance(get_setting(values, name), float):
            ends = [(end, float(value)) for end, value in ends]
    for end, value in ends:
        yield end, value, with_settings(values, {name: value})
