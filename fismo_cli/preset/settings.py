"""Sets single settings of a preset's plain values by name: a search draws them, and presets are made of them.

A name is a key's path, such as `optimizer.metric.damping`; `1 - optimizer.momentum` is set by what 1 exceeds it by, and
`optimizer.beta1` and `beta2` are the two parts of `optimizer.betas`.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["BETAS", "COMPLEMENT", "NEAR_ONE", "get_setting", "key_path", "with_settings"]

COMPLEMENT = "1 - "
"""Prefix of the name of a setting that is searched by its distance from 1."""

BETAS: dict[str, tuple[float, float]] = {
    "adam": (0.9, 0.999),
    "adamw": (0.9, 0.999),
    "adamax": (0.9, 0.999),
    "nadam": (0.9, 0.999),
    "radam": (0.9, 0.999),
    "soap": (0.95, 0.95),
    "lion": (0.9, 0.99),
}
"""Optimizers with two decay rates, and the rates they start from."""

NEAR_ONE = ("momentum", "beta1", "beta2", "decay", "ema_decay")
"""Last parts of the keys of settings whose distance from 1 is what matters."""

_BETA = {"beta1": 0, "beta2": 1}


def key_path(name: str) -> tuple[str, ...]:
    """Where in a preset a setting is."""
    path = tuple(name.removeprefix(COMPLEMENT).split("."))
    return (*path[:-1], "betas") if path[-1] in _BETA else path


def get_setting(values: Mapping[str, Any], name: str) -> Any:
    """The value of a setting, by its name; None where the preset has none."""
    section: Any = values
    for part in key_path(name):
        section = section.get(part) if isinstance(section, Mapping) else None
    last = name.rsplit(".", 1)[-1]
    if last in _BETA:
        section = (section or BETAS.get(values["optimizer"]["name"], (0.9, 0.999)))[_BETA[last]]
    return section if not name.startswith(COMPLEMENT) or section is None else 1.0 - section


def with_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's values with settings, by name. Another batch size sees as many samples: `train.steps` follow it."""
    changed = dict(values)
    for name, given in settings.items():
        value = 1.0 - given if name.startswith(COMPLEMENT) else given
        section, _, last = name.removeprefix(COMPLEMENT).rpartition(".")
        if last in _BETA:
            value = tuple(value if beta == last else get_setting(changed, f"{section}.{beta}") for beta in _BETA)
        changed = _put(changed, key_path(name), value)
    before, after = values["train"]["batch_size"], changed["train"]["batch_size"]
    steps = changed["train"]["steps"]
    if steps is not None and before != after:
        changed = _put(changed, ("train", "steps"), max(1, round(steps * before / after)))
    return changed


def _put(values: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    return {**values, head: _put(values.get(head) or {}, tuple(rest), value) if rest else value}
