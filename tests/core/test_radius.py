"""The adaptive radius: the rule by itself, the probe of a step, and both in a loop of one's own."""

import pytest
import torch
from torch import Tensor, nn

from fismo_core import FISMO, AdaptiveRadius, RadiusControl, StepProbe, StepReport
from fismo_core.radius import LONGEST_CHANGE, TARGET
from tests.core.conftest import SmallNet


def _follow(control: RadiusControl, best: float, *, steps: int = 120, noise: float = 0.0) -> float:
    """The radius after steps of a problem whose loss, along a step of length r, falls by r - r^2 / (2 best)."""
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        if control.due(step, 1.0):
            r = control.scale
            kept = 1 - r / (2 * best) + noise * float(torch.randn((), generator=generator))
            control.update(step, StepReport(actual=r * kept, predicted=r, of_matrices=r, change=1e-6))
    return control.scale


@pytest.mark.parametrize("off", [1 / 30, 1 / 3, 1, 3, 10, 1000])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_radius_finds_its_way_from_far_off(off: float, noise: float) -> None:
    best = 1 / (2 * TARGET) / off  # a radius of 1 / off misses the target share of its promise
    assert 0.6 < _follow(RadiusControl(4), best, noise=noise) * off < 1.6


def test_gaps_between_measurements_double() -> None:
    control, measured = RadiusControl(8), []
    for step in range(40):
        if control.due(step, 1.0):
            measured.append(step)
            control.update(step, StepReport(0.8, 1.0, 1.0, 1e-6))
    assert measured == [0, 1, 3, 7, 15, 23, 31, 39]


@pytest.mark.parametrize("actual", [float("nan"), float("-inf"), -3.0])
def test_a_loss_that_rises_or_is_not_finite_shrinks_the_radius(actual: float) -> None:
    control = RadiusControl(8)
    control.due(0, 1.0)
    control.update(0, StepReport(actual, 1.0, 1.0, 0.01))
    assert control.scale == 0.25


@pytest.mark.parametrize("report", [StepReport(0.0, 0.0, 0.0, 0.0), StepReport(1.0, 1.0, 0.0, 0.0)])
def test_no_step_of_the_matrices_is_no_news(report: StepReport) -> None:
    control = RadiusControl(8)
    control.due(0, 1.0)
    control.update(0, report)
    assert control.scale == 1.0
    assert control.due(1, 1.0)


def test_small_steps_of_the_schedule_are_no_reason_to_grow() -> None:
    control = RadiusControl(1)
    for step in range(20):  # nine tenths of the target are kept at a tenth of the peak
        assert control.due(step, 0.1)
        control.update(step, StepReport(1 - TARGET / 10, 1.0, 1.0, 0.001))
    assert control.scale == pytest.approx(1.0)
    assert control.due(20, 1.0)
    assert not control.due(20, 0.4)  # the schedule falls
    assert control.due(20, 0.45)  # it rises


@pytest.mark.parametrize("start", [1e-5, 0.001, 4.0])
@pytest.mark.parametrize("kept", [1.1, 1.0])
def test_where_every_promise_is_kept_a_step_changes_the_matrices_by_the_cap(start: float, kept: float) -> None:
    """As on the plateau of many networks at the start: the loss has nothing to say on how long a step may be."""
    control = RadiusControl(4)
    for step in range(80):
        share = min(1, (step + 1) / 40)
        if control.due(step, share):
            control.update(step, StepReport(kept, 1.0, 1.0, start * control.scale * share))
    assert start * control.scale == pytest.approx(LONGEST_CHANGE, rel=1e-6)


def test_what_the_other_parameters_miss_does_not_hold_the_radius_back() -> None:
    """Embeddings and norms keep 0.65 of their promise. The matrices promise a thousandth of it, and keep that."""
    control = RadiusControl(4)
    for step in range(40):
        if control.due(step, 1.0):
            r = control.scale / 1000
            control.update(step, StepReport(0.65 + 0.9 * r, 1 + r, r, r / 100))
    assert control.scale > 100


def test_a_probe_sees_promise_and_change_of_what_was_stepped() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    first, second = model.parameters()
    before = second.detach().clone()
    probe = StepProbe(model, [first, second])
    first.grad, second.grad = torch.full((2, 2), torch.inf), torch.ones(2, 2)  # the first one is skipped for it
    probe.take_gradients()
    with torch.no_grad():
        second -= 0.5
    report = probe.report(torch.tensor(3.0), torch.tensor(1.5), {second})
    assert (report.actual, report.predicted, report.of_matrices) == pytest.approx((1.5, 2.0, 2.0))
    assert report.change == pytest.approx(float(1.0 / before.norm()))
    assert probe.report(torch.tensor(3.0), torch.tensor(1.5), {first}).of_matrices == 0.0


def test_the_loss_is_seen_again_with_the_same_dropout_and_nothing_else_is_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))
    x = torch.randn(16, 6)
    probe = StepProbe(model, list(model.parameters()))
    once = model(x).square().mean()
    averages, generator = model[1].running_mean.clone(), torch.get_rng_state()
    assert torch.equal(probe.loss_again(lambda: model(x).square().mean()), once.detach())
    assert torch.equal(model[1].running_mean, averages)
    assert torch.equal(torch.get_rng_state(), generator)


def _batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        x = torch.randn(32, 2, 4, 4, generator=generator)
        batches.append((x, (2 * x.mean((2, 3))).argmax(1)))
    return batches


def test_in_a_loop_of_ones_own_one_radius_is_found_from_far_off() -> None:
    ends = []
    for lr in (0.002, 0.05, 2.0):
        torch.manual_seed(3)
        model = SmallNet()
        optimizer = FISMO(model, lr=lr, compute_dtype="float32")
        radius = AdaptiveRadius(optimizer, model, every=4)
        for x, y in _batches(100):
            loss = radius.step(lambda x=x, y=y, model=model: nn.functional.cross_entropy(model(x), y))
            assert loss.isfinite()
        ends.append(lr * radius.control.scale)
        assert optimizer.param_groups[0]["radius_scale"] == radius.control.scale
    assert max(ends) < 3 * min(ends)


def test_it_goes_on_from_a_state() -> None:
    ends = []
    for cut in (False, True):
        torch.manual_seed(3)
        model = SmallNet()
        optimizer = FISMO(model, lr=0.5, compute_dtype="float32")
        radius = AdaptiveRadius(optimizer, model, every=4)
        for number, (x, y) in enumerate(_batches(20)):
            if cut and number == 11:
                saved, states = radius.state_dict(), optimizer.state_dict()
                optimizer = FISMO(model, lr=0.1, compute_dtype="float32")
                optimizer.load_state_dict(states)
                radius = AdaptiveRadius(optimizer, model, every=4)
                radius.load_state_dict(saved)
            radius.step(lambda x=x, y=y, model=model: nn.functional.cross_entropy(model(x), y))
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
