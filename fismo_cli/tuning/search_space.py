"""Which settings of an optimizer are searched, and where: pure data, made from the optimizer's own section.

Every optimizer gets its learning rate and weight decay, and the knobs that are its own: the same number of trials for
each, centred on what it starts from. Knows nothing of Optuna.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fismo_cli.preset.optimizer_names import DEFAULTS
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

_COUPLED = ("adam", "sgd", "adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "asgd")
"""Optimizers whose weight decay goes through the gradient, so that useful values are smaller."""


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


def default_space(config: FismoConfig | BaselineConfig) -> Space:
    """Where the settings of an optimizer are searched: two decades of learning rate around the section's own."""
    decay = (0.0, 1e-4, 1e-3, 1e-2) if config.name in _COUPLED else (0.0, 0.01, 0.1, 0.3)
    space: Space = {"weight_decay": _choice(decay, config.weight_decay)}
    if isinstance(config, FismoConfig):
        return {
            "trust_radius": _around(config.trust_radius, 10.0),
            **space,
            "1 - momentum": _complement(config.momentum),
            "damping": _around(config.damping, 10.0),
        }
    lr = config.lr or DEFAULTS.get(config.name, {}).get("lr", 1e-3)
    space = {"lr": _around(lr, 10.0), **space}
    if config.name in _MOMENTUM:
        space["1 - momentum"] = _complement(config.momentum if config.momentum is not None else _MOMENTUM[config.name])
    elif config.name in _BETAS:
        first, second = config.betas or _BETAS[config.name]
        space["1 - beta1"], space["1 - beta2"] = _complement(first), _complement(second)
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


def _around(start: float, factor: float) -> Range:
    return Range(start / factor, start * factor, start)


def _complement(rate: float) -> Range:
    start = max(1.0 - rate, 1e-4)
    return Range(start / 5.0, min(start * 5.0, 0.5), start)


def _choice(values: tuple[float, ...], start: float) -> Choice:
    return Choice(tuple(sorted({*values, start})), start)
