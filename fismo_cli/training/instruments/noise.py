"""Measures the gradient's noise scale: around `fismo_core.NoiseMeter`.

A piece is what one process sees of one micro-batch; where the whole batch is a single one, half of it is a piece, whose
gradient is taken besides in the steps that are measured.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fismo_cli.tasks.base import Batch
from fismo_cli.training.distributed.world import World
from fismo_cli.training.events import Event, NoiseMeasured
from fismo_cli.training.instruments.base import Instrument, Step
from fismo_cli.training.loss import TrainingLoss
from fismo_cli.training.step_start import untouched
from fismo_core import NoiseMeter

__all__ = ["NoiseInstrument"]


class NoiseInstrument(Instrument):
    """Measures the noise of the gradient every so many steps.

    Args:
        optimizer: of the parameters.
        names: of the parameters.
        every: steps between measurements; None: none but those that are asked for.
        loss: of the model.
        scaler: by which the loss is multiplied.
        halves: whether the gradient of half of a batch can be taken (a compiled model would be compiled anew).
        world: the processes that train together; the Fisher metric is at hand if there is one.
        sharded: whether each has a part of every weight: FSDP2 shows no process the gradients of its own samples, so
            that nothing is measured.
    """

    what = "the gradient's noise (train.noise_every)"

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Mapping[Tensor, str],
        *,
        every: int | None,
        loss: TrainingLoss,
        scaler: torch.amp.GradScaler,
        halves: bool,
        world: World,
        sharded: bool,
    ) -> None:
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = [names[parameter] for parameter in self._parameters]
        self.meter = NoiseMeter(optimizer, own, fisher=world.size == 1, mean=world.mean)
        self._every, self._loss, self._scaler, self._halves = every, loss, scaler, halves
        self._world, self._sharded = world, sharded
        self._failure: Exception | None = None
        self._step: Step | None = None
        self._events: list[Event] = []

    def before_step(self, step: Step) -> None:
        """Decide whether the step is measured."""
        due = step.measure or (self._every is not None and step.number % self._every == 0)
        self._step = step if due and not self._sharded else None

    def before_micro_batch(self, batch: Batch) -> None:
        """Take the gradient of half of a batch that comes in one piece."""
        if self._step is not None and not self._in_pieces(self._step):
            self._measure_half(batch)

    def around_micro_batch(self) -> AbstractContextManager[Any]:
        """Take in the gradient of a micro-batch that is a piece."""
        step = self._step
        return nullcontext() if step is None or not self._in_pieces(step) else self._piece(step.micro_batches)

    def after_backward(self) -> None:
        """Take in a measured step.

        Raises:
            Exception: whatever went wrong in measuring; then in all processes.
        """
        step, self._step = self._step, None
        if step is None:
            return
        failure, self._failure = self._failure, None
        try:
            self._world.agree(failure)
        except Exception:
            self.meter.drop()
            raise
        scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
        found = self.meter.finish(step.samples, pieces=max(2, step.micro_batches * self._world.size), scale=scale)
        if found is not None:
            self._events.append(
                NoiseMeasured(
                    step=step.number,
                    batch_size=step.samples,
                    signal=found.signal,
                    noise=found.noise,
                    noise_scale=found.scale,
                    fisher_noise_scale=found.fisher_scale,
                    by_parameter=found.by_parameter,
                )
            )

    def take_events(self) -> list[Event]:
        """The measurement, if there was one."""
        taken, self._events = self._events, []
        return taken

    def state_dict(self) -> dict[str, Any]:
        """That of the meter."""
        return self.meter.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.meter.load_state_dict(state)

    def _in_pieces(self, step: Step) -> bool:
        """Whether its batch comes in several pieces by itself."""
        return step.micro_batches * self._world.size > 1

    @contextmanager
    def _piece(self, count: int) -> Iterator[None]:
        """As in `NoiseMeter`; what goes wrong in measuring is no failure of the step: `after_backward` says so."""
        done = False
        try:
            with self.meter.piece(count):
                yield
                done = True
        except Exception as error:
            if not done:
                raise
            self._failure = error

    def _measure_half(self, batch: Batch) -> None:
        """Nothing but the meter is changed by it."""
        size = len(next(iter(batch.values())))
        if size % 2 or not self._halves:
            return
        half = {name: value[: size // 2] for name, value in batch.items()}
        with untouched(self._loss.model):
            loss = self._scaler.scale(self._loss(half))
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self.meter.add_piece({p: g for p, g in zip(self._parameters, gradients, strict=True) if g is not None})
