"""What the arithmetic of one bucket needs of a group's options, with its number formats settled."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fismo_core.config import ComputeDtype, FisherMetric, Polar, Scale
from fismo_core.economy import metric_of

__all__ = ["Arithmetic", "PolarFunction", "arithmetic_of"]

PolarFunction = Callable[[Tensor], Tensor]
"""From matrices `(B, m, n)` to their polar factors, in the same dtype; zero matrices must give zero."""

BFLOAT16_DAMPING = 0.05
"""With less damping, or a power above 1/4, polynomial roots in bfloat16 would be wrong by more than half."""


@dataclass(frozen=True)
class Arithmetic:
    """The choices of `FISMO` that the arithmetic needs; see `config.py` for what each means.

    Whitening and polar factor are computed in `compute_dtype`; statistics and roots in `root_dtype`, which is the same
    for polynomial roots of well damped factors, and at least float32 otherwise.
    """

    momentum: float
    nesterov: bool
    metric: FisherMetric
    polar: Polar | PolarFunction
    scale: Scale
    graft: bool
    compute_dtype: torch.dtype
    root_dtype: torch.dtype


def arithmetic_of(group: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> Arithmetic:
    """The arithmetic of a group's matrices whose state has this dtype, on this device."""
    metric = metric_of(group)
    compute_dtype = _resolved(group["compute_dtype"], dtype, device)
    coarse = metric.roots == "polynomial" and metric.power <= 0.25 and metric.damping >= BFLOAT16_DAMPING
    return Arithmetic(
        momentum=group["momentum"],
        nesterov=group["nesterov"],
        metric=metric,
        polar=group["polar"],
        scale=group["scale"],
        graft=group["graft"],
        compute_dtype=compute_dtype,
        root_dtype=compute_dtype if coarse else dtype,
    )


def _resolved(name: ComputeDtype, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == torch.float64:
        return torch.float64
    if name == "auto":
        name = "bfloat16" if _fast_bfloat16(device) else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones (elsewhere it is emulated, slowly)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False
