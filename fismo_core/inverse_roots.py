"""Inverse powers of batches of symmetric matrices `(B, d, d)`: by matrix products alone, or exactly from eigenvalues.

Pure functions of tensors.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fismo_core.precision import accumulation_dtype, frobenius_norm

__all__ = ["inverse_powers", "polynomial_error", "polynomial_powers"]

TOLERANCE = 0.05
"""Largest relative error of a polynomial root that is accepted at the worst condition number."""

BFLOAT16_SHIFT = 2.0**-11
"""In units of c: what rounding to bfloat16 may move eigenvalues by. Without it they can become negative and blow up."""


def polynomial_powers(A: Tensor, power: float, condition: float) -> tuple[Tensor, Tensor, Tensor]:
    """A^-power and A^-1/2 of symmetric positive definite matrices by a coupled iteration of matrix products.

    With M = A / c and W = 1 it repeats W <- W p(M), M <- p(M)^(1/power) M, where p is the polynomial (quadratic, at the
    end linear where that suffices) that is nearest to x^-power, relatively, on the interval of the eigenvalues that M
    can have: an iteration of Guo and Higham (2006) with minimax instead of Newton coefficients. All iterates are
    polynomials in A and commute. c is ||A^2||_F^(1/2), between the largest eigenvalue and d^(1/4) times it. In
    bfloat16, which cannot tell an eigenvalue of M below `BFLOAT16_SHIFT` from zero or from a negative one, that much is
    added to all of them first. Nothing waits for the device.

    Args:
        A: `(B, d, d)`; the arithmetic is done in its dtype.
        power: one of `config.ROOT_POWERS`.
        condition: a bound on c / (smallest eigenvalue). It decides how many polynomials are used: in exact arithmetic
            the relative error of every eigenvalue of A^-power is at most `polynomial_error(power, condition)`;
            eigenvalues below c / condition give too small a power.

    Returns:
        A^-power and A^-1/2, shaped like A in its dtype, and a boolean `(B,)`: which matrices gave finite numbers.
    """
    shift = BFLOAT16_SHIFT if A.dtype == torch.bfloat16 else 0.0
    schedule = _coefficients(power, min(condition, 1 / shift) if shift else condition)
    square = A @ A
    scale = frobenius_norm(square).to(accumulation_dtype(A.dtype)).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    M, square = A / scale.to(A.dtype), square.div_((scale**2).to(A.dtype))
    if shift:
        torch.add(square, M, alpha=2 * shift, out=square)  # not add_: torch.compile to 2.11 rounds its product first
        M.diagonal(dim1=-2, dim2=-1).add_(shift)
    W = None
    for number, (a, b, *c) in enumerate(schedule):
        if not c:
            factor = M * b
        elif number == 0:
            factor = torch.add(square.mul_(c[0]), M, alpha=b, out=square)  # not add_, as above
        else:
            factor = torch.baddbmm(M, M, M, beta=b, alpha=c[0])
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        W = factor if W is None else W @ factor
        if number + 1 < len(schedule):
            for _ in range(round(math.log2(1 / power)) - 1):
                factor = factor @ factor
            M = factor @ (factor @ M)
    assert W is not None
    root = inverse_sqrt = W * (scale**-power).to(W.dtype)
    for _ in range(round(math.log2(0.5 / power))):
        inverse_sqrt = inverse_sqrt @ inverse_sqrt
    return root, inverse_sqrt, frobenius_norm(inverse_sqrt).isfinite().flatten()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _coefficients(power: float, condition: float) -> list[list[float]]:
    """The polynomials of `_schedule`; a compiled step has them as constants."""
    return _schedule(power, condition)[0]


def polynomial_error(power: float, condition: float) -> float:
    """The relative error in exact arithmetic of `polynomial_powers` at the worst eigenvalue."""
    return _schedule(power, condition)[1]


@lru_cache(maxsize=256)
def _schedule(power: float, condition: float) -> tuple[list[list[float]], float]:
    """As few polynomials as bring the error at the condition number below the tolerance, and that error."""
    low, high = 1 / max(condition, 1.0), 1.0
    schedule: list[list[float]] = []
    while True:
        for degree in (1, 2):
            polynomial, error = _nearest(power, degree, low, high)
            if error <= TOLERANCE:
                return [*schedule, polynomial], error
        schedule.append(polynomial)
        low, high = (1 - error) ** (1 / power), (1 + error) ** (1 / power)


def _nearest(power: float, degree: int, low: float, high: float) -> tuple[list[float], float]:
    """Coefficients of the polynomial q with the least max |q(x) x^power - 1| on [low, high], and that maximum.

    By Lawson's algorithm (1961): least squares with weights that grow where the error is large. On the CPU whatever
    torch's default device is: others may have no float64.
    """
    x = torch.logspace(math.log10(low), math.log10(high), 400, dtype=torch.float64, device="cpu")
    columns = torch.stack([(x / high) ** k for k in range(degree + 1)], dim=1) * (x**power)[:, None]
    weights = torch.full_like(x, 1 / len(x))
    best, least = torch.zeros_like(columns[0]), math.inf
    for _ in range(100):
        root = weights.sqrt()[:, None]
        # The normal equations are tiny and well scaled; lstsq would give other last bits with other thread counts.
        scaled = columns * root
        q = torch.linalg.solve(scaled.mT @ scaled, (scaled.mT @ root)[:, 0])
        errors = (columns @ q - 1).abs()
        if errors.max() < least:
            best, least = q, float(errors.max())
        weights = weights * errors
        weights = weights / weights.sum()
    return [c / high**k for k, c in enumerate(best.tolist())], least


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
