"""Signal, noise and their metric, against sampling and formulas written out."""

import pytest
import torch
from torch import nn

from fismo_core import FISMO, FisherMetric, NoiseMeter, fisher_square_norms, signal_and_noise, split_parameters


def test_signal_and_noise_are_unbiased():
    """Samples' gradients of a known mean and covariance: means over many batches are within four standard errors."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20, generator=generator, dtype=torch.float64)
    root = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    batches, batch_size = 4000, 12
    for pieces in (2, 3, 12):
        noise = torch.randn(batches, batch_size, 20, generator=generator, dtype=torch.float64)
        samples = true + noise @ root.T
        by_piece = samples.view(batches, pieces, -1, 20).mean(dim=2)
        piece = by_piece.square().sum(-1).mean(dim=1)
        whole = by_piece.mean(dim=1).square().sum(-1)
        found = signal_and_noise(piece, whole, pieces=pieces, batch_size=batch_size)
        for estimate, expected in zip(found, (true.square().sum(), (root @ root.T).trace()), strict=True):
            error = estimate.std() / batches**0.5
            assert (estimate.mean() - expected).abs() < 4 * error
            assert error < 0.05 * expected  # else the test would say nothing


def test_norms_in_the_fisher_metric_equal_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Conv1d(5, 4, 3), nn.Linear(7, 9), nn.LayerNorm(9)).double()
    optimizer = FISMO(split_parameters(model), metric=FisherMetric(roots="eigh", statistics="both"))
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    gradients = {parameter: torch.randn_like(parameter) for parameter in model.parameters() if parameter.ndim > 1}
    left_out = next(p for p in gradients if p.shape == (9, 7))
    del gradients[left_out]
    before = [p.clone() for p in model.parameters()]
    found = fisher_square_norms(optimizer, gradients)
    state, group = optimizer.state_dict()["state"], optimizer.state_dict()["param_groups"][0]
    numbers = dict(zip(optimizer.param_groups[0]["params"], group["params"], strict=True))
    treated = {p for p in gradients if p in numbers}
    assert found.keys() == treated
    assert len(treated) == 2
    for parameter in treated:
        entry = state[numbers[parameter]]
        G = gradients[parameter].flatten(1)
        for letter, of_rows in (("P", True), ("Q", False)):
            F = entry[f"{letter}_inverse_sqrt.0"]
            F = F if F.ndim == 2 else F.diag()
            G = F @ G if of_rows else G @ F
        torch.testing.assert_close(found[parameter], G.square().sum(), rtol=1e-10, atol=0)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_without_factors_the_metric_is_euclidean():
    weight = nn.Parameter(torch.randn(3, 4))
    optimizer = FISMO([weight], metric=FisherMetric(power=0.0))
    G = torch.randn(3, 4)
    torch.testing.assert_close(fisher_square_norms(optimizer, {weight: G})[weight], G.square().sum())


def test_the_meter_in_a_loop_of_ones_own():
    """Pieces of two batches against their gradients written out, averaged with a decay of 0.8."""
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.0)
    meter = NoiseMeter(optimizer)
    expected, found = [], None
    for _ in range(2):
        x = torch.randn(12, 6)
        losses = [model(part).square().sum(1).mean() for part in x.chunk(4)]
        each = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
        flat = torch.stack([torch.cat([g.flatten() for g in gradients]) for gradients in each]).double()
        piece, whole = flat.square().sum(1).mean(), flat.mean(0).square().sum()
        expected.append(torch.stack([(4 * whole - piece) / 3, (piece - whole) * 12 / 3]))
        optimizer.zero_grad()
        for part in x.chunk(4):
            with meter.piece(4):
                (model(part).square().sum(1).mean() / 4).backward()
        found = meter.finish(12, pieces=4)
    assert found is not None
    average = (0.8 * 0.2 * expected[0] + 0.2 * expected[1]) / (0.8 * 0.2 + 0.2)
    assert [found.signal, found.noise] == pytest.approx(average.tolist(), rel=1e-5)
    assert found.by_parameter.keys() == {"weight", "bias"}
    assert found.scale == pytest.approx(found.noise / found.signal)
    again = NoiseMeter(optimizer)
    again.load_state_dict(meter.state_dict())
    assert again.finish(12, pieces=4) is None  # nothing was measured
