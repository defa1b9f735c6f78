"""Looks at one optimizer step: what the gradient said it would do to the loss of its samples, and what it did.

Knows nothing of optimizers, and of a model only that it has buffers.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fismo_cli.tasks.base import Batch
from fismo_cli.training.seeding import kept_rng_state, restore_rng_state, rng_state
from fismo_core.dtensors import local_part

__all__ = ["StepProbe", "StepStart", "untouched"]


class StepProbe:
    """Made before a step's first forward pass; takes a copy of the weights, and later of the gradients.

    Args:
        model: in training mode.
        parameters: those that the step changes.

    Attributes:
        pieces: the parts of the step's batch, to be added one by one.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self._model, self._parameters, self._generators = model, parameters, rng_state()
        self._before = [parameter.detach().clone() for parameter in parameters]
        self._gradients: list[Tensor | None] = []
        self.pieces: list[Batch] = []

    def take_gradients(self) -> None:
        """Copy the gradients, before they are clipped or corrected."""
        self._gradients = [None if p.grad is None else p.grad.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def loss_again(self, loss: Callable[[Batch], Tensor]) -> Tensor:
        """The mean loss of the pieces, by the weights of now and the dropout of then.

        Buffers and generators are left as they are.
        """
        with untouched(self._model):
            restore_rng_state(self._generators)
            return torch.stack([loss(piece) for piece in self.pieces]).mean()

    @torch.no_grad()
    def promised_changes(self, some: Set[Tensor]) -> Tensor:
        """Two sums of <gradient, change>, over all parameters and over some; of this process's rows where spread.

        In float64, where the device has it: small changes of large weights would be lost in rounding.
        """
        device = local_part(self._before[0]).device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.zeros(2, dtype=dtype, device=device)
        for gradient, new, old in zip(self._gradients, self._parameters, self._before, strict=True):
            if gradient is not None:
                change = local_part(new.detach()).to(dtype) - local_part(old).to(dtype)
                # What was not changed promised nothing, also where its gradient is not finite and was skipped for it.
                product = local_part(gradient).to(dtype) * change
                promised = torch.where(change == 0, 0.0, product).sum()
                sums[0] += promised
                if new in some:
                    sums[1] += promised
        return sums

    @torch.no_grad()
    def square_norms(self, parameters: Set[Tensor]) -> Tensor:
        """Two sums over these parameters, or this process's rows of them: of squared changes and of squares before."""
        sums = torch.zeros(2, device=local_part(self._before[0]).device)
        for new, old in zip(self._parameters, self._before, strict=True):
            if new in parameters:
                rows = local_part(old).float()
                sums += torch.stack([(local_part(new.detach()).float() - rows).square().sum(), rows.square().sum()])
        return sums


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers and all generators back afterwards, whatever forward passes there were."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        with kept_rng_state():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)


class StepStart:
    """What forward passes change of a model and of torch's generators, as it was before: to go back to if one fails.

    The libraries' models draw from no other generators; those of Python and NumPy cost more time to copy than all this.
    The buffers are looked up once: in a model of many modules that takes longer than all else here, in every step.

    Args:
        model: whose buffers are kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._values = [torch.empty_like(buffer) for buffer in self._buffers]
        self.take()

    @torch.no_grad()
    def take(self) -> None:
        """Keep what is now."""
        if self._buffers:
            torch._foreach_copy_(self._values, self._buffers)
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @torch.no_grad()
    def restore(self) -> None:
        """Go back."""
        for buffer, value in zip(self._buffers, self._values, strict=True):
            buffer.copy_(value)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
