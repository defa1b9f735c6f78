"""Which settings are searched, and where: pure data, made from a preset.

Every optimizer gets its learning rate and weight decay, and the knobs that are its own. Names are keys of the preset,
as `fismo_cli.preset.settings` has them: `1 - optimizer.momentum` is searched in place of what nears 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fismo_cli.preset.optimizer_names import COUPLED_DECAY, DEFAULTS, NO_WEIGHT_DECAY, takes_matrices
from fismo_cli.preset.reference import shown
from fismo_cli.preset.schema import BaselineConfig, FismoConfig, Preset
from fismo_cli.preset.schema_tune import SearchedConfig
from fismo_cli.preset.search_checks import as_searched, is_whole
from fismo_cli.preset.settings import BETAS, COMPLEMENT, NEAR_ONE, get_setting, with_settings
from fismo_cli.preset.validation import validate
from fismo_core.config import MIN_POLYNOMIAL_DAMPING

__all__ = [
    "Choice",
    "Range",
    "Space",
    "Value",
    "compared_space",
    "default_space",
    "drawn_settings",
    "near_bounds",
    "short_name",
    "short_settings",
    "short_value",
    "tuning_space",
]

_MOMENTUM = {"muon": 0.95, "sgd": 0.9}
"""Optimizers with a momentum, and the one they start from."""

Value = bool | int | float | str | None


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both included; `start` is tried first."""

    low: float
    high: float
    start: float
    log: bool = True
    integer: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values; `start` is tried first."""

    values: tuple[Value, ...]
    start: Value


Space = dict[str, Range | Choice]
"""Name of a setting -> where it is searched."""


BATCH_FACTORS = (0.5, 1, 2, 4)
"""Batch sizes that are tried, in terms of the preset's."""


def default_space(config: FismoConfig | BaselineConfig, factor: float = 10.0) -> Space:
    """Where the settings of an optimizer are searched.

    Args:
        config: its section.
        factor: learning rate and damping are searched between the section's own, divided and multiplied by it.

    Raises:
        ValueError: if the section has no learning rate, and this tool no default for it.
    """
    decay = (0.0, 1e-4, 1e-3, 1e-2) if config.name in COUPLED_DECAY else (0.0, 0.01, 0.1, 0.3)
    space: Space = {"weight_decay": _choice(decay, config.weight_decay)}
    if isinstance(config, FismoConfig):
        space = {"lr": _around(config.lr, factor=factor), **space, "1 - momentum": _complement(config.momentum)}
        if config.metric.damping > 0:
            space["metric.damping"] = _around(config.metric.damping, factor=factor, least=_least_damping(config))
        return _in_section(space)
    lr = config.lr or DEFAULTS.get(config.name, {}).get("lr")
    if lr is None:
        raise ValueError("give its learning rate (lr), around which to tune")
    space = {"lr": _around(lr, factor=factor), **({} if config.name in NO_WEIGHT_DECAY else space)}
    if config.name in _MOMENTUM:
        space["1 - momentum"] = _complement(config.momentum if config.momentum is not None else _MOMENTUM[config.name])
    elif config.name in BETAS:
        first, second = config.betas or BETAS[config.name]
        space["1 - beta1"], space["1 - beta2"] = _complement(first), _complement(second)
    fixed = {"betas": ("1 - beta1", "1 - beta2"), "momentum": ("1 - momentum",)}
    for key in config.args:  # what is given there wins over everything, so there is nothing to search
        for name in fixed.get(key, (key,)):
            space.pop(name, None)
    return _in_section(space)


def compared_space(config: FismoConfig | BaselineConfig, factor: float = 10.0) -> Space:
    """Where an optimizer is tuned for a comparison: four settings of each, where it has so many.

    Learning rate and weight decay; momentum or the first beta; and, of an optimizer of matrices, the learning rate of
    the AdamW that treats all other parameters, of others the second beta. What else FISMO has (its damping) stays.

    Args:
        config: its section.
        factor: rates are searched between the section's own, divided and multiplied by it.

    Raises:
        ValueError: as `default_space`.
    """
    space = default_space(config, factor)
    space.pop("optimizer.metric.damping", None)
    if takes_matrices(config.name):
        space.pop("1 - optimizer.beta2", None)
        space["optimizer.adamw.lr"] = _around(config.adamw.lr, factor=factor)
    return space


def tuning_space(preset: Preset, train_samples: int, nproc: int = 1) -> Space:
    """What `fismo tune` searches: the optimizer's space, widened to hold this tool's defaults as well as the preset's
    values; the batch size; and what the preset's `tune.space` adds, narrows or takes out.

    FISMO's weight decay stays as it is unless `tune.space` names it.

    Args:
        preset: the preset.
        train_samples: size of its training part.
        nproc: processes that share each batch.

    Raises:
        ValueError: if there is no learning rate to start from, nothing to search, or a batch size that cannot be had.
    """
    config, factor = preset.optimizer, preset.tune.range
    try:
        space = default_space(config, factor)
    except ValueError:
        if not preset.tune.space:
            raise
        space = {}
    if isinstance(config, FismoConfig):
        space.pop("optimizer.weight_decay")
        usual = FismoConfig(name="fismo", form=config.form)
        damping, usual_damping = config.metric.damping, usual.metric.damping
        if damping > 0 and usual.metric.damping_scale == config.metric.damping_scale:
            least = _least_damping(config)
            space["optimizer.metric.damping"] = _around(damping, usual_damping, factor=factor, least=least)
        space["optimizer.lr"] = _around(config.lr, usual.lr, factor=factor)
    elif "optimizer.lr" in space and config.name in DEFAULTS:
        space["optimizer.lr"] = _around(
            config.lr or DEFAULTS[config.name]["lr"], DEFAULTS[config.name]["lr"], factor=factor
        )
    train, parts = preset.train, preset.train.accumulate * nproc
    if train.batch_size % parts:
        raise ValueError(
            f"train.batch_size={train.batch_size} is not a multiple of {parts}: each batch is cut so often"
        )
    fitting = sorted(
        size
        for size in {int(train.batch_size * factor) for factor in BATCH_FACTORS}
        if 0 < size <= train_samples and size % parts == 0 and _valid(preset, "train.batch_size", size)
    )
    if len(fitting) > 1:
        space["train.batch_size"] = Choice(tuple(fitting), train.batch_size)
    for name, searched in preset.tune.space.items():
        for known in (name, COMPLEMENT + name):
            space.pop(known, None)
        if searched is not None:
            key, where = _asked_for(preset, name, searched)
            space[key] = where
    batch = space.get("train.batch_size")
    ends = () if batch is None else (batch.high,) if isinstance(batch, Range) else batch.values
    for size in ends:
        if isinstance(size, int | float) and size > train_samples:
            raise ValueError(
                f"tune.space: train.batch_size: {size:g} is more than the {train_samples} samples of the training part"
            )
        if isinstance(size, int) and (size % parts or (parts > 1 and isinstance(batch, Range))):
            raise ValueError(
                f"tune.space: train.batch_size: {nproc} processes, each with train.accumulate={train.accumulate} "
                f"micro-batches, need choices that are multiples of {parts}"
            )
    if not space:
        raise ValueError("tune.space takes out everything: there is nothing to search")
    return space


def drawn_settings(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial drew, from the values of its preset; 1 less 1 less a value is not always that value."""
    found = {}
    for name, where in space.items():
        value = get_setting(values, name)
        found[name] = min(max(value, where.low), where.high) if isinstance(where, Range) else value
    return found


def near_bounds(space: Space, settings: Mapping[str, Any], share: float = 0.05) -> tuple[str, ...]:
    """Settings that lie within a share of their range, on the scale that is searched, from a bound."""
    found = []
    for name, value in settings.items():
        where = space[name]
        if isinstance(where, Range):
            scale = math.log if where.log else float
            position = (scale(value) - scale(where.low)) / (scale(where.high) - scale(where.low))
            if min(position, 1.0 - position) <= share:
                found.append(name)
    return tuple(found)


def short_name(name: str) -> str:
    """A setting's name as tables have it: without its sections."""
    return name.replace("optimizer.", "").replace("metric.", "").replace("train.", "")


def short_value(value: Value) -> str:
    """A value as tables have it: numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else shown(value)


def short_settings(settings: Mapping[str, Value]) -> str:
    """Settings in one line."""
    return ", ".join(f"{short_name(name)} {short_value(value)}" for name, value in settings.items())


def _valid(preset: Preset, name: str, value: Value) -> bool:
    """Whether a setting goes together with the preset's others."""
    values = preset.model_dump(exclude={"tune", "compare"})
    return validate(with_settings(values, {name: value}))[0] is not None


def _asked_for(preset: Preset, name: str, searched: SearchedConfig) -> tuple[str, Range | Choice]:
    start = get_setting(preset.model_dump(), name)
    if searched.choices is not None:
        choices = tuple(as_searched(preset, name, value) for value in searched.choices)
        return name, Choice(choices, start if start in choices else choices[0])
    assert searched.low is not None
    assert searched.high is not None
    whole = is_whole(preset, name, searched)
    low, high = (int(bound) if whole else float(bound) for bound in (searched.low, searched.high))
    where = Range(low, high, low, log=searched.log, integer=whole)
    if searched.log and name.rsplit(".", 1)[-1] in NEAR_ONE:
        name, where = COMPLEMENT + name, replace(where, low=1.0 - high, high=1.0 - low, integer=False)
        start = None if start is None else 1.0 - start
    first = math.sqrt(where.low * where.high) if where.log else (where.low + where.high) / 2
    if isinstance(start, int | float):
        first = min(max(start, where.low), where.high)
    return name, replace(where, start=round(first) if where.integer else first)


def _in_section(space: Space) -> Space:
    """The names with the section that they are keys of."""
    return {
        f"{COMPLEMENT}optimizer.{name.removeprefix(COMPLEMENT)}"
        if name.startswith(COMPLEMENT)
        else f"optimizer.{name}": where
        for name, where in space.items()
    }


def _least_damping(config: FismoConfig) -> float:
    return MIN_POLYNOMIAL_DAMPING if config.metric.roots == "polynomial" else 0.0


def _around(start: float, usual: float | None = None, *, factor: float, least: float = 0.0) -> Range:
    """A factor to each side of the usual value, which is `start` itself by default; at most 3 beyond `start`."""
    usual, beyond = start if usual is None else usual, min(factor, 3.0)
    low, high = min(start / beyond, usual / factor), max(start * beyond, usual * factor)
    return Range(max(low, min(least, start)), high, start)


def _complement(rate: float) -> Range:
    start = max(1.0 - rate, 1e-4)
    return Range(start / 5.0, max(min(start * 5.0, 0.5), start), start)


def _choice(values: tuple[float, ...], start: float) -> Choice:
    return Choice(tuple(sorted({*values, start})), start)
