"""Parameters that some ranks, or none, have a gradient for, and gradients that are not finite on one rank."""

import json

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from tests.distributed.branches import Model, train
from tests.distributed.test_sharding import start

pytestmark = pytest.mark.slow

# How they train together, the share of rare samples, micro-batches, whether one sample is poisoned.
RUNS = [
    ("ddp", 0.1, 1, False),
    ("ddp", 0.1, 2, False),
    ("ddp", 0.1, 1, True),
    ("fsdp2", 0.1, 1, False),
    ("fsdp2", 0.1, 2, False),
    ("fsdp2", 0.1, 1, True),
]
UNLIKE_RANKS = hasattr(FSDPModule, "set_reduce_scatter_unused_params")
SKIPPED = pytest.mark.skipif(not UNLIKE_RANKS, reason="before torch 2.14 ranks must use the same parameters")
EACH = pytest.mark.parametrize(
    "run", [pytest.param(run, marks=SKIPPED if run[0] == "fsdp2" else (), id=str(run)) for run in RUNS]
)


def gap(one: dict, other: dict) -> float:
    pairs = [(torch.tensor(one["weights"][name]), torch.tensor(other["weights"][name])) for name in one["weights"]]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    runs = [run for run in RUNS if run[0] == "ddp" or UNLIKE_RANKS]
    return dict(
        zip(runs, json.loads(start("branches", tmp_path_factory.mktemp("x"), 4, json.dumps(runs))), strict=True)
    )


@EACH
def test_four_ranks_train_as_one_does(several, run):
    """In float64. One process sees all samples of a step, so that it has a gradient if any rank has one."""
    _, share, _, poisoned = run
    found, alone = several[run], train("none", share, 1, poisoned)
    assert found["status"] == alone["status"] == "completed"
    assert gap(found, alone) < 1e-9
    assert found["skipped"] == alone["skipped"] == (4 if poisoned else 0)  # one matrix of two blocks, twice


@EACH
def test_ranks_differed_in_what_they_used(several, run):
    counts = several[run]["ranks with rare samples"]
    assert any(0 < count < 4 for count in counts)
    assert 0 in counts  # a micro-batch in which no rank used the branch


@EACH
def test_what_is_never_used_or_frozen_is_left_alone_and_the_rest_is_finite(several, run):
    torch.manual_seed(0)
    before = Model().double().state_dict()
    after = {name: torch.tensor(value, dtype=torch.float64) for name, value in several[run]["weights"].items()}
    for name, value in after.items():
        assert value.isfinite().all()
        assert torch.equal(value, before[name]) == name.startswith(("never", "blocks.0.frozen", "blocks.1.frozen")), (
            name
        )
    assert torch.equal(after["first.weight"], after["last.weight"])
