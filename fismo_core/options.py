"""The options of a parameter group: what each may be, the paper's choice of them, and what the arithmetic needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fismo_core.inverse_roots import ROOT_METHODS, ROOT_POWERS
from fismo_core.layout import Bucket
from fismo_core.polar import POLAR_METHODS

__all__ = ["DENSE_FORM", "MATRIX_KEYS", "PAPER_FORM", "Options", "check_options", "options_of", "structure_of"]

PAPER_FORM: dict[str, Any] = {
    "power": 0.5,
    "damping_scale": "absolute",
    "momentum_space": "whitened",
    "nesterov": False,
    "statistics": "both",
    "refresh_interval": 1,
    "roots": "eigh",
    "max_factor_ratio": None,
    "shape_scale": "none",
    "grafting": False,
}
"""The arguments that define the published algorithm (arXiv 2601.21750)."""

DENSE_FORM: dict[str, Any] = {
    "statistics": "both",
    "refresh_interval": 5,
    "roots": "eigh",
    "max_factor_ratio": None,
    "polar": "quintic",
    "polar_steps": 3,
}
"""The default form without its economies: what it is compared with."""

MATRIX_KEYS = (
    "momentum",
    "nesterov",
    "momentum_space",
    "power",
    "damping",
    "damping_scale",
    "fisher_decay",
    "statistics",
    "refresh_interval",
    "roots",
    "polar",
    "polar_steps",
    "shape_scale",
    "grafting",
    "cautious_weight_decay",
    "max_factor_dim",
    "max_factor_ratio",
    "compute_dtype",
    "radius_scale",
)
"""Options that only groups of matrices have."""

MIN_POLYNOMIAL_DAMPING = 1e-4
"""With less, a polynomial root of a large factor would need condition numbers that float32 cannot express."""

BFLOAT16_DAMPING = 0.05
"""With less damping, or a power above 1/4, polynomial roots in bfloat16 would be wrong by more than half."""

_COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """The choices of `FISMO` that the arithmetic needs; see there for what each means.

    Whitening and polar factor are computed in `compute_dtype`; statistics and roots in `root_dtype`, which is the same
    for polynomial roots of well damped factors, and at least float32 otherwise.
    """

    momentum: float
    nesterov: bool
    momentum_space: str
    power: float
    damping: float
    damping_scale: str
    fisher_decay: float
    roots: str
    polar: str
    polar_steps: int
    shape_scale: str
    grafting: bool
    max_factor_dim: int
    max_factor_ratio: float | None
    compute_dtype: torch.dtype
    root_dtype: torch.dtype


def options_of(group: Mapping[str, Any], bucket: Bucket) -> Options:
    """The options of a group, for one of its buckets."""
    fields = {key: group[key] for key in Options.__dataclass_fields__ if key not in ("compute_dtype", "root_dtype")}
    compute_dtype = _compute_dtype(group["compute_dtype"], bucket)
    coarse = group["roots"] == "polynomial" and group["power"] <= 0.25 and group["damping"] >= BFLOAT16_DAMPING
    root_dtype = compute_dtype if coarse else bucket.dtype
    return Options(**fields, compute_dtype=compute_dtype, root_dtype=root_dtype)


def _compute_dtype(name: str, bucket: Bucket) -> torch.dtype:
    if bucket.dtype == torch.float64:
        return torch.float64
    if name == "auto":
        return torch.bfloat16 if _fast_bfloat16(bucket.device) else torch.float32
    return _COMPUTE_DTYPES[name]


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones (elsewhere it is emulated, slowly)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def structure_of(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """The options that decide which state a group has; they must not change once it is allocated."""
    power = group["power"]
    sides = (group["max_factor_dim"], group["max_factor_ratio"])
    return (power == 0, power == 0.5, group["damping_scale"], *sides)


def check_options(group: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first option of a group that is missing or out of range."""

    def require(key: str, condition: bool, wanted: str) -> None:
        if not condition:
            raise ValueError(f"{key} must be {wanted}, got {group[key.removeprefix('adamw_')]!r}")

    needed = ("lr", "weight_decay", *(("betas", "eps") if group["rule"] == "adamw" else MATRIX_KEYS))
    missing = [key for key in needed if key not in group]
    if missing:
        raise ValueError(f"the parameter group has no {', '.join(missing)}")
    require("lr", _is_number(group["lr"]) and float(group["lr"]) >= 0, "a number of at least 0")
    require("weight_decay", _is_number(group["weight_decay"]) and group["weight_decay"] >= 0, "a number of at least 0")
    if group["rule"] == "adamw":
        betas = group["betas"]
        require("adamw_betas", len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)")
        require("adamw_eps", group["eps"] > 0, "positive")
        return
    scale = group["radius_scale"]
    require("radius_scale", _is_number(scale) and scale > 0, "a positive number")
    for key in ("momentum", "fisher_decay"):
        require(key, _is_number(group[key]) and 0 <= group[key] < 1, "a number in [0, 1)")
    require("power", _is_number(group["power"]) and 0 <= group["power"] <= 0.5, "a number in [0, 0.5]")
    require("damping", _is_number(group["damping"]) and group["damping"] >= 0, "a number of at least 0")
    for key in ("refresh_interval", "polar_steps", "max_factor_dim"):
        value = group[key]
        require(key, isinstance(value, int) and not isinstance(value, bool) and value >= 1, "a positive integer")
    ratio = group["max_factor_ratio"]
    require("max_factor_ratio", ratio is None or (_is_number(ratio) and ratio >= 1), "None or a number of at least 1")
    for key in ("nesterov", "grafting", "cautious_weight_decay"):
        require(key, isinstance(group[key], bool), "True or False")
    choices = {
        "momentum_space": ("raw", "whitened"),
        "damping_scale": ("relative", "absolute"),
        "statistics": ("alternating", "both"),
        "roots": ROOT_METHODS,
        "polar": POLAR_METHODS,
        "shape_scale": ("spectral", "rms", "none"),
        "compute_dtype": ("auto", *_COMPUTE_DTYPES),
    }
    for key, allowed in choices.items():
        require(key, group[key] in allowed, f"one of {', '.join(allowed)}")
    if group["polar"] == "composite":
        require("polar_steps", group["polar_steps"] == 2, "2 for the composite polar factor")
    if group["roots"] == "polynomial" and group["power"] > 0:
        eigh = "for polynomial roots (roots='eigh' takes any)"
        require("power", group["power"] in ROOT_POWERS, f"0, 1/8, 1/4 or 1/2 {eigh}")
        require("damping_scale", group["damping_scale"] == "relative", f"relative {eigh}")
        require("damping", group["damping"] >= MIN_POLYNOMIAL_DAMPING, f"at least {MIN_POLYNOMIAL_DAMPING} {eigh}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, torch.Tensor)) and not isinstance(value, bool)
