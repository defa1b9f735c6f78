"""MARS against its formula written out, in front of several optimizers."""

import copy

import pytest
import torch
from torch import nn

from fismo_core import FISMO, Mars


def reference(gradients, beta, gamma):
    """c_t of the approximate form, clipped to norm 1."""
    last = None
    for g in gradients:
        c = g if last is None else g + gamma * beta / (1 - beta) * (g - last)
        yield c / max(1.0, float(c.norm()))
        last = g


@pytest.mark.parametrize("size", [0.01, 10.0], ids=["small", "clipped"])
@pytest.mark.parametrize("make", ["sgd", "adam", "fismo"])
def test_equals_the_formula(size, make):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    twin = nn.Parameter(weight.detach().clone())
    create = {
        "sgd": lambda p: torch.optim.SGD([p], lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.99)),
        "fismo": lambda p: FISMO([p], momentum=0.9),
    }[make]
    corrected, plain = create(weight), create(twin)
    Mars(corrected, gamma=0.05)
    gradients = [size * torch.randn(4, 6, dtype=torch.float64) for _ in range(6)]
    for g, c in zip(gradients, reference(gradients, 0.9, 0.05), strict=True):
        weight.grad, twin.grad = g.clone(), c
        corrected.step()
        plain.step()
        assert torch.equal(weight.grad, g)
        torch.testing.assert_close(weight, twin, rtol=1e-9, atol=1e-12)


def test_the_last_gradients_survive_a_checkpoint():
    def fresh():
        weight = nn.Parameter(torch.ones(2, 3))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        return weight, optimizer, Mars(optimizer)

    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, 3, generator=generator) for _ in range(4)]
    weight, optimizer, mars = fresh()
    for g in gradients[:2]:
        weight.grad = g.clone()
        optimizer.step()
    assert mars.state_bytes() == 2 * 3 * 4
    other, other_optimizer, other_mars = fresh()
    other.data.copy_(weight.data)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the momentum
    other_mars.load_state_dict(mars.state_dict())
    for g in gradients[2:]:
        for p, o in ((weight, optimizer), (other, other_optimizer)):
            p.grad = g.clone()
            o.step()
    assert torch.equal(weight, other)
    with pytest.raises(ValueError, match="another parameter"):
        Mars(torch.optim.SGD([nn.Parameter(torch.ones(5))], momentum=0.9)).load_state_dict(mars.state_dict())


def test_a_gradient_that_is_not_finite_corrects_nothing_after_it():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = FISMO([weight])
    Mars(optimizer)
    twin = nn.Parameter(torch.zeros(2, 2))
    plain = FISMO([twin])
    for g in (torch.eye(2), torch.full((2, 2), torch.inf), torch.tensor([[0.1, 0.2], [0.3, -0.1]])):
        weight.grad, twin.grad = g.clone(), g / max(1.0, float(g.norm())) if g.isfinite().all() else g.clone()
        optimizer.step()
        plain.step()
    assert optimizer.skipped_gradients() == 1
    torch.testing.assert_close(weight, twin)


def test_a_parameter_without_a_gradient_is_left_alone():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([used, unused], lr=0.1, momentum=0.9)
    Mars(optimizer)
    used.grad = torch.ones(2)
    optimizer.step()
    assert unused.grad is None
    assert torch.equal(unused, torch.ones(2))


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD([nn.Parameter(torch.ones(2))]), torch.optim.Adagrad([nn.Parameter(torch.ones(2))])]
)
def test_an_optimizer_without_momentum_is_refused(optimizer):
    with pytest.raises(ValueError, match="momentum"):
        Mars(optimizer)
