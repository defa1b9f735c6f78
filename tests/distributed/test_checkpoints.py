"""Checkpoints of several ranks: each writes its share, one process reads the whole, and all fail if one does."""

import json
from pathlib import Path

import pytest
import torch

from fismo_cli.errors import FismoError
from fismo_cli.training.checkpoints.store import CheckpointStore
from tests.distributed.shards import wholes
from tests.distributed.test_sharding import start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[4])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return request.param, folder / "checkpoints", start("shards", folder, request.param).splitlines()


def test_one_process_reads_what_several_wrote(saved):
    ranks, directory, _ = saved
    loaded = CheckpointStore(directory).load()
    assert loaded.step == 3
    state = loaded.state
    for name, value in wholes().items():
        assert state["spread"][name].dtype == value.dtype
        assert torch.equal(state["spread"][name], value), name
    assert torch.equal(state["spread"]["tied"], wholes()["(7, 5)"])
    assert state["spread"]["everywhere"].tolist() == [1, 2]
    tensor, number, scalar = state["of the first"]
    assert (tensor.tolist(), number, scalar.item()) == ([0, 0], 0, 0)
    assert sorted(state["by owner"]) == list(range(ranks))
    for rank, entry in state["by owner"].items():
        assert (entry["whole"].tolist(), entry["scalar"].item()) == ([rank] * 3, rank)
    assert {name: t.tolist() for name, t in state["of two owners"][0].items()} == {
        f"part.{rank}": [rank] * 2 for rank in range(ranks)
    }


def test_every_rank_writes_a_file_of_its_own_and_all_are_measured(saved):
    ranks, directory, _ = saved
    path = directory / "step-3"
    files = {file.name for file in path.iterdir()}
    assert sum(name.startswith("shard-") for name in files) == ranks
    assert set(json.loads((path / "complete.json").read_text())["files"]) == files - {"complete.json"}


def test_a_disk_that_refuses_one_rank_fails_all_and_leaves_earlier_checkpoints(saved):
    ranks, directory, lines = saved
    *said, left = lines
    expected = f"FismoError: the checkpoint of step 2 could not be written to {directory}: File too large."
    assert said[0].startswith(expected)
    assert said[0].endswith("Earlier checkpoints are intact")
    assert said[1:] == ["QuietError: another process of this run failed"] * (ranks - 1)
    assert left == "['step-1']"


def test_a_changed_or_missing_shard_is_noticed(saved, tmp_path):
    import shutil

    _, directory, _ = saved
    copy = Path(shutil.copytree(directory, tmp_path / "checkpoints"))
    shard = next(copy.glob("step-3/shard-00002-*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    loaded = CheckpointStore(copy).load()
    assert loaded.step == 1
    assert "shard-00002" in loaded.problems[0]
    next(copy.glob("step-1/shard-00002-*")).unlink()
    with pytest.raises(FismoError, match=r"shard-00002.* is missing"):
        CheckpointStore(copy).load()
