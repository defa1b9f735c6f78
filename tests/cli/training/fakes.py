"""A task small enough to train in milliseconds, and a trainer of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig, TrainConfig
from fismo_cli.tasks.base import Batch, Sums, Task
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.training.seeding import seed_everything
from fismo_cli.training.trainer import RunName, Trainer
from fismo_core import FISMO, Mars, split_parameters


class PointsPart:
    """Points on a noisy line; the noise depends on the key alone. Remembers what it was asked for."""

    def __init__(self, samples: int, noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(samples)
        self.x = torch.randn(samples, 4, generator=generator)
        self.y = self.x @ torch.tensor([1.0, -2.0, 0.5, 3.0]) + 0.1
        self.noise = noise
        self.asked: list[list[tuple[int, int]]] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        self.asked.append(list(keys))
        indices = [index for _, index in keys]
        x = self.x[indices]
        if self.noise:
            noise = [torch.randn(4, generator=torch.Generator().manual_seed(1000 * e + i)) for e, i in keys]
            x = x + self.noise * torch.stack(noise)
        return {"x": x, "y": self.y[indices]}


class PointsTask(Task):
    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        return {**batch, "x": batch["x"] + 0.01 * torch.randn(batch["x"].shape, generator=generator)}

    def measure(self, model: nn.Module, batch: Batch) -> Sums:
        error = (model(batch["x"]).squeeze(1) - batch["y"]).square()
        return {"loss": error.sum(), "count": torch.tensor(float(len(error)))}

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["count"]}


def points_task() -> PointsTask:
    return PointsTask(train=PointsPart(50, noise=0.1), validation=PointsPart(11), test=PointsPart(9))


def network() -> nn.Module:
    """With dropout, so that a lost RNG state shows, and with buffers."""
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))


def linear() -> nn.Module:
    return nn.Linear(4, 1)


def make_trainer(
    task: Task | None = None,
    *,
    lr: float = 0.01,
    workers: int = 0,
    build: Callable[[], nn.Module] = network,
    evaluate: EvaluateConfig | None = None,
    checkpoint: CheckpointConfig | None = None,
    fismo: bool = False,
    adapt_radius: int | None = None,
    mars: bool = False,
    **train: object,
) -> Trainer:
    seed_everything(3)
    model = build()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    if fismo:
        optimizer = FISMO(split_parameters(model), lr=lr, weight_decay=0.1, compute_dtype="float32")
    return Trainer(
        task=task or points_task(),
        model=model,
        optimizer=optimizer,
        train=TrainConfig.model_validate({"batch_size": 8, "steps": 20, "log_every": 4, **train}),
        evaluate=evaluate or EvaluateConfig(),
        checkpoint=checkpoint or CheckpointConfig(),
        device=torch.device("cpu"),
        workers=workers,
        name=RunName("points", "adamw"),
        adapt_radius=adapt_radius,
        mars=Mars(optimizer) if mars else None,
    )


def store_in(path: Path, keep: int = 100) -> CheckpointStore:
    return CheckpointStore(path / "checkpoints", keep=keep)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.final_model.state_dict().items()}
