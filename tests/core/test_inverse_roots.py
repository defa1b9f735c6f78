"""Inverse powers of symmetric matrices against exact spectra in float64."""

import math

import pytest
import torch
from torch import Tensor

from fismo_core.config import ROOT_POWERS
from fismo_core.inverse_roots import BFLOAT16_SHIFT, inverse_powers, polynomial_error, polynomial_powers

SPECTRA = {
    "flat": lambda d: torch.rand(d, dtype=torch.float64),
    "1/k": lambda d: torch.arange(1, d + 1, dtype=torch.float64) ** -1,
    "1/k^2": lambda d: torch.arange(1, d + 1, dtype=torch.float64) ** -2,
    "rank one": lambda d: torch.eye(d, dtype=torch.float64)[0],
}


def damped_factor(d: int, spectrum: str, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """A damped Fisher factor of trace d, with its eigenvalues and eigenvectors; `rank one` has the worst condition."""
    values = SPECTRA[spectrum](d)
    values = (values * d / values.sum() + damping) / (1 + damping)
    V, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    return (V * values) @ V.mT, values, V


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


@pytest.mark.parametrize("d", [1, 2, 16, 96, 384])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("power", ROOT_POWERS)
@pytest.mark.parametrize("damping", [1e-2, 0.1, 1.0])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 5e-4), (torch.float32, 5e-3)], ids=str)
def test_polynomial_roots_keep_the_documented_bound(
    d: int, spectrum: str, power: float, damping: float, dtype: torch.dtype, rounding: float
) -> None:
    """Every eigenvalue of A^-p is right to the polynomial's error, up to the worst condition number (d + mu) / mu."""
    condition = (d + damping) / damping
    error = polynomial_error(power, condition)
    assert error <= 0.05
    A, values, V = damped_factor(d, spectrum, damping)
    root, inverse_sqrt, good = polynomial_powers(A[None].to(dtype), power, condition)
    assert good.all()
    assert root.dtype == inverse_sqrt.dtype == dtype
    for got, p, tolerance in ((root, power, error), (inverse_sqrt, 0.5, (1 + error) ** (0.5 / power) - 1)):
        # A^(p/2) X A^(p/2) is the identity for the exact root; its eigenvalues are the relative errors.
        half = (V * values ** (p / 2)) @ V.mT
        relative = torch.linalg.eigvalsh(half @ (got[0].double() + got[0].double().mT) @ half) / 2
        assert (relative - 1).abs().max() < tolerance + rounding


@pytest.mark.parametrize("d", [2, 16, 96, 384])
@pytest.mark.parametrize(("spectrum", "bound"), [("flat", 0.06), ("1/k", 0.15), ("1/k^2", 0.25), ("rank one", 0.3)])
@pytest.mark.parametrize("damping", [0.1, 1.0])
def test_polynomial_roots_in_bfloat16_keep_the_documented_bound(
    d: int, spectrum: str, bound: float, damping: float
) -> None:
    """Spectral norm of the error of A^-1/4 over that of A^-1/4 itself, against the spectrum shifted as documented."""
    A, values, V = damped_factor(d, spectrum, damping)
    root, inverse_sqrt, good = polynomial_powers(A[None].bfloat16(), 0.25, (d + damping) / damping)
    assert good.all()
    values = values + BFLOAT16_SHIFT * values.square().square().sum() ** 0.25
    for got, p, allowed in ((root, 0.25, bound), (inverse_sqrt, 0.5, 2 * bound)):
        exact = (V * values**-p) @ V.mT
        error = torch.linalg.matrix_norm(got[0].double() - exact, ord=2) / torch.linalg.matrix_norm(exact, ord=2)
        assert error < allowed


def test_polynomial_roots_of_a_batch_do_not_influence_each_other() -> None:
    first, second = damped_factor(12, "1/k", 0.1)[0], damped_factor(12, "flat", 0.1)[0] * 1e6
    together = polynomial_powers(torch.stack([first, second]), 0.25, 121.0)
    for i, A in enumerate((first, second)):
        for got, alone in zip(together, polynomial_powers(A[None], 0.25, 121.0), strict=True):
            torch.testing.assert_close(got[i : i + 1], alone, rtol=1e-12, atol=0)


def test_a_bad_matrix_is_reported_and_leaves_its_neighbours_alone() -> None:
    A = torch.eye(4).repeat(3, 1, 1) * 4
    A[1, 0, 0] = torch.nan
    (root,), good = inverse_powers(A, [0.5])
    assert good.tolist() == [True, False, True]
    torch.testing.assert_close(root, torch.stack([torch.eye(4) / 2, torch.eye(4), torch.eye(4) / 2]))
    root, inverse_sqrt, good = polynomial_powers(A, 0.5, 10.0)
    assert good.tolist() == [True, False, True]
    torch.testing.assert_close(inverse_sqrt[::2], torch.eye(4).repeat(2, 1, 1) / 2, rtol=0.05, atol=1e-6)


def test_inverse_powers_of_diagonals() -> None:
    A = torch.rand(3, 5) + 0.1
    (root,), good = inverse_powers(A, [0.25])
    assert good.all()
    torch.testing.assert_close(root, A**-0.25)


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


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12])
def test_polynomial_roots_of_zero_and_tiny_matrices_are_finite(scale: float) -> None:
    for A in (torch.zeros(1, 3, 3), scale * torch.ones(1, 3, 3)):
        root, inverse_sqrt, good = polynomial_powers(A, 0.25, 100.0)
        assert root.isfinite().all()
        assert inverse_sqrt.isfinite().all()
        assert good.shape == (1,)
