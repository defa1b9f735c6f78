"""FISMO's work shared by ranks: the same training as in one process, each rank with its share of the state."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from fismo_core.config import FisherMetric
from fismo_core.economy import elementwise_cost, matrix_cost, settled
from fismo_core.ranks import share_out
from tests.ranks import run_ranks


def start(script: str, folder: Path, ranks: int, *arguments: object) -> str:
    """What the ranks of a script of this folder write to the file that is their first argument."""
    given = [str(folder / "result"), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    work = f"tests.distributed.{script}:main"
    codes = run_ranks(ranks, work, given, folder=folder, streams=folder, environment=environment)
    assert codes == [0] * ranks, (folder / "err").read_text()[-3000:]
    return (folder / "result").read_text()


def gap(one: dict, other: dict) -> float:
    a, b = torch.tensor(one["weights"]), torch.tensor(other["weights"])
    return float((a - b).abs().max())


FORMS = ("default", "dense", "paper")
KINDS = (False, True)
"""Whether FSDP2 shards the weights; else DDP has them whole in every rank."""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[tuple, dict]:
    """What came of all runs, by number of ranks and the run's own key. Ranks are started once for each number."""
    folder = tmp_path_factory.mktemp("ranks")
    saved = {fsdp: str(folder / f"state-{fsdp}.pt") for fsdp in KINDS}
    resumed = {"first": 5, "steps": 12}
    trained = {(form, fsdp): {"form": form, "fsdp": fsdp} for form in FORMS for fsdp in KINDS}
    runs = {
        4: {
            **trained,
            **{("saved", fsdp): {"steps": 5, "save": saved[fsdp], "fsdp": fsdp} for fsdp in KINDS},
            **{("resumed", fsdp, fsdp): {**resumed, "load": saved[fsdp], "fsdp": fsdp} for fsdp in KINDS},
        },
        2: {
            **trained,
            **{
                ("resumed", fsdp, kind): {**resumed, "load": saved[fsdp], "fsdp": kind}
                for fsdp in KINDS
                for kind in KINDS
                if fsdp or not kind
            },
        },
        1: {
            **{(form, False): {"form": form} for form in FORMS},
            **{("resumed", fsdp, False): {**resumed, "load": saved[fsdp]} for fsdp in KINDS},
        },
    }
    return {
        (ranks, *key): result
        for ranks, wanted in runs.items()
        for key, result in zip(
            wanted, json.loads(start("ranks", folder, ranks, json.dumps(list(wanted.values())))), strict=True
        )
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_ranks_train_as_one_process_does(found, form):
    """In float64, so that nothing but sums in another order is between them."""
    one = found[1, form, False]
    for ranks, fsdp in ((2, False), (4, False), (2, True), (4, True)):
        several = found[ranks, form, fsdp]
        assert several["equal"]
        assert gap(one, several) < 1e-9
        assert several["losses"] == pytest.approx(one["losses"], abs=1e-9)
        assert sum(several["state_bytes"]) == pytest.approx(one["state_bytes"][0], rel=0.01 if fsdp else 0)
        assert max(several["state_bytes"]) < 1.5 / ranks * one["state_bytes"][0]
        assert several["skipped"] == one["skipped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", KINDS, ids=["ddp", "fsdp"])
def test_state_of_four_ranks_is_loaded_by_two_and_by_one(found, fsdp):
    whole = found[1, "default", False]
    for ranks, kind in ((4, fsdp), (2, fsdp), (2, False), (1, False)):
        resumed = found[ranks, "resumed", fsdp, kind]
        assert gap(whole, resumed) < 1e-9
        assert resumed["losses"] == pytest.approx(whole["losses"][5:], abs=1e-9)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_largest_share_is_near_the_mean(size):
    costs = [
        cost
        for _ in range(12)
        for m, n in [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
        for cost in [matrix_cost(m, n, settled(FisherMetric(), "most"))]
    ]
    given = [0.0] * size
    owners = share_out(costs, given)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(size)]
    assert loads == pytest.approx(given)
    assert max(loads) <= 1.05 * sum(loads) / size
    share_out([elementwise_cost(768) for _ in range(50)], given)
    assert max(given) <= 1.05 * sum(given) / size


def test_fewer_pieces_than_ranks_and_none():
    assert len(set(share_out([1.0, 2.0, 3.0], [0.0] * 8))) == 3
    assert share_out([], [0.0] * 8) == []


def test_no_assignment_of_few_pieces_is_much_better():
    """Against all assignments: the rule is within 4/3 - 1/(3 size) of the best (Graham, 1969)."""
    generator = torch.Generator().manual_seed(0)
    for size in (2, 3):
        for _ in range(10):
            costs = torch.rand(6, generator=generator).tolist()
            loads = [0.0] * size
            share_out(costs, loads)
            best = min(
                max(sum(cost for cost, o in zip(costs, owners, strict=True) if o == rank) for rank in range(size))
                for owners in itertools.product(range(size), repeat=len(costs))
            )
            assert max(loads) <= (4 / 3 - 1 / (3 * size)) * best + 1e-12


@pytest.mark.slow
def test_a_layer_that_is_never_used_and_statistics_of_batch_norm(tmp_path):
    """The run ends, the unused weights stay, and all ranks end with the statistics that the model is kept with."""
    assert start("unused", tmp_path, 2) == "completed True True"
