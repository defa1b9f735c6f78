"""The options of a parameter group: what each may be, the paper's choice of them, and what the arithmetic needs."""

from dataclasses import dataclass
from typing import Any

import torch

from fismo_core.layout import Bucket
from fismo_core.matrix_functions import POLAR_METHODS

__all__ = ["MATRIX_KEYS", "PAPER_FORM", "Options", "check_options", "options_of"]

PAPER_FORM: dict[str, Any] = {
    "power": 0.5,
    "damping_scale": "absolute",
    "momentum_space": "whitened",
    "nesterov": False,
    "refresh_interval": 1,
    "shape_scale": "none",
    "grafting": False,
}
"""The arguments that define the published algorithm (arXiv 2601.21750)."""

MATRIX_KEYS = (
    "momentum",
    "nesterov",
    "momentum_space",
    "power",
    "damping",
    "damping_scale",
    "fisher_decay",
    "refresh_interval",
    "polar",
    "polar_steps",
    "shape_scale",
    "grafting",
    "cautious_weight_decay",
    "max_factor_dim",
    "compute_dtype",
)
"""Options that only groups of matrices have."""

_COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Options:
    """The choices of `FISMO` that the arithmetic needs; see there for what each means."""

    momentum: float
    nesterov: bool
    momentum_space: str
    power: float
    damping: float
    damping_scale: str
    fisher_decay: float
    polar: str
    polar_steps: int
    shape_scale: str
    grafting: bool
    max_factor_dim: int
    compute_dtype: torch.dtype


def options_of(group: dict[str, Any], bucket: Bucket) -> Options:
    """The options of a group, for one of its buckets."""
    fields = {key: group[key] for key in Options.__dataclass_fields__ if key != "compute_dtype"}
    return Options(**fields, compute_dtype=_compute_dtype(group["compute_dtype"], bucket))


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


def check_options(group: dict[str, Any]) -> None:
    """Raise a ValueError that names the first option of a group that is out of range."""

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(message)

    require(float(group["lr"]) >= 0, f"lr must not be negative, got {group['lr']}")
    require(group["weight_decay"] >= 0, f"weight_decay must not be negative, got {group['weight_decay']}")
    if group["rule"] == "adamw":
        betas = group["betas"]
        require(len(betas) == 2 and all(0 <= b < 1 for b in betas), f"adamw_betas must be in [0, 1), got {betas}")
        require(group["eps"] > 0, f"adamw_eps must be positive, got {group['eps']}")
        return
    for key in ("momentum", "fisher_decay"):
        require(0 <= group[key] < 1, f"{key} must be in [0, 1), got {group[key]}")
    require(0 <= group["power"] <= 0.5, f"power must be in [0, 0.5], got {group['power']}")
    require(group["damping"] >= 0, f"damping must not be negative, got {group['damping']}")
    for key in ("refresh_interval", "polar_steps", "max_factor_dim"):
        require(isinstance(group[key], int) and group[key] >= 1, f"{key} must be a positive integer, got {group[key]}")
    choices = {
        "momentum_space": ("raw", "whitened"),
        "damping_scale": ("relative", "absolute"),
        "polar": POLAR_METHODS,
        "shape_scale": ("spectral", "rms", "none"),
        "compute_dtype": ("auto", *_COMPUTE_DTYPES),
    }
    for key, allowed in choices.items():
        require(group[key] in allowed, f"{key} must be one of {', '.join(allowed)}, got {group[key]!r}")
