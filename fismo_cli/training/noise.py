"""When a run measures its gradient's noise scale, and what it says of it: around `fismo_core.NoiseMeter`.

A piece is what one process sees of one micro-batch; where the whole batch is a single one, half of it is a piece, of
which the trainer takes the gradient besides in the steps that are measured.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fismo_cli.training.events import NoiseMeasured
from fismo_cli.training.world import World
from fismo_core import NoiseMeter

__all__ = ["RunNoise"]


class RunNoise(NoiseMeter):
    """The noise meter of a run.

    Args:
        optimizer: of the parameters.
        names: of the parameters, in the order of the optimizer's groups.
        every: steps between measurements; None: none.
        world: the processes that train together; the Fisher metric is at hand if there is one.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, names: Sequence[str], *, every: int | None, world: World = World()
    ) -> None:
        super().__init__(optimizer, names, fisher=world.size == 1, mean=world.mean)
        self._every, self._world = every, world
        self._failure: Exception | None = None

    def due(self, step: int) -> bool:
        """Whether the step (from 0) is measured."""
        return self._every is not None and (step + 1) % self._every == 0

    @contextmanager
    def piece(self, count: int) -> Iterator[None]:
        """As in `NoiseMeter`; what goes wrong in measuring is no failure of the step: `measured` says so."""
        done = False
        try:
            with super().piece(count):
                yield
                done = True
        except Exception as error:
            if not done:
                raise
            self._failure = error

    def measured(self, step: int, batch_size: int, *, pieces: int, scale: float = 1.0) -> NoiseMeasured | None:
        """Take in a measured step, as `finish` does.

        Args:
            step: the number of the step that is about to be done, from 1.
            batch_size: samples of the whole batch.
            pieces: of which size those that were added are: how many of them a batch has.
            scale: what the loss was multiplied by.

        Raises:
            Exception: whatever went wrong in measuring; then in all processes.
        """
        failure, self._failure = self._failure, None
        try:
            self._world.agree(failure)
        except Exception:
            self._pieces = []
            raise
        found = self.finish(batch_size, pieces=pieces, scale=scale)
        if found is None:
            return None
        return NoiseMeasured(
            step=step,
            batch_size=batch_size,
            signal=found.signal,
            noise=found.noise,
            noise_scale=found.scale,
            fisher_noise_scale=found.fisher_scale,
            by_parameter=found.by_parameter,
        )
