"""What forward passes change of a model and of generators: kept, and put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fismo_cli.training.seeding import kept_rng_state
from fismo_core import probe

__all__ = ["StepStart", "untouched"]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put a model's buffers and all generators, Python's and NumPy's too, back afterwards."""
    with kept_rng_state(), probe.untouched(model):
        yield


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
