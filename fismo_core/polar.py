"""Polar factors of batches of matrices `(B, m, n)`: by odd polynomials of the singular values, or exactly by an SVD.

Pure functions of tensors.
"""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from fismo_core.config import PolarMethod
from fismo_core.precision import accumulation_dtype, frobenius_norm

__all__ = ["polar_factor"]

Polynomial = tuple[float, ...]
"""Coefficients of x, x^3, x^5 (three) or of x, x^3, ..., x^9 (five)."""

QUINTIC: Polynomial = (3.4445, -4.7750, 2.0315)
"""Chosen for the largest slope at zero that keeps singular values near one: Keller Jordan et al., "Muon" (2024),
https://kellerjordan.github.io/posts/muon/."""

POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Polynomial of each step, the last repeated: Amsel et al., "The Polar Express" (2025), arXiv 2505.16932, for
singular values in [1e-3, 1]."""

POLAR_EXPRESS_SAFETY = 1.01
"""All but the last polynomial are made for inputs this much larger, which absorbs rounding (same paper)."""

COMPOSITE: tuple[Polynomial, ...] = (
    (3.809688, -7.127689, 4.472581),
    (7.242633, -39.837615, 90.251552, -82.900884, 26.280993),
)
"""A polynomial of degree five and one of degree nine: together they bring [0.027, 1] into [0.7, 1.3], nearly as three
of Muon's quintics do with [0.020, 1], by seven products of square matrices instead of nine. The first is the nearest to
one on [0.25, 1], gentle enough for bfloat16; the second is the nearest to one on the largest interval that ends where
the values of the first do and allows a distance of 0.3 (benchmarks/polynomials.py finds both)."""

NONIC_CENTER = 0.67
"""Where the polynomial of degree nine is expanded, in the middle of the squares of its interval: about zero its terms
cancel, and bfloat16 rounding would grow tenfold."""

GRAM_RATIO = 2
"""From this ratio of the sides on the polynomials are formed on the small Gram matrix: fewer products."""

GRAM_STEPS = 2
"""Polynomials formed on one Gram matrix before it is computed anew, since squaring the matrix loses precision."""


def polar_factor(X: Tensor, *, method: PolarMethod, steps: int) -> Tensor:
    """The orthogonal polar factor U V^T of each X = U S V^T, approximately or exactly.

    Args:
        X: matrices `(B, m, n)`; the arithmetic is done in their dtype.
        method: odd polynomials, by matrix products alone, which leave the singular values of the result in a band
            around one (weak directions below it, when the steps are few): `composite` (of degree five and nine),
            `quintic` (Muon's) or `polar-express`. `exact` is an SVD.
        steps: how many polynomials; `composite` has two, `exact` ignores it.

    Returns:
        `(B, m, n)` in the dtype of X. Zero matrices give zero; directions of zero singular value stay zero.

    Raises:
        ValueError: if the method is unknown, or has no such number of steps.
    """
    if method == "exact":
        return _exact(X)
    if method == "quintic":
        return _odd_polynomials(X, [QUINTIC] * steps)
    if method == "polar-express":
        return _odd_polynomials(X, _polar_express_schedule(steps), bound=POLAR_EXPRESS_SAFETY)
    if method == "composite":
        if steps != len(COMPOSITE):
            raise ValueError(f"the composite polar factor has 2 steps, not {steps}")
        return _odd_polynomials(X, _CENTERED_COMPOSITE)
    raise ValueError(f"unknown polar method {method!r}; choose one of {', '.join(get_args(PolarMethod))}")


def _polar_express_schedule(steps: int) -> list[Polynomial]:
    table = [*POLAR_EXPRESS[:steps], *[POLAR_EXPRESS[-1]] * max(0, steps - len(POLAR_EXPRESS))]
    s = POLAR_EXPRESS_SAFETY
    return [(a / s, b / s**3, c / s**5) for a, b, c in table[:-1]] + table[-1:]


def _odd_polynomials(X: Tensor, schedule: Sequence[Polynomial], bound: float = 1.0) -> Tensor:
    """Apply the polynomials to the singular values, one after the other, scaled first to at most 1 / bound."""
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = X.mT  # the Gram matrix is formed on the short side
    norm = frobenius_norm(X)  # bounds the spectral norm
    X = X / torch.where(norm > 0, norm * bound, 1)
    if X.shape[-1] >= GRAM_RATIO * X.shape[-2]:
        for start in range(0, len(schedule), GRAM_STEPS):
            X = _composition_of_gram(X @ X.mT, schedule[start : start + GRAM_STEPS]) @ X
    else:
        for coefficients in schedule:
            constant, rest = _even_part(X @ X.mT, coefficients)
            X = torch.baddbmm(X, rest, X, beta=constant)
    return X.mT if tall else X


def _even_part(C: Tensor, coefficients: Polynomial) -> tuple[float, Tensor]:
    """The polynomial over X, as a polynomial in C = X X^T: its constant and the rest.

    Five coefficients are those about `NONIC_CENTER`; C is overwritten then.
    """
    if len(coefficients) == 3:
        a, b, c = coefficients
        return a, torch.baddbmm(C, C, C, beta=b, alpha=c)
    a, b, c, d, e = coefficients
    C.diagonal(dim1=-2, dim2=-1).sub_(NONIC_CENTER)
    square = C @ C
    inner = torch.add(square, C, alpha=d / e)
    inner.diagonal(dim1=-2, dim2=-1).add_(c / e)
    return a, torch.baddbmm(C, square, inner, beta=b, alpha=e)


def _expanded_at(center: float, coefficients: Polynomial) -> Polynomial:
    """The coefficients of q(t) = c0 + c1 t + ... as a polynomial in t - center."""
    size = len(coefficients)
    return tuple(
        sum(coefficients[k] * math.comb(k, j) * center ** (k - j) for k in range(j, size)) for j in range(size)
    )


_CENTERED_COMPOSITE = (COMPOSITE[0], _expanded_at(NONIC_CENTER, COMPOSITE[1]))


def _composition_of_gram(C: Tensor, schedule: Sequence[Polynomial]) -> Tensor:
    """The matrix H, a polynomial in C = X X^T, for which H X is the composition of the polynomials applied to X."""
    H = None
    for number, coefficients in enumerate(schedule):
        constant, factor = _even_part(C, coefficients)
        factor.diagonal(dim1=-2, dim2=-1).add_(constant)
        H = factor if H is None else factor @ H
        if number + 1 < len(schedule):
            C = factor @ (factor @ C)  # all of them are polynomials in C, and commute
    assert H is not None
    return H


def _exact(X: Tensor) -> Tensor:
    full = X.to(accumulation_dtype(X.dtype))
    U, S, Vh = torch.linalg.svd(full, full_matrices=False)
    cutoff = S[..., :1] * torch.finfo(full.dtype).eps * max(X.shape[-2:])
    kept = (cutoff < S).to(full.dtype)
    polar: Tensor = (U * kept[..., None, :]) @ Vh
    return polar.to(X.dtype)
