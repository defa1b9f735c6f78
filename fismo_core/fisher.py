"""Kronecker Fisher factors P (m x m) and Q (n x n) of a layer: statistics, averages, damping, normalisation.

The Fisher matrix of a layer W (m x n) is approximated by Q (x) P. A side is dense, `(B, d, d)`, or diagonal, `(B, d)`;
every function here takes both. Source of the recursion: Xu, Yan, Zhang, "FISMO" (2026), arXiv 2601.21750.
"""

import torch
from torch import Tensor

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
    """H H^T `(B, m, m)`, or its diagonal `(B, m)`."""
    return H.square().sum(dim=-1) if diagonal else H @ H.mT


def trace(A: Tensor) -> Tensor:
    """Trace `(B,)` of dense or diagonal matrices."""
    return A.diagonal(dim1=-2, dim2=-1).sum(-1) if A.ndim == 3 else A.sum(-1)


def fold_relative(P: Tensor, L: Tensor, keep: Tensor, decay: float) -> Tensor:
    """P <- decay P + (1 - decay) d / tr(L) L: a scale-free average of statistics, to be bias-corrected by `damped`.

    `keep` `(B,)` says which matrices take part; the others keep P. A zero L must not take part.
    """
    L = L * _expand(P.shape[1] / torch.where(keep, trace(L), 1.0), L)
    return torch.where(_expand(keep, P), torch.lerp(P, L, 1 - decay), P)


def damped(P: Tensor, count: Tensor, decay: float, damping: float) -> Tensor:
    """(P^ + damping I) / (1 + damping), where P^ is P with the bias of its `count` (B,) averaged statistics removed.

    Its trace is d, and its eigenvalues are at least damping / (1 + damping). With no statistics yet, the identity.
    """
    seen = count > 0
    correction = torch.where(seen, 1 - decay ** count.to(P.dtype), 1.0)
    P = P / _expand(correction, P)
    return torch.where(_expand(seen, P), add_to_diagonal(P, damping) / (1 + damping), add_to_diagonal(P * 0, 1.0))


def fold_absolute(P: Tensor, L: Tensor, keep: Tensor, decay: float, damping: float) -> Tensor:
    """The paper's recursion: damp L by damping tr(P) / d, average, normalise to trace d and symmetrise.

    P is the identity at the start. `keep` `(B,)` says which matrices take part; the others keep P, as do those whose
    new P would overflow or vanish.
    """
    d = P.shape[1]
    L = add_to_diagonal(L, damping * trace(P) / d)
    P_new = decay * P + (1 - decay) * L
    P_new = P_new * _expand(d / trace(P_new), P_new)
    if P.ndim == 3:
        P_new = (P_new + P_new.mT) / 2
    sound = keep & P_new.isfinite().flatten(1).all(dim=1)
    return torch.where(_expand(sound, P), P_new, P)


def add_to_diagonal(A: Tensor, value: float | Tensor) -> Tensor:
    """A + value I for dense or diagonal A; `value` is a number or one a matrix, `(B,)`."""
    if isinstance(value, Tensor):
        value = value[:, None]
    if A.ndim == 2:
        return A + value
    A = A.clone()
    A.diagonal(dim1=-2, dim2=-1).add_(value)
    return A


def _expand(per_matrix: Tensor, like: Tensor) -> Tensor:
    return per_matrix.view(-1, *[1] * (like.ndim - 1))
