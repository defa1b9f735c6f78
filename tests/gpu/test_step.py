"""A step on a GPU: the CPU's numbers, without waiting for the device, compiled and captured as a graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fismo_core import DENSE, FISMO, PAPER, FismoOptions
from fismo_core.arithmetic import arithmetic_of
from fismo_core.update import State, fismo_update, initial_state

SHAPES = ((48, 48), (48, 48), (144, 48), (48, 160))
STEPS = 12
FORMS = {
    "no economy": FismoOptions(economy="none"),
    "most economy": FismoOptions(economy="most"),
    "dense": DENSE,
    # its damping is for small gradients: with ones like these float32 would follow no trajectory
    "paper": replace(PAPER, metric=replace(PAPER.metric, damping=3.0)),
}
TOLERANCES = {"float32": 2e-4, "bfloat16": 8e-2}
"""Relative distance of weights, after some steps, from those of float64 on the CPU."""


def gradients(dtype: torch.dtype, device: torch.device) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    mixing = [torch.randn(n, n, generator=generator, dtype=torch.float64) for _, n in SHAPES]
    for _ in range(STEPS):
        made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (*SHAPES, (48,))]
        yield [G.to(device, dtype) for G in (*(G @ M for G, M in zip(made[:-1], mixing, strict=True)), made[-1])]


def stepped(options: FismoOptions, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Weights, all zero at first, after steps by the same gradients: four matrices and a vector of AdamW's."""
    weights = [nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)) for shape in (*SHAPES, (48,))]
    groups = [{"params": weights[:-1], "rule": "matrix"}, {"params": weights[-1:], "rule": "adamw"}]
    optimizer = FISMO.of(groups, options)
    for step in gradients(dtype, device):
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        optimizer.step()
    return [weight.detach().cpu().double() for weight in weights]


@contextmanager
def never_waiting(device: torch.device) -> Iterator[None]:
    """Whatever waits for the device is an error."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compute_dtype", TOLERANCES)
@pytest.mark.parametrize("form", FORMS)
def test_steps_are_those_of_float64_on_the_cpu(device, form, compute_dtype):
    exact = stepped(FORMS[form], torch.float64, torch.device("cpu"))
    ours = stepped(replace(FORMS[form], compute_dtype=compute_dtype), torch.float32, device)
    for weight, expected in zip(ours, exact, strict=True):
        assert (weight - expected).norm() <= TOLERANCES[compute_dtype] * expected.norm()


def test_tensor_float_32_changes_no_root_or_statistic(device):
    """Which a user may have switched on for the model."""
    exact = stepped(FismoOptions(), torch.float64, torch.device("cpu"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        ours = stepped(FismoOptions(compute_dtype="float32"), torch.float32, device)
    finally:
        torch.set_float32_matmul_precision(before)
    for weight, expected in zip(ours, exact, strict=True):
        assert (weight - expected).norm() <= TOLERANCES["float32"] * expected.norm()


@pytest.mark.parametrize("cautious", [False, True])
def test_no_step_waits_for_the_device(device, cautious):
    options = FismoOptions(weight_decay=0.1, cautious=cautious)
    weights = [nn.Parameter(torch.randn(shape, device=device)) for shape in (*SHAPES, (48,))]
    groups = [{"params": weights[:-1], "rule": "matrix"}, {"params": weights[-1:], "rule": "adamw"}]
    optimizer = FISMO.of(groups, options)
    for number, step in enumerate(gradients(torch.float32, device)):
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        if number == 0:  # libraries are loaded
            optimizer.step()
            continue
        with never_waiting(device):
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer.skipped_gradients() == 0


def test_a_non_finite_gradient_is_skipped_without_waiting(device):
    weight = nn.Parameter(torch.ones(16, 16, device=device))
    optimizer = FISMO([weight])
    weight.grad = torch.randn(16, 16, device=device)
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.full((16, 16), torch.inf, device=device)
    with never_waiting(device):
        optimizer.step()
    assert torch.equal(weight, before)
    assert optimizer.skipped_gradients() == 1


def states(device: torch.device) -> tuple[State, State, object]:
    group = FISMO([nn.Parameter(torch.zeros(48, 160, device=device))], economy="most").param_groups[0]
    arithmetic = arithmetic_of(group, torch.float32, device)
    first, second = (initial_state(4, 48, 160, arithmetic, torch.float32, device) for _ in range(2))
    return first, second, arithmetic


def test_the_compiled_update_gives_the_same_to_rounding(device):
    ours, theirs, arithmetic = states(device)
    torch._dynamo.reset()
    compiled = torch.compile(fismo_update, fullgraph=True, backend="inductor" if device.type == "cuda" else "aot_eager")
    for step in range(4):
        G = torch.randn(4, 48, 160, device=device)
        plain = fismo_update(G.clone(), ours, arithmetic, refresh=step % 2 == 0).direction
        other = compiled(G.clone(), theirs, arithmetic, refresh=step % 2 == 0).direction
        assert (plain - other).norm() <= TOLERANCES["bfloat16"] * plain.norm()


def test_the_update_can_be_captured_as_a_graph(device):
    """What a step between refreshes does to a bucket; replayed it goes on from the state as it is."""
    ours, theirs, arithmetic = states(device)
    G = torch.randn(4, 48, 160, device=device)
    held = G.clone()

    def update() -> Tensor:
        return fismo_update(held.clone(), theirs, arithmetic, refresh=False).direction

    if device.type == "cuda":
        before = {name: tensor.clone() for name, tensor in theirs.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            update()
        torch.cuda.current_stream().wait_stream(side)
        for name, tensor in before.items():
            theirs[name].copy_(tensor)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = update()
    for scale in (1.0, 2.0, -1.0):
        held.copy_(scale * G)
        plain = fismo_update(scale * G, ours, arithmetic, refresh=False).direction
        if device.type == "cuda":
            graph.replay()
        else:
            captured = update()
        torch.testing.assert_close(captured, plain, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(theirs["momentum"], ours["momentum"])


def test_state_takes_the_bytes_that_it_says(device):
    weights = [nn.Parameter(torch.zeros(512, 512, device=device)) for _ in range(8)]
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    optimizer = FISMO(weights, compute_dtype="bfloat16")
    took = (torch.cuda.memory_allocated() if device.type == "cuda" else optimizer.state_bytes()) - before
    per_entry = 4 + 2 * (4 + 2 + 2)  # momentum, and of each side a factor in float32 and two roots in bfloat16
    assert optimizer.state_bytes() == pytest.approx(8 * 512 * 512 * per_entry, rel=1e-3)
    assert took == pytest.approx(optimizer.state_bytes(), rel=0.01)
