"""Polar factors against float64 SVDs and against the polynomials' own action on numbers."""

from typing import get_args

import numpy as np
import pytest
import torch

from fismo_core import polar
from fismo_core.config import PolarMethod
from fismo_core.polar import polar_factor
from fismo_core.precision import full_precision_matmul, normalize_scale

SCHEDULES = {
    "composite": {2},
    "quintic": {1, 3, 5, 8},
    "polar-express": {1, 3, 5, 8, 10},
}


def with_spectrum(m: int, n: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with the given singular values, and its exact polar factor."""
    U, _ = torch.linalg.qr(torch.randn(m, len(values), dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64))
    return (U * values) @ V.mT, U @ V.mT


def on_numbers(x: np.ndarray, method: str, steps: int) -> np.ndarray:
    """What the method does to singular values x whose squares add up to one."""
    if method == "polar-express":
        schedule = polar._polar_express_schedule(steps)
        x = x / polar.POLAR_EXPRESS_SAFETY
    else:
        schedule = [polar.QUINTIC] * steps if method == "quintic" else polar.COMPOSITE
    assert len(schedule) == steps
    for coefficients in schedule:
        x = sum(a * x ** (2 * k + 1) for k, a in enumerate(coefficients))
    return x


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (1, 7), (7, 1), (1, 1)])
def test_exact_polar_factor_matches_construction(shape: tuple[int, int]) -> None:
    X, expected = with_spectrum(*shape, torch.linspace(0.1, 1, min(shape), dtype=torch.float64))
    torch.testing.assert_close(polar_factor(X[None], method="exact", steps=1)[0], expected, rtol=0, atol=1e-12)


def test_exact_polar_factor_of_a_rank_deficient_matrix_is_a_partial_isometry() -> None:
    X, expected = with_spectrum(6, 8, torch.tensor([1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(polar_factor(X[None], method="exact", steps=1)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 6), (6, 24), (24, 6), (6, 7)])
@pytest.mark.parametrize(("method", "steps"), [(m, s) for m, steps in SCHEDULES.items() for s in sorted(steps)])
def test_polynomials_act_on_singular_values_as_on_numbers(shape: tuple[int, int], method: str, steps: int) -> None:
    """Also where they are formed on the Gram matrix, which wide and tall matrices are."""
    values = torch.logspace(-2, 0, 6, dtype=torch.float64)
    X, _ = with_spectrum(*shape, values)
    Z = polar_factor(X[None], method=method, steps=steps)[0]
    expected = on_numbers((values / values.norm()).numpy(), method, steps)
    # Z must have these parts along the exact singular directions, and nothing else.
    U, _, Vt = np.linalg.svd(X.numpy(), full_matrices=False)
    along = U.T @ Z.numpy() @ Vt.T
    np.testing.assert_allclose(along, np.diag(expected[::-1]), rtol=0, atol=2e-8)
    assert np.abs(Z.numpy() - U @ along @ Vt).max() < 1e-8


@pytest.mark.parametrize(
    ("method", "steps", "smallest", "low", "high"),
    [
        ("composite", 2, 0.0270, 0.699, 1.301),
        ("quintic", 3, 0.0200, 0.674, 1.210),
        ("quintic", 5, 0.0020, 0.676, 1.210),
        ("polar-express", 6, 0.0010, 0.950, 1.050),
    ],
)
def test_bands_of_the_polynomials(method: str, steps: int, smallest: float, low: float, high: float) -> None:
    """The bands that docs/algorithm.md states, over all singular values from the smallest to one."""
    values = on_numbers(np.geomspace(smallest, 1, 20_001), method, steps)
    assert values.min() > low
    assert values.max() < high


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (64, 256), (4096, 16), (1, 1), (1, 9), (200, 1)])
@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 2e-4), (torch.bfloat16, 0.06)], ids=str
)
@pytest.mark.parametrize(("method", "steps"), [("composite", 2), ("quintic", 3), ("quintic", 5)])
def test_rounding_stays_within_the_documented_bound(
    shape: tuple[int, int], condition: float, dtype: torch.dtype, bound: float, method: str, steps: int
) -> None:
    """Spectral norm of the error against the polynomials applied exactly, a step: the bounds of docs/algorithm.md."""
    values = torch.from_numpy(np.geomspace(1, 1 / condition, min(shape)))
    X, _ = with_spectrum(*shape, values)
    U, S, Vt = np.linalg.svd(X.numpy(), full_matrices=False)
    exact = (U * on_numbers(S / np.linalg.norm(S), method, steps)) @ Vt
    Z = polar_factor(X.to(dtype)[None], method=method, steps=steps)[0]
    assert np.linalg.norm(Z.double().numpy() - exact, ord=2) < bound * steps


@pytest.mark.parametrize("shape", [(12, 12), (12, 40), (40, 12)])
@pytest.mark.parametrize("rank", [1, 2, 6, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_rank(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    """Directions that X does not have stay out of the result."""
    X, expected = with_spectrum(*shape, torch.ones(rank, dtype=torch.float64))
    Z = polar_factor(X.to(dtype)[None], method="composite", steps=2)[0].double()
    size = float(on_numbers(np.array([rank**-0.5]), "composite", 2)[0])
    assert (Z - size * expected).norm() < (0.25 if dtype == torch.bfloat16 else 1e-4) * rank**0.5


@pytest.mark.parametrize("method", get_args(PolarMethod))
def test_zero_matrix_has_zero_polar_factor(method: str) -> None:
    assert torch.equal(polar_factor(torch.zeros(2, 3, 8), method=method, steps=2), torch.zeros(2, 3, 8))


def test_unknown_polar_method_is_refused() -> None:
    with pytest.raises(ValueError, match="composite, quintic, polar-express, exact"):
        polar_factor(torch.ones(1, 2, 2), method="svd", steps=3)
    with pytest.raises(ValueError, match="2 steps, not 3"):
        polar_factor(torch.ones(1, 2, 2), method="composite", steps=3)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_normalize_scale_survives_extreme_scales(scale: float) -> None:
    X = torch.rand(1, 3, 4) + 0.1
    torch.testing.assert_close(normalize_scale(X * scale), normalize_scale(X))
    assert not normalize_scale(torch.zeros(1, 2, 2)).any()
    assert normalize_scale(X * scale, torch.bfloat16).dtype == torch.bfloat16


def test_full_precision_matmul_is_local() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision_matmul():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
