"""Kronecker Fisher factors P (m x m) and Q (n x n) of a layer: statistics, averages, damping, normalisation.

The Fisher matrix of a layer W (m x n) is approximated by Q (x) P. A side is dense, `(B, d, d)`, or diagonal, `(B, d)`;
every function here takes both. Source of the recursion: Xu, Yan, Zhang, "FISMO" (2026), arXiv 2601.21750.
"""

import torch
from torch import Tensor

from fismo_core.precision import accumulation_dtype

__all__ = [
    "damped",
    "fold_absolute",
    "fold_relative",
    "identity_factor",
    "multiply_left",
    "multiply_right",
    "second_moment",
    "trace",
]


def identity_factor(batch: int, dim: int, *, diagonal: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Identity matrices `(B, d, d)`, or their diagonals `(B, d)`."""
    if diagonal:
        return torch.ones(batch, dim, dtype=dtype, device=device)
    return torch.eye(dim, dtype=dtype, device=device).expand(batch, dim, dim).clone()


def multiply_left(F: Tensor, X: Tensor) -> Tensor:
    """F X for dense or diagonal F; X is `(B, m, n)`."""
    return F @ X if F.ndim == 3 else F[:, :, None] * X


def multiply_right(X: Tensor, F: Tensor) -> Tensor:
    """X F for dense or diagonal F; X is `(B, m, n)`."""
    return X @ F if F.ndim == 3 else X * F[:, None, :]


def second_moment(H: Tensor, *, diagonal: bool) -> Tensor:
    """H H^T `(B, m, m)` in the dtype of H, or its diagonal `(B, m)` summed in float32 at least."""
    return H.square().sum(dim=-1, dtype=accumulation_dtype(H.dtype)) if diagonal else H @ H.mT


def trace(A: Tensor) -> Tensor:
    """Trace `(B,)` of dense or diagonal matrices, summed in float32 at least."""
    entries = A.diagonal(dim1=-2, dim2=-1) if A.ndim == 3 else A
    return entries.sum(-1, dtype=accumulation_dtype(A.dtype))


def fold_relative(P: Tensor, L: Tensor, keep: Tensor, decay: float) -> None:
    """P <- decay P + (1 - decay) d / tr(L) L, in place: a scale-free average of statistics, that `damped` corrects.

    `keep` `(B,)` says which matrices take part; the others keep P, as do those with a zero L. L is overwritten.
    """
    size = trace(L)
    keep = keep & (size > 0)
    scale = P.shape[1] / torch.where(keep, size, 1.0)
    L = L.to(P.dtype).mul_(expand(scale.to(P.dtype), L))
    P.lerp_(L, expand(keep.to(P.dtype) * (1 - decay), P))


def damped(P: Tensor, damping: float) -> Tensor:
    """(P^ + damping I) / (1 + damping), where P^ is P scaled to trace d, which corrects its average's start at zero.

    The eigenvalues lie between damping / (1 + damping) and d. With no statistics yet, the identity.
    """
    size = trace(P)
    seen = size > 0
    scaled = P * expand(P.shape[1] / torch.where(seen, size, 1.0) / (1 + damping), P)  # zero stays zero
    return add_to_diagonal_(scaled, (damping + (~seen).to(P.dtype)) / (1 + damping))


def fold_absolute(P: Tensor, L: Tensor, keep: Tensor, decay: float, damping: float) -> None:
    """The paper's recursion, in place: damp L by damping tr(P) / d, average, normalise to trace d and symmetrise.

    P is the identity at the start. `keep` `(B,)` says which matrices take part; the others keep P, as do those whose
    new P would overflow or vanish.
    """
    d = P.shape[1]
    L = add_to_diagonal_(L.to(P.dtype), damping * trace(P) / d)
    P_new = decay * P + (1 - decay) * L
    P_new = P_new * expand(d / trace(P_new), P_new)
    if P.ndim == 3:
        P_new = (P_new + P_new.mT) / 2
    sound = keep & P_new.isfinite().flatten(1).all(dim=1)
    P.copy_(torch.where(expand(sound, P), P_new, P))


def add_to_diagonal_(A: Tensor, value: Tensor) -> Tensor:
    """A + value I in place, for dense or diagonal A and one value a matrix, `(B,)`."""
    (A.diagonal(dim1=-2, dim2=-1) if A.ndim == 3 else A).add_(value[:, None])
    return A


def expand(per_matrix: Tensor, like: Tensor) -> Tensor:
    """One value a matrix `(B,)`, shaped to multiply `like`."""
    return per_matrix.view(-1, *[1] * (like.ndim - 1))
