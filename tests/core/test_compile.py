"""The pure update under torch.compile: one graph, and the same numbers."""

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
