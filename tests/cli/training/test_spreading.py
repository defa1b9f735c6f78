"""Which processes may train together how, by `train.parallel`; what FSDP2 does is tested by several processes."""

import pytest
import torch
from torch import nn

from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.schema import TrainConfig
from fismo_cli.training.distributed.sharding import shard_model
from fismo_cli.training.distributed.together import check_parallel
from fismo_cli.training.distributed.world import World


def check(size: int, *overrides: str) -> bool:
    return check_parallel(load_preset("digits-vit", overrides).preset, size)


def test_one_process_is_never_spread():
    for parallel in ("none", "ddp", "fsdp2"):
        assert not check(1, f"train.parallel={parallel}", "optimizer.name=muon", "optimizer.lr=0.1")


def test_several_processes_are_spread_if_asked():
    assert not check(2)
    assert check(2, "train.parallel=fsdp2")
    assert check(2, "train.parallel=fsdp2", "train.precision=bfloat16")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.parallel=none"], "train.parallel=none, but there are 2 processes"),
        (["train.parallel=fsdp2", "train.precision=float16"], "train.precision=float16"),
        (["train.parallel=fsdp2", "optimizer.name=muon", "optimizer.lr=0.1"], "optimizer.name=muon needs whole"),
        (["train.parallel=fsdp2", "optimizer.name=lion", "optimizer.lr=0.1"], "optimizer.name=lion needs whole"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        check(2, *overrides)


def test_a_parameter_without_rows_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    model.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(UsageError, match="cannot spread scale, which is a single number"):
        shard_model(model, TrainConfig(steps=1, parallel="fsdp2"), World(0, 2, 0), torch.device("cpu"))
