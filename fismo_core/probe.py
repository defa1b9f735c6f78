"""Looks at one optimizer step: what the gradient said it would do to the loss of its samples, and what it did."""

import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fismo_core.dtensors import local_part

__all__ = ["StepProbe", "StepReport", "untouched"]


@dataclass(frozen=True)
class StepReport:
    """What a step achieved.

    Attributes:
        actual: by how much it lowered the loss of its own samples.
        predicted: by how much the gradient on these samples said it would: minus its product with the change.
        of_matrices: how much of that by the change of some of the parameters.
        change: the norm of the change of these, as a share of their norm.
    """

    actual: float
    predicted: float
    of_matrices: float
    change: float


class StepProbe:
    """Made before a step's first forward pass; takes a copy of the weights, and later of the gradients.

    Args:
        model: in training mode.
        parameters: those that the step changes.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self._model, self._parameters, self._generators = model, parameters, _generators()
        self._before = [parameter.detach().clone() for parameter in parameters]
        self._gradients: list[Tensor | None] = []

    def take_gradients(self) -> None:
        """Copy the gradients, before they are clipped or corrected."""
        self._gradients = [None if p.grad is None else p.grad.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def loss_again(self, loss: Callable[[], Tensor]) -> Tensor:
        """A loss by the weights of now and the dropout of then; buffers and generators are left as they are."""
        with untouched(self._model):
            _restore(self._generators)
            return loss()

    @torch.no_grad()
    def sums(self, matrices: Set[Tensor]) -> Tensor:
        """Four sums over this process's part of the parameters, in float64 where the device has it.

        They are <gradient, change> over all parameters, and over the matrices; of the matrices the squares of changes,
        and of weights before. Of sharded parameters the ranks' sums add up to the whole's.
        """
        device = local_part(self._before[0]).device
        # Small changes of large weights would be lost in rounding.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.zeros(4, dtype=dtype, device=device)
        for gradient, new, old in zip(self._gradients, self._parameters, self._before, strict=True):
            before = local_part(old).to(dtype)
            change = local_part(new.detach()).to(dtype) - before
            if gradient is not None:
                # What was not changed promised nothing, also where its gradient is not finite and was skipped for it.
                promised = torch.where(change == 0, 0.0, local_part(gradient).to(dtype) * change).sum()
                sums[0] += promised
                if new in matrices:
                    sums[1] += promised
            if new in matrices:
                sums[2:] += torch.stack([change.square().sum(), before.square().sum()])
        return sums

    def report(self, before: Tensor, after: Tensor, matrices: Set[Tensor], sums: Tensor | None = None) -> StepReport:
        """What the step achieved. Waits for the device.

        Args:
            before: the loss of the step's samples, before it.
            after: of the same samples, by `loss_again`.
            matrices: the parameters whose steps have a radius.
            sums: of all ranks together; None: this process's own.
        """
        promised, by_matrices, moved, size = (self.sums(matrices) if sums is None else sums).tolist()
        return StepReport(
            actual=(before - after).item(),
            predicted=-promised,
            of_matrices=-by_matrices,
            change=math.sqrt(moved / size) if size > 0 else 0.0,
        )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers and torch's generators back afterwards, whatever forward passes there were."""
    buffers, generators = [buffer.clone() for buffer in model.buffers()], _generators()
    try:
        yield
    finally:
        _restore(generators)
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)


def _generators() -> dict[str, Any]:
    """The state of torch's generators; models draw from no others."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def _restore(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"])
