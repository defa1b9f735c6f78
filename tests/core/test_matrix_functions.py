"""Polar factors and inverse powers against float64 SVD and exact spectra."""

import math

import pytest
import torch

from fismo_core import matrix_functions
from fismo_core.matrix_functions import full_precision_matmul, inverse_powers, normalize_scale, polar_factor


def _with_spectrum(m: int, n: int, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with the given singular values, and its exact polar factor."""
    U, _ = torch.linalg.qr(torch.randn(m, len(values), dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64))
    return (U * values) @ V.mT, U @ V.mT


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (1, 7), (7, 1), (1, 1)])
def test_exact_polar_factor_matches_construction(shape: tuple[int, int]) -> None:
    X, expected = _with_spectrum(*shape, torch.linspace(0.1, 1, min(shape), dtype=torch.float64))
    torch.testing.assert_close(polar_factor(X[None], method="exact")[0], expected, rtol=0, atol=1e-12)


def test_exact_polar_factor_of_a_rank_deficient_matrix_is_a_partial_isometry() -> None:
    X, expected = _with_spectrum(6, 8, torch.tensor([1.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(polar_factor(X[None], method="exact")[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
@pytest.mark.parametrize(
    ("method", "steps", "low", "high"),
    # Bands that the polynomials' own iteration on scalars gives for inputs in [0.02, 1] after the Frobenius scaling.
    [("quintic", 5, 0.6, 1.21), ("polar-express", 6, 0.98, 1.02)],
)
def test_iterations_bring_singular_values_near_one_and_keep_directions(
    shape: tuple[int, int], method: str, steps: int, low: float, high: float
) -> None:
    X, expected = _with_spectrum(*shape, torch.logspace(-1, 0, min(shape), dtype=torch.float64))
    Z = polar_factor(X[None], method=method, steps=steps)[0]
    values = torch.linalg.svdvals(Z)
    assert values.min() > low
    assert values.max() < high
    aligned = Z @ expected.mT if shape[0] <= shape[1] else expected.mT @ Z
    torch.testing.assert_close(aligned, aligned.mT, rtol=0, atol=1e-10)  # same singular vectors: product is symmetric


@pytest.mark.parametrize("steps", [1, 3, 5, 8, 10])
def test_polynomials_act_on_singular_values_as_on_numbers(steps: int) -> None:
    values = torch.logspace(-2, 0, 6, dtype=torch.float64)
    X, _ = _with_spectrum(6, 6, values)
    for method in ("quintic", "polar-express"):
        x = values / values.norm()
        if method == "polar-express":
            x = x / matrix_functions.POLAR_EXPRESS_SAFETY
            table = matrix_functions._polar_express_schedule(steps)
        else:
            table = [matrix_functions.QUINTIC] * steps
        assert len(table) == steps
        for a, b, c in table:
            x = a * x + b * x**3 + c * x**5
        expected = x.abs().sort(descending=True).values
        got = torch.linalg.svdvals(polar_factor(X[None], method=method, steps=steps)[0])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", matrix_functions.POLAR_METHODS)
def test_zero_matrix_has_zero_polar_factor(method: str) -> None:
    assert torch.equal(polar_factor(torch.zeros(2, 3, 4), method=method), torch.zeros(2, 3, 4))


def test_unknown_polar_method_is_refused() -> None:
    with pytest.raises(ValueError, match="quintic, polar-express, exact"):
        polar_factor(torch.ones(1, 2, 2), method="svd")


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("power", [0.125, 0.25, 0.5])
def test_inverse_powers_match_the_spectrum(condition: float, power: float) -> None:
    d = 24
    V, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    values = torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
    (root,), good = inverse_powers(((V * values) @ V.mT).float()[None], [power])
    expected = (V * values**-power) @ V.mT
    assert good.all()
    # float32: an eigenvalue near the smallest is known to eps * largest, which the power turns into this error.
    torch.testing.assert_close(root[0].double(), expected, rtol=0, atol=1e-5 * condition ** (1 + power) + 1e-5)
    assert torch.equal(root, root.mT)


def test_inverse_powers_of_diagonals() -> None:
    A = torch.rand(3, 5) + 0.1
    (root,), good = inverse_powers(A, [0.25])
    assert good.all()
    torch.testing.assert_close(root, A**-0.25)


def test_a_bad_matrix_is_reported_and_leaves_its_neighbours_alone() -> None:
    A = torch.eye(4).repeat(3, 1, 1) * 4
    A[1, 0, 0] = torch.nan
    (root,), good = inverse_powers(A, [0.5])
    assert good.tolist() == [True, False, True]
    torch.testing.assert_close(root, torch.stack([torch.eye(4) / 2, torch.eye(4), torch.eye(4) / 2]))


def test_a_failing_float32_decomposition_is_retried_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.linalg.eigh

    def fails_in_float32(A: torch.Tensor) -> object:
        if A.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return real(A)

    monkeypatch.setattr(torch.linalg, "eigh", fails_in_float32)
    (root,), good = inverse_powers(torch.eye(3)[None] * 9, [0.5])
    assert good.all()
    torch.testing.assert_close(root[0], torch.eye(3) / 3)


def test_singular_matrix_gives_a_finite_root() -> None:
    (root,), good = inverse_powers(torch.ones(1, 6, 6), [0.25])
    assert good.all()
    assert root.isfinite().all()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_normalize_scale_survives_extreme_scales(scale: float) -> None:
    X = torch.rand(1, 3, 4) + 0.1
    torch.testing.assert_close(normalize_scale(X * scale), normalize_scale(X))
    assert not normalize_scale(torch.zeros(1, 2, 2)).any()


def test_full_precision_matmul_is_local() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision_matmul():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
