"""Trains models of which parts are used for some samples only, or have a gradient that is not finite for one of them.

By the ranks that torchrun started, or in this process alone: torchrun --nproc-per-node N branches.py RESULT JSON, a
list of arguments of `train`.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig, TrainConfig
from fismo_cli.tasks.base import Batch, Sums, Task
from fismo_cli.training.distributed.sharding import shard_model
from fismo_cli.training.distributed.world import World, join_world
from fismo_cli.training.seeding import seed_everything
from fismo_cli.training.trainer import RunName, Trainer
from fismo_core import FISMO, AdamW, split_parameters
from fismo_core.dtensors import full_tensor


class Poison(torch.autograd.Function):
    """Passes a weight on; where it is told to, an entry of its gradient becomes NaN."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, poisoned: bool) -> Tensor:
        ctx.poisoned = poisoned
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone()
        if ctx.poisoned:
            gradient[1, 2] = float("nan")
        return gradient, None


class Block(nn.Module):
    """Rows that do not divide by the ranks, fewer rows than ranks, a branch for rare samples, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 6)
        self.rare = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))
        self.tiny = nn.Linear(1, 1)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x: Tensor, rare: Tensor, poisoned: Tensor) -> Tensor:
        weight = Poison.apply(self.up.weight, bool(poisoned.any()))
        x = x + self.down(torch.tanh(nn.functional.linear(x, weight, self.up.bias)))
        if rare.any():
            rows = rare.nonzero().squeeze(1)
            x = x.index_add(0, rows, self.rare(x[rows]))
        return self.frozen(x) + self.tiny(x[:, :1])


class Model(nn.Module):
    """Two blocks between tied weights, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight
        self.never = nn.Linear(3, 3)

    def forward(self, batch: Batch) -> Tensor:
        x = self.first(batch["x"])
        for block in self.blocks:
            x = block(x, batch["rare"], batch["poisoned"])
        return self.last(x)


class Samples:
    """Random points, some of them rare, and one (of 48) poisoned."""

    def __init__(self, share: float, poisoned: bool) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(48, 6, dtype=torch.float64, generator=generator)
        self.rare = torch.rand(48, generator=generator) < share
        self.poisoned = (torch.arange(48) == 20) & poisoned
        self.seen: list[int] = []

    def __len__(self) -> int:
        return 48

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        indices = [index for _, index in keys]
        self.seen.append(int(self.rare[indices].sum()))
        return {"x": self.x[indices], "rare": self.rare[indices], "poisoned": self.poisoned[indices]}


class Reconstruct(Task):
    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch) - batch["x"].flip(1)).square().mean()

    def measure(self, model: nn.Module, batch: Batch) -> Sums:
        raise NotImplementedError


def train(parallel: str, share: float, accumulate: int, poisoned: bool, world: World = World()) -> dict[str, Any]:
    """Two passes over the samples; the weights, and in how many micro-batches how many ranks saw rare samples."""
    seed_everything(0)
    model, device = Model().double(), torch.device("cpu")
    config = TrainConfig(epochs=2, batch_size=8, accumulate=accumulate, log_every=1, parallel=parallel)
    spread = shard_model(model, config, world, device) if parallel == "fsdp2" and world.size > 1 else None
    group = None if spread is not None else world.group
    optimizer = FISMO(split_parameters(model), weight_decay=0.1, adamw=AdamW(weight_decay=0.1), process_group=group)
    samples = Samples(share, poisoned)
    trainer = Trainer(
        task=Reconstruct(train=samples, validation=None, test=None),
        model=model,
        optimizer=optimizer,
        train=config,
        evaluate=EvaluateConfig(),
        checkpoint=CheckpointConfig(),
        device=device,
        name=RunName("branches", "fismo"),
        world=world,
        sharded_model=spread,
    )
    *_, finished = trainer.fit()
    by_rank = world.gather([count > 0 for count in samples.seen])
    return {
        "status": finished.summary["status"],
        "weights": {name: full_tensor(value.detach()).tolist() for name, value in model.state_dict().items()},
        "ranks with rare samples": [sum(flags) for flags in zip(*by_rank, strict=True)],
        "skipped": optimizer.skipped_gradients(),
    }


def main() -> None:
    result, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    with join_world() as world:
        found = [train(*arguments, world=world) for arguments in wanted]
        if world.main:
            result.write_text(json.dumps(found))
    os._exit(0)  # see app.main


if __name__ == "__main__":
    main()
