"""Takes the optimizer steps of a run: micro-batches, gradients, clipping, and what is measured of a step on the way."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fismo_cli.errors import first_line
from fismo_cli.optimizers import optimizer_state_bytes
from fismo_cli.preset.schema import TrainConfig
from fismo_cli.tasks.base import Batch, Task
from fismo_cli.training.device import OptimizerClock, move
from fismo_cli.training.distributed.sharding import ShardedModel
from fismo_cli.training.distributed.world import World
from fismo_cli.training.events import Event
from fismo_cli.training.instruments import Instrument, Step
from fismo_cli.training.loss import TrainingLoss
from fismo_cli.training.schedule import factor
from fismo_cli.training.seeding import derive_seed
from fismo_cli.training.state import RunState
from fismo_cli.training.step_start import StepStart
from fismo_core import Mars
from fismo_core.dtensors import full_tensor, local_part

__all__ = ["Stepper"]


class Stepper:
    """Steps a model along the gradients of its task's batches, together with the other processes of a world.

    Args:
        task: what is done to batches before.
        loss: of the model.
        optimizer: over its parameters; its groups' learning rates are the peaks of the schedule.
        train: the loop's settings.
        total: batches of the whole run.
        device: where the model is.
        scaler: of the loss, for float16.
        instruments: what looks on, by the names that their states have in a checkpoint.
        world: the processes.
        sharded_model: what goes with a model that FSDP2 has spread over them; None: each has all of it, by DDP.
        mars: the correction in front of the optimizer, whose state is kept with the others.

    Attributes:
        clock: of the optimizer's own work.
        gradient_norm: of the last step, before clipping; None where nothing is clipped.
        notes: what the user should know of the last steps; whoever tells it takes it out.
    """

    def __init__(
        self,
        *,
        task: Task,
        loss: TrainingLoss,
        optimizer: torch.optim.Optimizer,
        train: TrainConfig,
        total: int,
        device: torch.device,
        scaler: torch.amp.GradScaler,
        instruments: Mapping[str, Instrument],
        world: World,
        sharded_model: ShardedModel | None,
        mars: Mars | None,
    ) -> None:
        self._task, self._loss, self._model, self._optimizer = task, loss, loss.model, optimizer
        self._train, self._total, self._device, self._scaler = train, total, device, scaler
        self._instruments, self._world, self._sharded_model, self._mars = instruments, world, sharded_model, mars
        self._replica = self._model  # as DDP has it, once training begins
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._mixing = torch.Generator()
        self._start = StepStart(self._model)
        self.clock = OptimizerClock(device)
        self.gradient_norm: Tensor | None = None
        self.notes: list[str] = []
        self._noted: set[str] = set()

    def join_replicas(self) -> None:
        """Wrap the model by DDP; not earlier, since all processes must come here, and preparing may fail in some."""
        if self._world.size > 1 and self._sharded_model is None and self._replica is self._model:
            devices = [self._device] if self._device.type == "cuda" else None
            # Which parameters get a gradient may differ between steps and processes, and cannot be known beforehand.
            self._replica = DistributedDataParallel(self._model, device_ids=devices, find_unused_parameters=True)

    def step(
        self, batches: Iterator[Batch], state: RunState, seen: Callable[[Tensor], None], *, measure: bool = False
    ) -> list[Event]:
        """Take one step; the state is then that after it.

        Nothing in here makes the host wait for a CUDA device, but float16 and measurements.

        Args:
            batches: the micro-batches to come, of this process.
            state: the run's counters.
            seen: told this process's mean loss, right before the weights change; until then a step that fails leaves
                everything as it was.
            measure: measure the noise whatever the interval says.

        Returns:
            What the instruments have to say.
        """
        config = self._train
        lr_factor = factor(state.batches, self._total, config.schedule)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * lr_factor
        taken = self.batches_of_next(state)
        step = Step(state.step + 1, lr_factor, taken * config.batch_size, taken * config.accumulate, measure)
        with self._undone_if_it_fails():
            self._tell(lambda instrument: instrument.before_step(step))
            loss = self._take_gradients(batches, state, taken)
            if self._sharded_model is not None:
                self._sharded_model.used.drop_unused()
            self._tell(lambda instrument: instrument.after_backward())
            if config.clip_grad_norm is not None or any(i.needs_unscaled() for i in self._instruments.values()):
                self._scaler.unscale_(self._optimizer)
            self._tell(lambda instrument: instrument.before_update())
            if config.clip_grad_norm is not None:
                self._clip(config.clip_grad_norm)
        seen(loss)
        with self.clock:
            self._scaler.step(self._optimizer)
        self._scaler.update()
        self._tell(lambda instrument: instrument.after_update(loss))
        self._optimizer.zero_grad(set_to_none=True)
        state.step, state.batches, state.batches_before = step.number, state.batches + taken, state.batches
        return [event for instrument in self._instruments.values() for event in instrument.take_events()]

    def batches_of_next(self, state: RunState) -> int:
        """How many batches of `train.batch_size` the next step takes; none after the last."""
        return min(state.growth, self._total - state.batches)

    def optimizer_state_bytes(self) -> int:
        """Bytes of what the optimizer keeps in this process, variance reduction included."""
        return optimizer_state_bytes(self._optimizer) + (0 if self._mars is None else self._mars.state_bytes())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds besides model and optimizer."""
        return {
            "scaler": self._scaler.state_dict(),
            **{name: instrument.state_dict() for name, instrument in self._instruments.items()},
            "mars": None if self._mars is None else self._mars.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        for name, instrument in self._instruments.items():
            instrument.load_state_dict(state[name])
        if self._mars is not None:
            self._mars.load_state_dict(state["mars"])

    def weights_problem(self) -> str | None:
        """Why the weights are of no use: the last loss is older than the last update, which may have broken them."""
        weights = [rows for parameter in self._parameters if (rows := local_part(parameter.detach())).numel()]
        largest = torch.stack(
            [norm.float() for norm in torch._foreach_norm(weights, ord=math.inf)] or [torch.zeros(())]
        )
        broken = not bool(torch.isfinite(largest).all())
        if self._sharded_model is not None:  # each process has seen its own rows
            broken = self._world.any(broken)
        return "the weights are no longer finite" if broken else None

    def gradients_problem(self) -> str | None:
        """Why an optimizer may have failed: a gradient that is not finite."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
        return None if finite else "the gradients are no longer finite"

    def _micro_batches(self, batches: Iterator[Batch], taken: int, state: RunState) -> Iterator[Batch]:
        """The micro-batches of a step that takes so many batches of `train.batch_size`, ready for the model."""
        config = self._train
        for number in range(taken):
            for micro in range(config.accumulate):
                batch = move(next(batches), self._device)
                mixing = derive_seed("mixing", config.seed, state.batches + number, micro, *self._world.apart())
                yield self._task.prepare(batch, self._mixing.manual_seed(mixing))

    def _take_gradients(self, batches: Iterator[Batch], state: RunState, taken: int) -> Tensor:
        """Add up the gradients of a step's micro-batches; returns this process's mean loss."""
        count = taken * self._train.accumulate
        numbered = enumerate(self._micro_batches(batches, taken, state), start=1)
        return torch.stack([self._add_gradient(batch, count, last=number == count) for number, batch in numbered]).sum()

    def _add_gradient(self, batch: Batch, count: int, *, last: bool) -> Tensor:
        """Add one of `count` micro-batches' part of the mean gradient; returns its part of the mean loss."""
        self._tell(lambda instrument: instrument.before_micro_batch(batch))
        with ExitStack() as stack:
            stack.enter_context(self._gradients_kept(last))
            for instrument in self._instruments.values():
                stack.enter_context(instrument.around_micro_batch())
            loss = self._loss(batch, self._replica) / count
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _clip(self, largest: float) -> None:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self.gradient_norm = full_tensor(nn.utils.get_total_norm(gradients))
        nn.utils.clip_grads_with_norm_(self._parameters, largest, self.gradient_norm)

    @contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        """Around all of a step that comes before the weights change: if it fails, all is as before the step."""
        self._start.take()
        try:
            yield
        except Exception:
            self._start.restore()
            self._optimizer.zero_grad(set_to_none=True)
            raise

    def _tell(self, part: Callable[[Instrument], None]) -> None:
        """Tell the instruments of a part of a step: if one fails, that is noted once, and training goes on.

        Where weights are sharded, every forward pass takes all processes: one that fails alone cannot go on.
        """
        for instrument in self._instruments.values():
            try:
                part(instrument)
            except Exception as error:
                if self._sharded_model is not None:
                    raise
                if instrument.what not in self._noted:
                    self._noted.add(instrument.what)
                    why = f"could not be measured, and training goes on without: {first_line(error)}"
                    self.notes.append(f"{instrument.what} {why}")

    def _gradients_kept(self, last: bool) -> AbstractContextManager[Any]:
        """For all micro-batches but the last, gradients stay in the process: they are averaged once a step."""
        if self._sharded_model is not None:
            self._model.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif isinstance(self._replica, DistributedDataParallel) and not last:
            return self._replica.no_sync()
        return nullcontext()
