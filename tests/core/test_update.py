"""The arithmetic of a step against float64 references written from the formulas, and the properties it must have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fismo_core import DENSE, FISMO, FisherMetric, Polar
from fismo_core.arithmetic import arithmetic_of
from fismo_core.config import Economy
from fismo_core.update import fismo_update, initial_state
from tests.core import reference
from tests.core.conftest import replayed_gradients

EXACT, MUON = Polar("exact"), FisherMetric(power=0.0)
SHAPES = [(6, 6), (4, 10), (10, 4), (1, 5), (5, 1)]


def displacement(gradients: list[Tensor], make: object, dtype: torch.dtype = torch.float64) -> Tensor:
    W = nn.Parameter(torch.zeros(gradients[0].shape, dtype=dtype))
    optimizer = make([W])  # type: ignore[operator]
    for G in gradients:
        W.grad = G.to(dtype)
        optimizer.step()
    return W.detach()


@pytest.mark.parametrize("shape", SHAPES)
def test_paper_form_equals_the_reference(shape: tuple[int, int]) -> None:
    gradients = replayed_gradients(shape, 12)
    got = displacement(
        gradients,
        lambda p: FISMO.paper(p, 0.1, momentum=0.9, decay=0.9, damping=1e-2, polar=EXACT),
    )
    expected = reference.paper([G.numpy() for G in gradients], 0.1, 0.9, 0.9, 1e-2)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_paper_form_in_float32_stays_near_the_reference(shape: tuple[int, int]) -> None:
    gradients = replayed_gradients(shape, 12)
    got = displacement(
        gradients,
        lambda p: FISMO.paper(p, 0.1, momentum=0.9, decay=0.9, damping=1e-2, polar=EXACT, compute_dtype="float32"),
        torch.float32,
    )
    expected = reference.paper([G.numpy() for G in gradients], 0.1, 0.9, 0.9, 1e-2)
    # float32 roots of factors with condition numbers near 1e2: relative 1e-3 of the largest entry.
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_form_equals_the_reference(shape: tuple[int, int]) -> None:
    gradients = replayed_gradients(shape, 12)
    got = displacement(gradients, lambda p: FISMO.of(p, replace(DENSE, lr=0.1)))
    expected = reference.default(
        [G.numpy() for G in gradients], 0.1, 0.85, 0.95, 0.1, 0.25, economy="none", interval=5, quintics=3
    )
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [*SHAPES, (6, 9), (6, 14), (14, 6)])
@pytest.mark.parametrize(
    ("economy", "interval"), [("none", None), ("none", 1), ("some", None), ("some", 3), ("most", None), ("most", 3)]
)
def test_default_form_equals_the_reference(shape: tuple[int, int], economy: Economy, interval: int | None) -> None:
    """With exact roots to the last digits, with polynomial ones within their error."""
    gradients = replayed_gradients(shape, 13)
    usual = {"none": 5, "some": 5, "most": 10}
    expected = reference.default(
        [G.numpy() for G in gradients],
        *(0.1, 0.85, 0.95, 0.1, 0.25),
        economy=economy,
        interval=interval or usual[economy],
    )
    metric = FisherMetric(refresh_every=interval)
    exact = displacement(gradients, lambda p: FISMO(p, 0.1, economy=economy, metric=replace(metric, roots="eigh")))
    np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-8, atol=1e-9)
    default = displacement(gradients, lambda p: FISMO(p, 0.1, economy=economy, metric=metric))
    assert np.linalg.norm(default.numpy() - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_power_zero_equals_muon_in_float64(shape: tuple[int, int]) -> None:
    gradients = replayed_gradients(shape, 10)
    got = displacement(gradients, lambda p: FISMO(p, 0.1, metric=FisherMetric(power=0.0), polar=Polar("quintic", 5)))
    expected = reference.muon([G.numpy() for G in gradients], 0.1, 0.85, 5)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_power_zero_equals_torch_muon_within_bfloat16(shape: tuple[int, int]) -> None:
    gradients = replayed_gradients(shape, 8, torch.float32)
    got = displacement(
        gradients,
        lambda p: FISMO(
            p,
            0.1,
            momentum=0.95,
            metric=FisherMetric(power=0.0),
            polar=Polar("quintic", 5),
            compute_dtype="bfloat16",
        ),
        torch.float32,
    )
    expected = displacement(gradients, lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.0), torch.float32)
    exact = torch.from_numpy(reference.muon([G.double().numpy() for G in gradients], 0.1, 0.95, 5)).float()

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / exact.norm())

    # bfloat16 has 8 bits: torch's own Muon is one to three percent away from float64 here, and so are we.
    assert distance(expected, exact) < 0.03
    assert distance(got, exact) < 0.03
    assert distance(got, expected) < 0.05


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("space", ["raw", "whitened"])
def test_gradient_scale_does_not_matter_to_the_last_bit(power: float, space: str) -> None:
    gradients = replayed_gradients((8, 12), 7, torch.float32)

    def run(scale: float) -> Tensor:
        return displacement(
            [G * scale for G in gradients],
            lambda p: FISMO(p, 0.1, metric=FisherMetric(power=power, momentum_space=space), compute_dtype="float32"),
            torch.float32,
        )

    plain = run(1.0)
    assert torch.equal(plain, run(1024.0))
    torch.testing.assert_close(plain, run(1e-25), rtol=0, atol=1e-5)


def test_paper_form_does_depend_on_the_gradient_scale() -> None:
    """What the default form repairs: with tiny gradients the paper's form silently is Muon."""
    gradients = [G * 1e-6 for G in replayed_gradients((6, 8), 5)]
    got = displacement(gradients, lambda p: FISMO.paper(p, 0.1, momentum=0.9, polar=EXACT))
    expected = displacement(
        gradients,
        lambda p: FISMO(
            p, 0.1, momentum=0.9, nesterov=False, metric=FisherMetric(power=0.0), polar="exact", scale="none"
        ),
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("power", [0.25, 0.5])
@pytest.mark.parametrize("roots", ["polynomial", "eigh"])
def test_orthogonal_change_of_basis_rotates_the_update(power: float, roots: str) -> None:
    gradients = replayed_gradients((8, 12), 6, torch.float32)
    A, _ = torch.linalg.qr(torch.randn(8, 8))
    B, _ = torch.linalg.qr(torch.randn(12, 12))

    def make(p: list[nn.Parameter]) -> FISMO:
        return FISMO(p, 0.1, metric=FisherMetric(power=power, roots=roots), polar="exact", compute_dtype="float32")

    plain = displacement(gradients, make, torch.float32)
    rotated = displacement([A @ G @ B.mT for G in gradients], make, torch.float32)
    torch.testing.assert_close(rotated, A @ plain @ B.mT, rtol=0, atol=2e-4 * float(plain.abs().max()))


def test_step_minimises_over_the_trust_region() -> None:
    """D solves min -<U, D> over ||P^p D Q^p||_2 <= 1: no random point of the ball does better (paper, section 3)."""
    gradients = replayed_gradients((5, 7), 1)
    W = nn.Parameter(torch.zeros(5, 7, dtype=torch.float64))
    optimizer = FISMO.paper([W], 1.0, momentum=0.0, polar=EXACT, damping=1e-2)
    W.grad = gradients[0].clone()
    optimizer.step()
    state = optimizer.state_dict()["state"][0]
    P_root, Q_root = state["P_inverse_sqrt.0"], state["Q_inverse_sqrt.0"]
    D = -W.detach()
    metric = torch.linalg.inv(P_root) @ D @ torch.linalg.inv(Q_root)
    torch.testing.assert_close(torch.linalg.matrix_norm(metric, ord=2), torch.ones((), dtype=torch.float64))
    achieved = (gradients[0] * D).sum()
    for _ in range(100):
        other = torch.randn(5, 7, dtype=torch.float64)
        other = P_root @ (other / torch.linalg.matrix_norm(other, ord=2)) @ Q_root
        assert (gradients[0] * other).sum() <= achieved + 1e-9


def test_batched_matrices_do_not_influence_each_other() -> None:
    first, second = replayed_gradients((6, 9), 12)[:6], replayed_gradients((6, 9), 12)[6:]
    pair = [nn.Parameter(torch.zeros(6, 9, dtype=torch.float64)) for _ in range(2)]
    optimizer = FISMO(pair, 0.1)
    for G, H in zip(first, second, strict=True):
        pair[0].grad, pair[1].grad = G.clone(), H.clone()
        optimizer.step()
    torch.testing.assert_close(pair[0].detach(), displacement(first, lambda p: FISMO(p, 0.1)), rtol=0, atol=1e-12)
    torch.testing.assert_close(pair[1].detach(), displacement(second, lambda p: FISMO(p, 0.1)), rtol=0, atol=1e-12)


def test_a_long_side_has_a_diagonal_factor() -> None:
    """Longer than `max_ratio` times the other, or than `max_dim`; the state's shapes say so."""
    for shape, economy, options, dims in (
        ((8, 12), "some", {}, {"P": 2, "Q": 2}),
        ((8, 13), "some", {}, {"P": 2, "Q": 1}),
        ((13, 8), "most", {}, {"P": 1, "Q": 2}),
        ((13, 8), "none", {}, {"P": 2, "Q": 2}),
        ((8, 9), "none", {"max_dim": 8}, {"P": 2, "Q": 1}),
        ((8, 9), "none", {"max_ratio": 1}, {"P": 2, "Q": 1}),
    ):
        optimizer = FISMO([nn.Parameter(torch.zeros(shape))], economy=economy, metric=FisherMetric(**options))
        state = optimizer.state_dict()["state"][0]
        for letter, ndim in dims.items():
            for key in (letter, f"{letter}_root", f"{letter}_inverse_sqrt"):
                assert state[f"{key}.0"].ndim == ndim


def test_diagonal_and_dense_factors_of_diagonal_statistics_agree() -> None:
    one_hot = [torch.eye(4, dtype=torch.float64) * torch.rand(4, dtype=torch.float64) for _ in range(5)]
    dense = displacement(one_hot, lambda p: FISMO(p, 0.1, metric=FisherMetric(roots="eigh")))
    diagonal = displacement(one_hot, lambda p: FISMO(p, 0.1, metric=FisherMetric(roots="eigh", max_dim=3)))
    torch.testing.assert_close(dense, diagonal, rtol=0, atol=1e-12)


def test_grafting_and_scale_set_the_length() -> None:
    G = replayed_gradients((12, 3), 1)
    for scale, factor in (("none", 1.0), ("spectral", 2.0), ("rms", 0.2 * 12**0.5)):
        D = displacement(G, lambda p, s=scale: FISMO(p, 0.1, polar="exact", scale=s))
        # The polar factor of a full-rank 12 x 3 matrix has norm sqrt(3).
        torch.testing.assert_close(torch.linalg.matrix_norm(D), torch.tensor(0.1 * 3**0.5 * factor).double())


def test_zero_gradient_gives_a_zero_update() -> None:
    zeros = [torch.zeros(4, 6, dtype=torch.float64)] * 3
    for make in (lambda p: FISMO(p, 0.1), lambda p: FISMO.paper(p, 0.1), lambda p: FISMO(p, 0.1, polar="exact")):
        assert not displacement(zeros, make).any()


def test_a_zero_gradient_is_not_folded_into_the_factors() -> None:
    gradients = replayed_gradients((4, 6), 2)
    W = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = FISMO([W], 0.1)
    W.grad = gradients[0]
    optimizer.step()
    before = optimizer.state_dict()["state"][0]
    W.grad = torch.zeros_like(W)
    optimizer.step()
    after = optimizer.state_dict()["state"][0]
    for key in ("P.0", "Q.0"):
        assert torch.equal(before[key], after[key])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_touches_nothing_and_is_counted(bad: float) -> None:
    gradients = replayed_gradients((4, 6), 6)
    # A skipped step counts as one for the clocks of statistics and roots, which are made not to matter here.
    metric = FisherMetric(refresh_every=1, statistics="both")
    clean = displacement(gradients, lambda p: FISMO(p, 0.1, metric=metric))
    W = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = FISMO([W], 0.1, metric=metric)
    for number, G in enumerate(gradients):
        W.grad = G.clone()
        optimizer.step()
        if number == 2:
            W.grad[1, 1] = bad
            optimizer.step()
    assert torch.equal(W.detach(), clean)
    assert optimizer.skipped_gradients() == 1


def test_factors_that_keep_failing_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(A: Tensor, powers: list[float]) -> tuple[list[Tensor], Tensor]:
        return [torch.zeros_like(A) for _ in powers], torch.zeros(A.shape[0], dtype=torch.bool)

    W = nn.Parameter(torch.zeros(3, 3))
    optimizer = FISMO([W], 0.1, metric=FisherMetric(refresh_every=1, roots="eigh"))
    monkeypatch.setattr("fismo_core.update.inverse_powers", broken)
    for _ in range(9):
        W.grad = torch.randn(3, 3)
        optimizer.step()
    with pytest.raises(RuntimeError, match="10 refreshes on end"):
        optimizer.step()
    assert optimizer.state_dict()["state"][0]["failures.0"] == 10
    assert W.isfinite().all()  # the identity roots of the start stayed in use


@pytest.mark.parametrize("side", [0, 1])
def test_a_failure_of_either_factor_counts_and_a_success_clears(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    from fismo_core import update

    real, calls, broken = update.inverse_powers, [], [True]

    def sometimes(A: Tensor, powers: list[float]) -> tuple[list[Tensor], Tensor]:
        roots, good = real(A, powers)
        calls.append(A.shape)
        return roots, good & ~torch.tensor(broken[0] and len(calls) % 2 != side)

    W = nn.Parameter(torch.zeros(3, 4))
    optimizer = FISMO([W], 0.1, metric=FisherMetric(refresh_every=1, roots="eigh"))
    monkeypatch.setattr(update, "inverse_powers", sometimes)
    counted = []
    for step in range(4):
        broken[0] = step < 3
        W.grad = torch.randn(3, 4)
        optimizer.step()
        counted.append(int(optimizer.state_dict()["state"][0]["failures.0"]))
    assert counted == [1, 2, 3, 0]


@pytest.mark.parametrize("space", ["raw", "whitened"])
@pytest.mark.parametrize("scale", [1e18, 1e25, 3e37])
def test_huge_finite_gradients_leave_no_scar(space: str, scale: float) -> None:
    """The paper's statistics square the gradient and overflow float32; the factors and the momentum must not."""
    for make in (FISMO.paper, FISMO):
        options = {"metric": FisherMetric(momentum_space=space)} if make is FISMO else {}
        W = nn.Parameter(torch.zeros(4, 5))
        optimizer = make([W], 0.1, **options)
        for step in range(8):
            W.grad = torch.randn(4, 5) * (scale if step == 3 else 1.0)
            optimizer.step()
            assert W.isfinite().all()
        assert all(torch.as_tensor(value).isfinite().all() for value in optimizer.state_dict()["state"][0].values())


@pytest.mark.parametrize("economy", ["none", "some"])
@pytest.mark.parametrize("shape", [(6, 6), (6, 30), (30, 6)])
@pytest.mark.parametrize("refresh", [False, True])
def test_a_step_never_waits_for_the_device(shape: tuple[int, int], refresh: bool, economy: Economy) -> None:
    """Fake tensors have no values: whatever would read one back to the host raises. New roots need none either."""
    displacement([torch.ones(shape)], lambda p: FISMO(p, economy=economy))  # finds polynomials, on the host, once
    with FakeTensorMode():
        group = FISMO([nn.Parameter(torch.zeros(shape))], economy=economy).param_groups[0]
        options = arithmetic_of(group, torch.float32, torch.device("cpu"))
        state = initial_state(3, *shape, options, torch.float32, torch.device("cpu"))
        mask = torch.tensor([True, False, True])
        step = fismo_update(
            torch.randn(3, *shape), state, options, active=mask, refresh=refresh and mask, sides=(True, mask)
        )
        assert step.direction.shape == (3, *shape)


def test_no_eigenvalues_or_svd_in_the_default_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("called")

    for name in ("eigh", "eigvalsh", "eig", "svd", "svdvals", "qr"):
        monkeypatch.setattr(torch.linalg, name, forbidden)
    gradients = replayed_gradients((6, 20), 25, torch.float32)
    assert displacement(gradients, FISMO, torch.float32).isfinite().all()
