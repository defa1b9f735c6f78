"""What a training run knows about itself besides weights: counters, clocks, the last metrics. Saved in checkpoints."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fismo_cli.training.distributed.world import World

__all__ = ["LossWindow", "RunState", "Stopwatch"]


class Stopwatch:
    """Seconds of training, without what happens while it is paused (evaluation, checkpoints)."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def start(self, seconds: float | None = None) -> None:
        """Run on, from a given reading where one is given."""
        if seconds is not None:
            self._seconds = seconds
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stand still until `start`."""
        self._seconds = self.read()
        self._since = None

    def read(self) -> float:
        """Seconds so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)


class LossWindow:
    """Training losses since the last progress record, added up on the device so that no step waits for the host."""

    def __init__(self, device: torch.device, *, max_loss: float | None, world: World = World()) -> None:
        self._max_loss, self._world = max_loss, world
        self._device = device
        self.reset()

    def reset(self) -> None:
        """Forget the losses."""
        self.count = 0
        self._sum = torch.zeros((), device=self._device)
        self._largest = torch.full((), -math.inf, device=self._device)
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Take in the loss of a step."""
        self.count += 1
        self._sum += loss
        if self._max_loss is not None:
            self._losses.append(loss)

    def mean(self) -> float:
        """The mean loss over all processes; the host waits for the device here."""
        return self._world.mean(self._sum).item() / self.count

    def problem(self) -> str | None:
        """Why these losses mean divergence, or None; the host waits for the device here."""
        if self.count == 0:
            return None
        if not math.isfinite(mean := self.mean()):
            return f"the training loss became {mean}"
        if self._max_loss is not None and (largest := self._largest_mean().item()) > self._max_loss:
            return f"the training loss {largest:.6g} is above train.max_loss={self._max_loss:g}"
        return None

    def _largest_mean(self) -> Tensor:
        """The largest loss of a step, each the mean over all processes."""
        if self._losses:
            # torch's maximum passes a NaN on, Python's would not.
            largest = self._world.mean(torch.stack(self._losses)).max()
            self._largest, self._losses = torch.maximum(self._largest, largest), []
        return self._largest

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of a window that is still open: the same in all processes."""
        return {"count": self.count, "sum": self._world.mean(self._sum), "largest": self._largest_mean()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set to what `state_dict` returned."""
        self.count = state["count"]
        self._sum = state["sum"].to(self._device)
        self._largest = state["largest"].to(self._device)


@dataclass
class RunState:
    """Counters and results of a run that a checkpoint carries on.

    Attributes:
        step: optimizer steps done.
        batches: batches of `train.batch_size` samples seen; as many as steps unless the batch has grown.
        batches_before: how many it were before the last step.
        growth: how many such batches a step takes.
        noise_scale: the gradient's noise scale as of the last measurement, in samples.
        fisher_noise_scale: the same in the Fisher metric.
        evaluated_step: the last step whose validation metrics are known.
        validation: those metrics.
        train_loss: mean loss of the last closed window.
        best_step: the step with the lowest validation loss so far.
        best_validation: all validation metrics of that step.
        since_best: evaluations after that step.
        seconds: time on the training clock.
        optimizer_seconds: of these, in the optimizer's step.
        logged_seconds: the clock at the last progress record.
        logged_batches: batches seen until that record.
    """

    step: int = 0
    batches: int = 0
    batches_before: int = 0
    growth: int = 1
    noise_scale: float | None = None
    fisher_noise_scale: float | None = None
    evaluated_step: int | None = None
    validation: dict[str, float] | None = None
    train_loss: float | None = None
    best_step: int | None = None
    best_validation: dict[str, float] | None = None
    since_best: int = 0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    logged_seconds: float = 0.0
    logged_batches: int = 0

    @property
    def best_loss(self) -> float | None:
        """The lowest validation loss so far."""
        return None if self.best_validation is None else self.best_validation["loss"]
