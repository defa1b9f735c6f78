"""Takes the optimizer steps of a run: micro-batches, gradients, clipping, and what is measured of a step on the way."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fismo_cli.errors import first_line
from fismo_cli.optimizers import optimizer_state_bytes
from fismo_cli.preset.schema import TrainConfig
from fismo_cli.tasks.base import Batch, Task
from fismo_cli.training.device import OptimizerClock, autocast, move
from fismo_cli.training.events import NoiseMeasured
from fismo_cli.training.noise import RunNoise
from fismo_cli.training.schedule import factor
from fismo_cli.training.seeding import derive_seed
from fismo_cli.training.spreading import SpreadModel
from fismo_cli.training.state import RunState
from fismo_cli.training.step_start import StepStart, untouched
from fismo_cli.training.world import World
from fismo_core import Mars, RadiusControl, StepProbe
from fismo_core.dtensors import full_tensor, local_part

__all__ = ["Stepper"]

MEASURED_NOISE, MEASURED_RADIUS = (
    "the gradient's noise (train.noise_every)",
    "what a step achieves (optimizer.adapt_radius)",
)


class Stepper:
    """Steps a model along the gradients of its task's batches, together with the other processes of a world.

    Args:
        task: the loss, and what is done to batches before.
        model: on `device`.
        optimizer: over its parameters; its groups' learning rates are the peaks of the schedule.
        train: the loop's settings.
        total: batches of the whole run.
        device: where the model is.
        world: the processes.
        spread: what goes with a model that FSDP2 has spread over them; None: each has all of it, by DDP.
        adapt_radius: steps between measurements by which FISMO's radius is adapted; None: fixed.
        mars: the correction in front of the optimizer, whose state is kept with the others.

    Attributes:
        radius: what FISMO's radius is multiplied by, and why.
        clock: of the optimizer's own work.
        gradient_norm: of the last step, before clipping; None where nothing is clipped.
        notes: what the user should know of the last steps; whoever tells it takes it out.
    """

    def __init__(
        self,
        *,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: TrainConfig,
        total: int,
        device: torch.device,
        world: World,
        spread: SpreadModel | None,
        adapt_radius: int | None,
        mars: Mars | None,
    ) -> None:
        self._task, self._model, self._optimizer, self._train, self._total = task, model, optimizer, train, total
        self._device, self._world, self._spread, self._mars = device, world, spread, mars
        self._replica = model  # as DDP has it, once training begins
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._matrices = {p for group in optimizer.param_groups if "radius_scale" in group for p in group["params"]}
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._noise = RunNoise(optimizer, [names[p] for p in self._parameters], every=train.noise_every, world=world)
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
        self._mixing = torch.Generator()
        self._start = StepStart(model)
        self.radius = RadiusControl(adapt_radius)
        self.clock = OptimizerClock(device)
        self.gradient_norm: Tensor | None = None
        self.notes: list[str] = []
        self._noted: set[str] = set()
        self._pieces: list[Batch] = []  # of the step's batch, if what it achieves is measured

    def join_replicas(self) -> None:
        """Wrap the model by DDP; not earlier, since all processes must come here, and preparing may fail in some."""
        if self._world.size > 1 and self._spread is None and self._replica is self._model:
            devices = [self._device] if self._device.type == "cuda" else None
            # Which parameters get a gradient may differ between steps and processes, and cannot be known beforehand.
            self._replica = DistributedDataParallel(self._model, device_ids=devices, find_unused_parameters=True)

    def step(
        self, batches: Iterator[Batch], state: RunState, seen: Callable[[Tensor], None], *, measure: bool = False
    ) -> NoiseMeasured | None:
        """Take one step; the state is then that after it.

        Nothing in here makes the host wait for a CUDA device, but float16 and measurements.

        Args:
            batches: the micro-batches to come, of this process.
            state: the run's counters.
            seen: told this process's mean loss, right before the weights change; until then a step that fails leaves
                everything as it was.
            measure: measure the noise whatever the interval says.

        Returns:
            The gradient's noise, where it was measured.
        """
        config = self._train
        share = factor(state.batches, self._total, config.schedule)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
            if "radius_scale" in group:
                group["radius_scale"] = self.radius.scale
        taken = self.batches_of_next(state)
        count = taken * config.accumulate
        # FSDP2 shows no process the gradients of its own samples.
        measured = self._spread is None and (measure or self._noise.due(state.step))
        number, samples = state.step + 1, taken * config.batch_size
        noise = probe = None
        self._pieces = []
        with self._undone_if_it_fails():
            if self.radius.due(state.step, share):
                with self._optional(MEASURED_RADIUS):
                    probe = StepProbe(self._model, self._parameters)
            loss = self._take_gradients(batches, state, taken, measured, probe)
            if self._spread is not None:
                self._spread.used.drop_unused()
            if measured:
                scale = self._scaler.get_scale() if self._scaler.is_enabled() else 1.0
                with self._optional(MEASURED_NOISE):
                    noise = self._noise.measured(number, samples, pieces=max(2, count * self._world.size), scale=scale)
            if config.clip_grad_norm is not None or probe is not None:
                self._scaler.unscale_(self._optimizer)
            if probe is not None:
                with self._optional(MEASURED_RADIUS):
                    probe.take_gradients()
            if config.clip_grad_norm is not None:
                gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
                self.gradient_norm = full_tensor(nn.utils.get_total_norm(gradients))
                nn.utils.clip_grads_with_norm_(self._parameters, config.clip_grad_norm, self.gradient_norm)
        seen(loss)
        with self.clock:
            self._scaler.step(self._optimizer)
        self._scaler.update()
        if probe is not None:
            with self._optional(MEASURED_RADIUS):
                self._adapt_radius(probe, state.step, loss)
            self._pieces = []
        self._optimizer.zero_grad(set_to_none=True)
        state.step, state.batches, state.batches_before = number, state.batches + taken, state.batches
        return noise

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
            "noise": self._noise.state_dict(),
            "radius": self.radius.state_dict(),
            "mars": None if self._mars is None else self._mars.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self._noise.load_state_dict(state["noise"])
        self.radius.load_state_dict(state["radius"])
        if self._mars is not None:
            self._mars.load_state_dict(state["mars"])

    def weights_problem(self) -> str | None:
        """Why the weights are of no use: the last loss is older than the last update, which may have broken them."""
        weights = [rows for parameter in self._parameters if (rows := local_part(parameter.detach())).numel()]
        largest = torch.stack(
            [norm.float() for norm in torch._foreach_norm(weights, ord=math.inf)] or [torch.zeros(())]
        )
        broken = not bool(torch.isfinite(largest).all())
        if self._spread is not None:  # each process has seen its own rows
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

    def _take_gradients(
        self, batches: Iterator[Batch], state: RunState, taken: int, measured: bool, probe: StepProbe | None
    ) -> Tensor:
        """Add up the gradients of a step's micro-batches; returns this process's mean loss."""
        count = taken * self._train.accumulate
        pieces = measured and count * self._world.size > 1
        losses: list[Tensor] = []
        for batch in self._micro_batches(batches, taken, state):
            if measured and not pieces:
                with self._optional(MEASURED_NOISE):
                    self._measure_half(batch)
            with self._gradients_kept(len(losses) + 1 == count), self._noise.piece(count) if pieces else nullcontext():
                loss = self._training_loss(self._replica, batch)
                if count > 1:
                    loss = loss / count
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if probe is not None:
                self._pieces.append(batch)
        return torch.stack(losses).sum()

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

    @contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Around a measurement: if it fails, that is noted once, and training goes on.

        Where weights are sharded, every forward pass takes all processes: one that fails alone cannot go on.
        """
        try:
            yield
        except Exception as error:
            if self._spread is not None:
                raise
            if what not in self._noted:
                self._noted.add(what)
                reason = first_line(error)
                self.notes.append(f"{what} could not be measured, and training goes on without: {reason}")

    def _measure_half(self, batch: Batch) -> None:
        """Take the gradient of half of a batch besides, for the noise scale; nothing else is changed by it."""
        size = len(next(iter(batch.values())))
        if size % 2 or self._train.compile:
            return  # there is no half, or one of another shape would be compiled anew
        half = {name: value[: size // 2] for name, value in batch.items()}
        with untouched(self._model):
            loss = self._scaler.scale(self._training_loss(self._model, half))
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        self._noise.add_piece({p: g for p, g in zip(self._parameters, gradients, strict=True) if g is not None})

    def _training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with autocast(self._device, self._train.precision):
            return self._task.training_loss(model, batch)

    def _adapt_radius(self, probe: StepProbe, step: int, loss: Tensor) -> None:
        """See what the step did to the loss of its own samples, and set the radius for the next one."""

        def mean_loss() -> Tensor:
            return torch.stack([self._training_loss(self._model, piece) for piece in self._pieces]).mean()

        def look() -> Tensor:
            return probe.loss_again(mean_loss)

        after = look() if self._spread is not None else self._world.together(look)
        # All ranks must come to the same: where each has seen its own rows, and where last digits differ between hosts.
        before, after = (self._world.mean(value.float()) for value in (loss, after))
        sums = self._world.mean(probe.sums(self._matrices))
        if self._spread is not None:
            sums = sums * self._world.size
        self.radius.update(step, probe.report(before, after, self._matrices, sums))

    def _gradients_kept(self, last: bool) -> AbstractContextManager[Any]:
        """For all micro-batches but the last, gradients stay in the process: they are averaged once a step."""
        if self._spread is not None:
            self._model.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif isinstance(self._replica, DistributedDataParallel) and not last:
            return self._replica.no_sync()
        return nullcontext()
