"""Polar factors and inverse powers of batches of matrices `(B, m, n)`, with exact reference versions.

Pure functions of tensors: they know nothing of optimizers, parameters or state.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["POLAR_METHODS", "full_precision_matmul", "inverse_powers", "normalize_scale", "polar_factor"]

Coefficients = tuple[float, float, float]

QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of x -> a x + b x^3 + c x^5, chosen for the largest slope at zero that keeps singular values
near one: Keller Jordan et al., "Muon" (2024), https://kellerjordan.github.io/posts/muon/."""

POLAR_EXPRESS: tuple[Coefficients, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Coefficients of each step, the last repeated: Amsel et al., "The Polar Express" (2025), arXiv 2505.16932, for
singular values in [1e-3, 1]."""

POLAR_EXPRESS_SAFETY = 1.01
"""All but the last polynomial are made for inputs this much larger, which absorbs rounding (same paper)."""

POLAR_METHODS = ("quintic", "polar-express", "exact")


def normalize_scale(X: Tensor) -> Tensor:
    """Divide each matrix by its largest absolute entry; a zero matrix stays zero.

    Scaling the input by a power of two gives the same result to the last bit, and no later square can overflow or
    vanish. Shape `(B, m, n)` in and out.
    """
    largest = X.abs().amax(dim=(-2, -1), keepdim=True)
    return X / torch.where(largest > 0, largest, 1)


def polar_factor(X: Tensor, *, method: str = "quintic", steps: int = 5) -> Tensor:
    """The orthogonal polar factor U V^T of each X = U S V^T, approximately or exactly.

    Args:
        X: matrices `(B, m, n)`; the arithmetic is done in their dtype.
        method: `quintic` and `polar-express` iterate on X with matrix products alone, and leave the singular values
            of the result in a band around one (weak directions below it, when the steps are few). `exact` is an SVD.
        steps: how many iterations; `exact` ignores it.

    Returns:
        `(B, m, n)` in the dtype of X. Zero matrices give zero; directions of zero singular value stay zero.

    Raises:
        ValueError: if the method is unknown.
    """
    if method == "exact":
        return _exact_polar_factor(X)
    if method == "quintic":
        return _odd_polynomials(X, [QUINTIC] * steps)
    if method == "polar-express":
        return _odd_polynomials(X, _polar_express_schedule(steps), bound=POLAR_EXPRESS_SAFETY)
    raise ValueError(f"unknown polar method {method!r}; choose one of {', '.join(POLAR_METHODS)}")


def _polar_express_schedule(steps: int) -> list[Coefficients]:
    table = [*POLAR_EXPRESS[:steps], *[POLAR_EXPRESS[-1]] * max(0, steps - len(POLAR_EXPRESS))]
    s = POLAR_EXPRESS_SAFETY
    return [(a / s, b / s**3, c / s**5) for a, b, c in table[:-1]] + table[-1:]


def _odd_polynomials(X: Tensor, schedule: Sequence[Coefficients], bound: float = 1.0) -> Tensor:
    """Apply x -> a x + b x^3 + c x^5 to the singular values, step after step, scaled first to at most 1 / bound."""
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT  # the Gram matrix is formed on the short side
    # The Frobenius norm bounds the spectral norm. In float32, since a bfloat16 sum of many squares is too coarse.
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=_accumulation_dtype(X.dtype))
    X = X / torch.where(norm > 0, norm * bound, 1).to(X.dtype)
    for a, b, c in schedule:
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _exact_polar_factor(X: Tensor) -> Tensor:
    full = X if X.dtype == torch.float64 else X.float()
    U, S, Vh = torch.linalg.svd(full, full_matrices=False)
    cutoff = S[..., :1] * torch.finfo(full.dtype).eps * max(X.shape[-2:])
    kept = (cutoff < S).to(full.dtype)
    polar: Tensor = (U * kept[..., None, :]) @ Vh
    return polar.to(X.dtype)


def inverse_powers(A: Tensor, powers: Sequence[float]) -> tuple[list[Tensor], Tensor]:
    """Negative powers A^-p of symmetric positive definite matrices, by eigenvalues; never raises on bad numbers.

    What fails is retried, one matrix at a time, in float64 on the CPU; a matrix that fails there too is reported.
    Calls from the host: this synchronises with the device.

    Args:
        A: `(B, d, d)`, symmetric; or `(B, d)`, the diagonals of diagonal matrices.
        powers: the powers p > 0 wanted.

    Returns:
        For each p a tensor shaped like A, and a boolean `(B,)`: which matrices succeeded. The others hold the
        identity.
    """
    if A.ndim == 2:
        return _diagonal_inverse_powers(A, powers)
    finite = A.isfinite().flatten(1).all(dim=1)
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    A = torch.where(finite[:, None, None], A, identity)
    try:
        roots = _eigen_powers(A, powers)
        good = finite & torch.stack([R.isfinite().flatten(1).all(dim=1) for R in roots]).all(dim=0)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # one matrix that does not converge fails the whole batch
        roots = [torch.zeros_like(A) for _ in powers]
        good = torch.zeros_like(finite)
    for index in (finite & ~good).nonzero().flatten().tolist():
        rescued = _eigen_powers_on_cpu(A[index], powers)
        if rescued is not None:
            good[index] = True
            for root, value in zip(roots, rescued, strict=True):
                root[index] = value.to(root)
    return [torch.where(good[:, None, None], R, identity) for R in roots], good


def _diagonal_inverse_powers(A: Tensor, powers: Sequence[float]) -> tuple[list[Tensor], Tensor]:
    good = (A.isfinite() & (A >= 0)).all(dim=1)
    values = _floor(torch.where(good[:, None], A, 1.0))
    return [values**-p for p in powers], good


def _eigen_powers(A: Tensor, powers: Sequence[float]) -> list[Tensor]:
    values, V = torch.linalg.eigh(A)
    values = _floor(values)
    # (V s)(V s)^T with s = values^(-p/2) is symmetric to the last bit.
    return [(half := V * (values ** (-p / 2))[..., None, :]) @ half.mT for p in powers]


def _eigen_powers_on_cpu(A: Tensor, powers: Sequence[float]) -> list[Tensor] | None:
    try:
        roots = _eigen_powers(A.double().cpu(), powers)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    return roots if all(bool(R.isfinite().all()) for R in roots) else None


def _floor(values: Tensor) -> Tensor:
    """Keep eigenvalues away from zero: rounding makes those of a singular matrix tiny or negative."""
    smallest = torch.finfo(values.dtype).eps * values.shape[-1] * values.amax(dim=-1, keepdim=True)
    return torch.maximum(values, smallest.clamp_min(torch.finfo(values.dtype).tiny))


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
