"""What the arithmetic shares: a scale that cannot overflow, and float32 products that are float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["accumulation_dtype", "frobenius_norm", "full_precision_matmul", "largest_entry", "normalize_scale"]


def largest_entry(X: Tensor) -> Tensor:
    """The largest absolute entry of each matrix, `(B, 1, 1)`; not finite if any entry is not."""
    # Without the copy that abs() would make.
    return torch.maximum(X.amax(dim=(-2, -1), keepdim=True), -X.amin(dim=(-2, -1), keepdim=True))


def normalize_scale(X: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Divide each matrix by its largest absolute entry; a zero matrix stays zero.

    Scaling the input by a power of two gives the same result to the last bit, and no later square can overflow or
    vanish. Shape `(B, m, n)` in and out, in memory of its own; the result is rounded to `dtype`.
    """
    largest = largest_entry(X)
    scale = torch.where(largest > 0, largest, 1)
    if dtype in (None, X.dtype):
        return X / scale
    return X.to(dtype).div_(scale.to(dtype))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over entries of `dtype` are taken in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def frobenius_norm(X: Tensor) -> Tensor:
    """The Frobenius norm of each matrix, `(B, 1, 1)`, summed in float32 at least and rounded to the dtype of X."""
    norm: Tensor = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    return norm


@contextmanager
def full_precision_matmul() -> Iterator[None]:
    """Within it float32 products are float32: neither TF32 on CUDA nor bfloat16 on the CPU. Restored on leaving."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    # "none" inherits the generic setting; reading gives what was inherited, which must not be pinned on leaving.
    generic = torch.backends.fp32_precision  # type: ignore[attr-defined]
    previous = [backend.fp32_precision for backend in backends]
    if all(value in ("none", "ieee") for value in previous):
        yield
        return
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, value in zip(backends, previous, strict=True):
            backend.fp32_precision = "none" if value == generic else value
