"""Which settings of an optimizer are searched, and where: pure data, made from the optimizer's own section.

Every optimizer gets its learning rate and weight decay, and the knobs that are its own: the same number of trials for
each, centred on what it starts from. Knows nothing of Optuna.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fismo_cli.preset.optimizer_names import COUPLED_DECAY, DEFAULTS, NO_WEIGHT_DECAY
from fismo_cli.preset.schema import BaselineConfig, FismoConfig

__all__ = ["Choice", "Range", "Space", "default_space", "near_bounds", "with_settings"]

_BETAS: dict[str, tuple[float, float]] = {
    "adam": (0.9, 0.999),
    "adamw": (0.9, 0.999),
    "adamax": (0.9, 0.999),
    "nadam": (0.9, 0.999),
    "radam": (0.9, 0.999),
    "soap": (0.95, 0.95),
    "lion": (0.9, 0.99),
}
"""Optimizers with two decay rates, and the rates they start from."""

_MOMENTUM = {"muon": 0.95, "sgd": 0.9}
"""Optimizers with a momentum, and the one they start from."""


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both included, searched on a logarithmic scale; `start` is tried first."""

    low: float
    high: float
    start: float


@dataclass(frozen=True)
class Choice:
    """One of a few values; `start` is tried first."""

    values: tuple[float, ...]
    start: float


Space = dict[str, Range | Choice]
"""Name of a setting -> where it is searched. `1 - momentum` and the like are searched in place of what nears 1."""


MIN_POLYNOMIAL_DAMPING = 1e-4
"""Below it the schema refuses polynomial roots."""


def default_space(config: FismoConfig | BaselineConfig) -> Space:
    """Where the settings of an optimizer are searched: two decades of learning rate around the section's own.

    Raises:
        ValueError: if the section has no learning rate, and this tool no default for it.
    """
    decay = (0.0, 1e-4, 1e-3, 1e-2) if config.name in COUPLED_DECAY else (0.0, 0.01, 0.1, 0.3)
    space: Space = {"weight_decay": _choice(decay, config.weight_decay)}
    if isinstance(config, FismoConfig):
        space = {"trust_radius": _around(config.trust_radius), **space, "1 - momentum": _complement(config.momentum)}
        if config.damping > 0:
            low = MIN_POLYNOMIAL_DAMPING if config.roots == "polynomial" else 0.0
            space["damping"] = _around(config.damping, low)
        return space
    lr = config.lr or DEFAULTS.get(config.name, {}).get("lr")
    if lr is None:
        raise ValueError("give its learning rate (lr), around which to tune")
    space = {"lr": _around(lr), **({} if config.name in NO_WEIGHT_DECAY else space)}
    if config.name in _MOMENTUM:
        space["1 - momentum"] = _complement(config.momentum if config.momentum is not None else _MOMENTUM[config.name])
    elif config.name in _BETAS:
        first, second = config.betas or _BETAS[config.name]
        space["1 - beta1"], space["1 - beta2"] = _complement(first), _complement(second)
    fixed = {"betas": ("1 - beta1", "1 - beta2"), "momentum": ("1 - momentum",)}
    for key in config.args:  # what is given there wins over everything, so there is nothing to search
        for name in fixed.get(key, (key,)):
            space.pop(name, None)
    return space


def with_settings(config: FismoConfig | BaselineConfig, settings: Mapping[str, float]) -> dict[str, Any]:
    """The values of an optimizer section with what was drawn from its space, to be validated anew."""
    values = config.model_dump()
    started: tuple[float, ...] = values.get("betas") or _BETAS.get(config.name) or ()
    betas = list(started)
    for name, value in settings.items():
        match name:
            case "1 - momentum":
                values["momentum"] = 1.0 - value
            case "1 - beta1":
                betas[0] = 1.0 - value
            case "1 - beta2":
                betas[1] = 1.0 - value
            case _:
                values[name] = value
    if any(name.startswith("1 - beta") for name in settings):
        values["betas"] = tuple(betas)
    return values


def near_bounds(space: Space, settings: Mapping[str, float], share: float = 0.05) -> tuple[str, ...]:
    """Settings that lie within a share of their range, on its logarithmic scale, from a bound."""
    found = []
    for name, value in settings.items():
        where = space[name]
        if isinstance(where, Range):
            position = math.log(value / where.low) / math.log(where.high / where.low)
            if min(position, 1.0 - position) <= share:
                found.append(name)
    return tuple(found)


def _around(start: float, least: float = 0.0) -> Range:
    return Range(max(start / 10.0, min(least, start)), start * 10.0, start)


def _complement(rate: float) -> Range:
    start = max(1.0 - rate, 1e-4)
    return Range(start / 5.0, max(min(start * 5.0, 0.5), start), start)


def _choice(values: tuple[float, ...], start: float) -> Choice:
    return Choice(tuple(sorted({*values, start})), start)
