"""Trains a model with a layer that is never used, by two ranks: started by torchrun."""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig, TrainConfig
from fismo_cli.training.distributed.world import join_world
from fismo_cli.training.seeding import seed_everything
from fismo_cli.training.trainer import RunName, Trainer
from fismo_core import FISMO, split_parameters
from tests.cli.training.fakes import points_task


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def main() -> None:
    with join_world() as world:
        seed_everything(0)
        model = Model()
        before = model.unused.weight.detach().clone()
        trainer = Trainer(
            task=points_task(),
            model=model,
            optimizer=FISMO(split_parameters(model), process_group=world.group),
            train=TrainConfig(steps=6, batch_size=10, log_every=2),
            evaluate=EvaluateConfig(every=3),
            checkpoint=CheckpointConfig(),
            device=torch.device("cpu"),
            name=RunName("points", "fismo"),
            world=world,
        )
        *_, finished = trainer.fit()
        statistics = world.gather(model.used[1].running_mean.tolist())
        if world.main:
            kept = torch.equal(model.unused.weight, before)
            result = f"{finished.summary['status']} {kept} {statistics[0] == statistics[1]}"
            Path(sys.argv[1]).write_text(result)
    os._exit(0)  # see app.main


if __name__ == "__main__":
    main()
