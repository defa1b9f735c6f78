"""Under torch.compile: the pure update is one graph and gives the same; a whole step is left as it is."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fismo_core import FISMO, FisherMetric, FismoOptions
from fismo_core.arithmetic import arithmetic_of
from fismo_core.update import State, fismo_update, initial_state

CPU = torch.device("cpu")
SHAPE = (12, 28)
FORMS = {
    "both sides dense": FismoOptions(economy="none"),
    "the long side diagonal": FismoOptions(economy="most"),
    "whitened momentum": FismoOptions(metric=FisherMetric(momentum_space="whitened")),
    "no metric": FismoOptions(metric=FisherMetric(power=0.0)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_update_is_one_graph_that_gives_the_same(form: str, compute_dtype: str) -> None:
    # To the bit: this backend runs the traced operations as they are, so that another digit is another operation.
    options = replace(FORMS[form], compute_dtype=compute_dtype)
    group = FISMO.of([nn.Parameter(torch.zeros(SHAPE))], options).param_groups[0]
    arithmetic = arithmetic_of(group, torch.float32, CPU)
    torch._dynamo.reset()
    compiled = torch.compile(fismo_update, fullgraph=True, backend="eager")
    ours, theirs = (initial_state(3, *SHAPE, arithmetic, torch.float32, CPU) for _ in range(2))
    for step in range(6):
        G = torch.randn(3, *SHAPE)
        if step == 3:
            G[1, 2, 3] = torch.nan
        active = torch.tensor([True, True, step != 2])
        kinds = {"active": active, "refresh": step % 2 == 0, "sides": (True, step % 2 == 0)}
        plain = fismo_update(G.clone(), ours, arithmetic, **kinds)
        other = compiled(G.clone(), theirs, arithmetic, **kinds)
        assert torch.equal(plain.direction, other.direction)
        assert torch.equal(plain.taken, other.taken)
    assert _same(ours, theirs)
    assert ours["skipped"].tolist() == [0, 1, 0]


def _same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_compiled_step_is_the_same_step_and_is_compiled_once() -> None:
    models, inputs = [_model(), _model()], torch.randn(20, 8, 12)
    optimizers = [FISMO(model, lr=0.02) for model in models]
    schedules = [torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20) for optimizer in optimizers]
    torch._dynamo.reset()
    steps = [optimizers[0].step, torch.compile(optimizers[1].step, backend="eager")]
    frames = []
    for x in inputs:
        for model, optimizer, step, schedule in zip(models, optimizers, steps, schedules, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            step()
            schedule.step()
        frames.append(torch._dynamo.utils.counters["frames"]["total"])
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    assert not torch.equal(models[1][0].weight, _model()[0].weight)
    assert 0 < frames[2] == frames[-1]


def test_a_step_with_its_model_is_compiled_as_far_as_the_model() -> None:
    models, inputs = [_model(), _model()], torch.randn(5, 8, 12)
    optimizers = [FISMO(model, lr=0.02) for model in models]
    torch._dynamo.reset()

    def train(model: nn.Module, optimizer: FISMO, x: torch.Tensor) -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = torch.compile(train, backend="eager")
    for x in inputs:
        train(models[0], optimizers[0], x)
        compiled(models[1], optimizers[1], x)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_a_step_that_must_be_one_graph_is_refused_with_the_reason() -> None:
    model = _model()
    optimizer = FISMO(model, lr=0.02)
    model(torch.randn(8, 12)).square().mean().backward()
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="FISMO's step decides by its state what to compute"):
        torch.compile(optimizer.step, fullgraph=True, backend="eager")()


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 28), nn.Tanh(), nn.LayerNorm(28), nn.Linear(28, 16))
