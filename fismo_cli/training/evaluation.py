"""Metrics of a model on one part of the data: eval mode, no gradients, each sample once. Draws no random numbers."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fismo_cli.tasks.base import CONFUSION, Part, Task
from fismo_cli.training.data.loading import fetch, take
from fismo_cli.training.data.order import sequential_keys
from fismo_cli.training.device import Precision, autocast, move
from fismo_cli.training.distributed.world import World
from fismo_cli.training.signals import StopRequest

__all__ = ["Measured", "evaluate_part", "evaluation_mode"]


@dataclass(frozen=True)
class Measured:
    """What a model does on a part: the task's metrics, and the confusion matrix of tasks that have one, on the CPU."""

    metrics: dict[str, float]
    confusion: Tensor | None = None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode that every module was in is restored afterwards.

    The ways in and out lead through training mode, in which some models (LeViT, EfficientFormer) drop what they cached
    of the weights for evaluation: it would be of an earlier step.
    """
    training = {module: module.training for module in model.modules()}
    try:
        model.train()
        model.eval()
        with torch.no_grad():
            yield
    finally:
        model.train()
        for module, mode in training.items():
            module.training = mode


def evaluate_part(
    task: Task,
    model: nn.Module,
    part: Part,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision = "float32",
    workers: int = 0,
    stop: StopRequest | None = None,
    world: World = World(),
) -> Measured | None:
    """The task's metrics of a model on a part; None if `stop` asked to leave between batches, in any process.

    The processes of a world share the batches out, and all get the metrics of the whole. The mode that every module
    was in is restored afterwards.

    Raises:
        FismoError: if a sample could not be read; then in all processes.
    """
    stop = stop or StopRequest()  # which is asked by no signal
    # Sums of many batches need more digits than a batch's own; MPS has no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    totals: dict[str, Tensor] = {}
    every = sequential_keys(part, batch_size)
    keys = every[world.rank :: world.size]
    counted = len(keys)
    if counted < len(every[:: world.size]):  # where weights are spread, a forward pass takes all processes
        keys = [*keys, every[-1]]
    fetched = fetch(part, keys, workers=workers, pin=device.type == "cuda", waiting=stop.waiting)
    with evaluation_mode(model), closing(fetched) as batches:
        for index in range(len(keys)):
            taken = take(batches, 1, stop=stop, world=world)
            if taken is None:
                return None
            with autocast(device, precision):
                measured = task.measure(model, move(next(taken), device))
            if index == counted:
                break
            for name, value in measured.items():
                totals[name] = totals[name] + value.to(dtype) if name in totals else value.to(dtype)
    sums: dict[str, Tensor] = {}
    for own in world.gather({name: value.cpu().double() for name, value in totals.items()}):
        for name, value in own.items():
            sums[name] = sums[name] + value if name in sums else value
    confusion = sums.pop(CONFUSION, None)
    return Measured(task.metrics({name: value.item() for name, value in sums.items()}), confusion)
