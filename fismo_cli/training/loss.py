"""The loss that is minimised, as a function of a batch."""

import torch
from torch import Tensor, nn

from fismo_cli.tasks.base import Batch, Task
from fismo_cli.training.device import Precision, autocast

__all__ = ["TrainingLoss"]


class TrainingLoss:
    """A task's training loss of a model, in a precision.

    Args:
        task: whose loss it is.
        model: on `device`.
        device: where the model is.
        precision: of the forward pass.
    """

    def __init__(self, task: Task, model: nn.Module, device: torch.device, precision: Precision) -> None:
        self.model, self._task, self._device, self._precision = model, task, device, precision

    def __call__(self, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """The mean loss of a batch; `model` is what DDP made of the model, where that is to be called instead."""
        with autocast(self._device, self._precision):
            return self._task.training_loss(self.model if model is None else model, batch)
