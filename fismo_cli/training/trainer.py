"""The training loop: a generator of events that trains, evaluates, saves checkpoints and stops when asked to.

Built from plain parts: where a preset came from, where a run is kept and who reads its events is settled outside.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fismo_cli.blocks import recompute_activations
from fismo_cli.errors import FismoError, UsageError
from fismo_cli.optimizers import learning_rates
from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig, TrainConfig
from fismo_cli.tasks.base import Batch, Task
from fismo_cli.training import events
from fismo_cli.training.averaging import WeightAverage
from fismo_cli.training.batch_growth import grown
from fismo_cli.training.checkpoints.saving import Saving
from fismo_cli.training.checkpoints.store import CheckpointStore, Loaded
from fismo_cli.training.data.loading import fetch, take
from fismo_cli.training.data.order import MicroBatchKeys
from fismo_cli.training.device import explain_memory
from fismo_cli.training.distributed.sharding import ShardedModel
from fismo_cli.training.distributed.together import check_shares
from fismo_cli.training.distributed.world import World, failed_everywhere
from fismo_cli.training.evaluator import Evaluator
from fismo_cli.training.instruments import NoiseInstrument, RadiusInstrument
from fismo_cli.training.loss import TrainingLoss
from fismo_cli.training.schedule import total_steps, warmup_steps
from fismo_cli.training.seeding import derive_seed, seed_everything
from fismo_cli.training.signals import StopRequest
from fismo_cli.training.state import LossWindow, RunState, Stopwatch
from fismo_cli.training.stepping import Stepper
from fismo_cli.training.summary import Status, summarise
from fismo_core import Mars, RadiusControl

__all__ = ["RunName", "Trainer"]


@dataclass(frozen=True)
class _End:
    """How a run ended, why (None: its last step was done, or a signal came), and its metrics on the test part."""

    status: Status
    reason: str | None = None
    test: dict[str, float] | None = None


@dataclass(frozen=True)
class RunName:
    """What a run is called in its events and summary."""

    preset: str
    optimizer: str


class Trainer:
    """Trains one model on one task.

    Args:
        task: data, loss and metrics.
        model: the model, in float32, on any device; moved to `device` and trained in place.
        optimizer: over the model's parameters on `device`; its groups' learning rates are the peaks of the schedule.
        train: the loop's settings.
        evaluate: when to evaluate.
        checkpoint: when to save.
        device: where to train.
        workers: data loading processes.
        name: of the run, for events and summary.
        world: the processes that train the model together, each on its share of every batch.
        sharded_model: what goes with a model that FSDP2 has spread over them; None: each has all of it, by DDP.
        adapt_radius: steps between measurements of what steps achieve, by which FISMO's radius is adapted; None: fixed.
        mars: the correction in front of the optimizer, whose state a checkpoint keeps.

    Raises:
        UsageError: if the training part is smaller than a batch, a batch cannot be shared out, the model has no blocks
            whose activations could be computed again, or there is no validation part where one is needed.
    """

    def __init__(
        self,
        *,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: TrainConfig,
        evaluate: EvaluateConfig,
        checkpoint: CheckpointConfig,
        device: torch.device,
        workers: int = 0,
        name: RunName,
        world: World = World(),
        sharded_model: ShardedModel | None = None,
        adapt_radius: int | None = None,
        mars: Mars | None = None,
    ) -> None:
        self.task, self.model, self.optimizer, self.device, self.name = task, model, optimizer, device, name
        self.train_config, self.evaluate_config, self.checkpoint_config = train, evaluate, checkpoint
        self.workers, self.world, self._sharded_model = workers, world, sharded_model
        check_shares(train.batch_size, train.accumulate, world.size)
        for key, asked in (("patience", train.patience is not None), ("final_model", train.final_model == "best")):
            if asked and task.validation is None:
                raise UsageError(f"train.{key}: the data has no validation part (see data.validation_fraction)")
        self.total = total_steps(train, len(task.train))
        twin = None if sharded_model is None else sharded_model.average
        self.average = WeightAverage(model, train.ema_decay, twin) if train.ema_decay is not None else None
        if train.activation_checkpointing:
            recompute_activations(model, compiled=train.compile)
        if train.compile and sharded_model is None:
            model.compile()
        loss, sharded = TrainingLoss(task, model, device, train.precision), sharded_model is not None
        scaler = torch.amp.GradScaler(device.type, enabled=train.precision == "float16")
        names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        noise = NoiseInstrument(
            optimizer,
            names,
            every=train.noise_every,
            loss=loss,
            scaler=scaler,
            halves=not train.compile,
            world=world,
            sharded=sharded,
        )
        self._radius = RadiusControl(adapt_radius)
        radius = RadiusInstrument(self._radius, optimizer, loss, world=world, sharded=sharded)
        self._stepper = Stepper(
            task=task,
            loss=loss,
            optimizer=optimizer,
            train=train,
            total=self.total,
            device=device,
            scaler=scaler,
            instruments={"noise": noise, "radius": radius},
            world=world,
            sharded_model=sharded_model,
            mars=mars,
        )
        self._peak_lr = learning_rates(optimizer)
        self._state = RunState()
        self._window = LossWindow(device, max_loss=train.max_loss, world=world)
        self._saving = Saving(
            model=model,
            average=self.average,
            optimizer=optimizer,
            stepper=self._stepper,
            window=self._window,
            world=world,
            seed=train.seed,
        )
        self._watch = Stopwatch()
        self._assembled: nn.Module | None = None
        self._stop = StopRequest()
        self._evaluator = Evaluator(
            task=task,
            model=self.final_model,
            train=train,
            batch_size=evaluate.batch_size or self._samples_at_once,
            device=device,
            workers=workers,
            stop=self._stop,
            watch=self._watch,
            world=world,
        )
        self._failure: Exception | None = None
        self._saved_step: int | None = None
        self._sound = True

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._state.step

    @property
    def final_model(self) -> nn.Module:
        """The model to evaluate: the average of the weights where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def kept_model(self) -> nn.Module:
        """The same to keep at the end: whole, also where it is spread over processes."""
        return self.final_model if self._assembled is None else self._assembled

    @property
    def confusions(self) -> dict[str, Tensor]:
        """The final model's confusion matrices by part, of tasks that have them."""
        return self._evaluator.confusions(self._state)

    def fit(self, store: CheckpointStore | None = None, resume: Loaded | None = None) -> Generator[events.Event]:
        """Train to the end, or until a signal or divergence; the last event is `Finished`.

        Args:
            store: where checkpoints go; None saves none. Of `train.final_model: best` there must be one.
            resume: the checkpoint to continue from, bit for bit.

        Raises:
            FismoError: if memory runs out or a checkpoint cannot be written, or read where its model is the best.
        """
        if resume is None:
            # Apart from initialisation's draws, so that models built in different ways see the same augmentation.
            seed_everything(derive_seed("training", self.train_config.seed, *self.world.apart()))
        else:
            self._state = self._saving.load(resume.state)
        resumed_from = self._saved_step = None if resume is None else resume.step
        self._stepper.join_replicas()
        yield events.RunStarted(
            preset=self.name.preset,
            optimizer=self.name.optimizer,
            seed=self.train_config.seed,
            device=str(self.device),
            total_steps=self._total_steps,
            resumed_from_step=resumed_from,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            train_samples=len(self.task.train),
            total_samples=self.total * self.train_config.batch_size,
            samples=self._samples,
        )
        with self._stop, explain_memory(self.device, self._memory_advice):
            yield from self._run(store, resumed_from)

    def fail(self, error: Exception) -> None:
        """Make `fit` raise this before the next step, in all processes."""
        self._failure = self._failure or error

    def check(self) -> None:
        """Raise what `fail` was told too late for `fit` to raise it."""
        if self._failure is not None:
            raise self._failure

    @property
    def stopped_by(self) -> int | None:
        """The signal that asked to stop."""
        return self._stop.signal

    def rescue(self, store: CheckpointStore, error: Exception) -> str | None:
        """After `fit` has failed, save a checkpoint of the last whole step, unless there is one.

        Args:
            store: where checkpoints go.
            error: what was raised.

        Returns:
            Why that could not be done; None if it was, or if there is nothing to save.
        """
        state = self._state
        if state.step == 0 or self._saved_step == state.step:
            return None
        if self.world.size > 1 and not failed_everywhere(error):
            return "it takes all processes"  # of which others are in the middle of something
        if not self._sound:
            return f"step {state.step + 1} failed while the weights were changing"
        try:
            if (problem := self._window.problem() or self._stepper.weights_problem()) is not None:
                return problem
            self._save(store)
        except Exception as worse:
            if state.batches < self.total:
                return str(worse)
            try:  # nothing but measuring is left to do, for which the optimizer is not needed
                self._save(store, with_optimizer=False)
            except Exception as still_worse:
                return str(still_worse)
        return None

    def try_steps(self, count: int, measured: int = 0) -> tuple[list[float], float | None]:
        """Take a few steps from the start; nothing is logged or saved.

        Args:
            count: steps whose time is taken.
            measured: steps after them in which the noise scale is measured.

        Returns:
            The seconds of each step, and the noise scale in samples, if it could be measured.
        """
        seconds = []
        self._stepper.join_replicas()
        self.model.train()
        with explain_memory(self.device, self._memory_advice), closing(self.batches()) as batches:
            for _ in range(min(count, self.total)):
                before = time.perf_counter()
                self.take_step(batches)
                self._window.mean()  # waits for the device
                self._stepper.clock.read()
                seconds.append(time.perf_counter() - before)
            for _ in range(min(measured, self.total - self._state.batches)):
                self.take_step(batches, measure=True)
        return seconds, self._state.noise_scale

    def _run(self, store: CheckpointStore | None, resumed_from: int | None) -> Iterator[events.Event]:
        self.model.train()
        with closing(self.batches()) as batches:
            end = yield from self._steps(batches, store)
        self._watch.pause()
        if end.status == "completed":
            end = yield from self._conclude(end, store)
        yield from self._finish(end, resumed_from)

    def _conclude(self, end: "_End", store: CheckpointStore | None) -> Generator[events.Event, None, "_End"]:
        """After the last step: the final model, and what it does on the test part."""
        if self._evaluator.final_step(self._state) != self._state.step:
            assert store is not None
            if self._saved_step != self._state.step:  # to be gone on from, if anything fails from here on
                yield self._save(store)
            yield events.Noticed(self._take_best(store))
        if self._sharded_model is not None:
            self._assembled = self._sharded_model.assembled(self.final_model, keep=self.world.main)
        yield events.Trained(self._state.step)
        leave = self._take(iter(()), 0) is None
        if not leave:
            leave = not self._evaluator.count_classes(self._state)
        if self.task.test is not None and not leave:
            measured = self._evaluator.test(self._state)
            leave = measured is None  # asked to in the middle of it
            if measured is not None:
                yield measured
                end = replace(end, test=measured.metrics)
        if leave:
            if store is not None and self._saved_step != self._state.step:
                yield self._save(store)
            return _End("interrupted")
        return end

    def _take_best(self, store: CheckpointStore) -> str:
        """Put the weights with the best validation loss in the place of the last ones; what to tell about it."""
        state = self._state
        best = self.world.together(lambda: store.load(state.best_step))
        if best is None:
            raise FismoError(f"the checkpoint of step {state.best_step}, whose model is the best, is gone")
        self._saving.load_weights(best.state)
        state.validation = state.best_validation
        return f"the model is that of step {state.best_step}, which has the best validation loss (train.final_model)"

    def _steps(self, batches: Iterator[Batch], store: CheckpointStore | None) -> Generator[events.Event, None, "_End"]:
        """All steps that are left, and what is due between them; returns how they ended.

        The batches of a step are waited for before anything of it is done: if there are none, or a signal comes
        meanwhile, all is as after the step before.
        """
        state, log_every = self._state, self.train_config.log_every
        self._watch.start(state.seconds)
        while True:
            step, last = state.step, state.batches == self.total or self._evaluator.enough(state)
            evaluation_due = state.evaluated_step != step and (last or _due(state, self.evaluate_config.every))
            checkpoint_due = self._saved_step != step and _due(state, self.checkpoint_config.every)
            taken = self._take(batches, self._stepper.batches_of_next(state) * self.train_config.accumulate)
            leave = taken is None
            if evaluation_due or checkpoint_due or leave:
                self._stepper.clock.read()
                problem = self._window.problem() or self._stepper.weights_problem()  # the same in all processes
                self._watch.pause()
                if problem is not None:
                    return _End("diverged", problem)
                if evaluation_due and not leave and self.task.validation is not None:
                    yield from self._evaluator.validate(state)
                    leave = self.world.any(self._stop.requested())
                    last = last or self._evaluator.enough(state)
                    checkpoint_due = checkpoint_due or self._evaluator.best_to_keep(state)
                if store is not None and (checkpoint_due or (leave and self._saved_step != step)):
                    yield self._save(store)
                if leave:
                    return _End("interrupted")
                self._watch.start()
            if last:
                return _End("completed", self._why_early())
            assert taken is not None  # None only where a signal asks to leave
            try:
                seen = self.take_step(taken)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # of optimizers that decompose gradients
                problem = self._window.problem() or self._stepper.gradients_problem()
                if problem is None:
                    raise
                return _End("diverged", problem)
            for note in self.take_notes():
                yield events.Noticed(note)
            for event in seen:
                yield event
                if isinstance(event, events.NoiseMeasured):
                    yield from self._grow(event)
            if _due(state, log_every) or state.batches == self.total:
                if (problem := self._window.problem()) is not None:
                    return _End("diverged", problem)
                yield self._log()

    def _why_early(self) -> str | None:
        """Why a run has ended before its last step; None if it has not."""
        if self._state.batches == self.total:
            return None
        return f"no better validation loss in {self._state.since_best} evaluations (train.patience)"

    def _take(self, batches: Iterator[Batch], count: int) -> Iterator[Batch] | None:
        """The next micro-batches; None if any process was asked to leave.

        Raises:
            Exception: what failed here or in another process.
        """
        failure, self._failure = self._failure, None
        return take(batches, count, stop=self._stop, world=self.world, failure=failure)

    def take_notes(self) -> list[str]:
        """What the user should know of the last steps, once."""
        notes, self._stepper.notes = self._stepper.notes, []
        return notes

    def batches(self) -> Generator[Batch]:
        """The micro-batches of this process, from the next step to the end of the run."""
        keys = MicroBatchKeys(
            seed=self.train_config.seed,
            samples=len(self.task.train),
            batch_size=self.train_config.batch_size,
            accumulate=self.train_config.accumulate,
            start=self._state.batches,
            total=self.total,
            rank=self.world.rank,
            parts=self.world.size,
            balance=self.task.balance,
        )
        return fetch(
            self.task.train,
            keys,
            workers=self.workers,
            at_once=self.train_config.accumulate,
            pin=self.device.type == "cuda",
            waiting=self._stop.waiting,
        )

    def take_step(self, batches: Iterator[Batch], *, measure: bool = False) -> list[events.Event]:
        """Take one optimizer step; returns what was measured in it.

        Args:
            batches: from `batches`.
            measure: measure the gradient's noise whatever the interval says.
        """
        state = self._state
        seen = self._stepper.step(batches, state, self._see, measure=measure)
        for event in seen:
            if isinstance(event, events.NoiseMeasured):
                state.noise_scale, state.fisher_noise_scale = event.noise_scale, event.fisher_noise_scale
        if self.average is not None:
            self.average.update(self.model, step=state.step)
        self._sound = True
        return seen

    def _see(self, loss: Tensor) -> None:
        """Take in a step's loss; from here to the end of the step the weights are between two steps."""
        self._window.add(loss)
        self._sound = False

    def _grow(self, noise: events.NoiseMeasured) -> Iterator[events.Event]:
        """Let the batch grow from the next step on, if there is one and the noise asks for it."""
        config, state = self.train_config, self._state
        early = state.batches < warmup_steps(self.total, config.schedule)
        if config.batch_growth is None or early or state.batches == self.total:
            return
        growth = grown(state.growth, noise, config.batch_size, config.batch_growth)
        if growth != state.growth:
            state.growth = growth
            yield events.BatchGrown(state.step, growth * config.batch_size, noise.noise_scale)

    def optimizer_state_bytes(self) -> int:
        """Bytes of what the optimizer keeps in this process, variance reduction included."""
        return self._stepper.optimizer_state_bytes()

    @property
    def _samples(self) -> int:
        return self._state.batches * self.train_config.batch_size

    @property
    def _total_steps(self) -> int | None:
        """All steps of the run, where they can be known: until it is over, not if the batch may grow."""
        if self._state.batches == self.total:
            return self._state.step
        return self.total if self.train_config.batch_growth is None else None

    @property
    def _samples_at_once(self) -> int:
        """Samples of a micro-batch that this process sees."""
        return max(1, self.train_config.batch_size // self.train_config.accumulate // self.world.size)

    def _log(self) -> events.StepLogged:
        state = self._state
        self._stepper.clock.read()
        seconds = self._watch.read()
        samples = (state.batches - state.logged_batches) * self.train_config.batch_size
        elapsed = seconds - state.logged_seconds
        norm = self._stepper.gradient_norm
        state.train_loss = self._window.mean()
        state.logged_batches, state.logged_seconds = state.batches, seconds
        self._window.reset()
        return events.StepLogged(
            step=state.step,
            loss=state.train_loss,
            lr=learning_rates(self.optimizer),
            gradient_norm=None if norm is None else norm.item(),
            samples=self._samples,
            samples_per_second=samples / elapsed if elapsed > 0 else 0.0,
        )

    def _save(self, store: CheckpointStore, *, with_optimizer: bool = True) -> events.CheckpointSaved:
        state = self._state
        state.seconds, state.optimizer_seconds = self._watch.read(), self._stepper.clock.read()
        content = self._saving.content(state, with_optimizer=with_optimizer)
        evaluated = state.validation is not None and state.evaluated_step == state.step
        loss = state.validation["loss"] if evaluated and state.validation is not None else None
        store.save(state.step, content, validation_loss=loss, world=self.world)
        self._saved_step = state.step
        return events.CheckpointSaved(state.step, str(store.path(state.step)))

    def _finish(self, end: "_End", resumed_from: int | None) -> Iterator[events.Event]:
        state, status = self._state, end.status
        if status == "diverged":
            yield events.Diverged(state.step, str(end.reason))
        signal = self.world.highest(self._stop.signal or 0)
        if status == "interrupted":
            yield events.Interrupted(state.step, signal)
        yield events.Finished(
            summarise(
                state,
                status=status,
                reason=end.reason,
                signal=signal if status == "interrupted" else None,
                preset=self.name.preset,
                optimizer=self.name.optimizer,
                train=self.train_config,
                device=self.device,
                total_steps=self._total_steps,
                resumed_from=resumed_from,
                test=end.test,
                best_is_final=self.train_config.final_model == "best",
                seconds=self._watch.read(),
                optimizer_seconds=self._stepper.clock.read(),
                world_size=self.world.size,
                radius_scale=self._radius.scale,
                peak_lr=self._peak_lr,
            )
        )

    def _memory_advice(self) -> str:
        config = self.train_config
        return (
            f"in step {self._state.step} with {self._samples_at_once} samples at once. Set "
            f"train.accumulate={config.accumulate * 2} to halve that at the same batch size (evaluation has "
            "evaluate.batch_size), or train.activation_checkpointing=true, or train.precision=bfloat16"
        )


def _due(state: RunState, every: int | None) -> bool:
    """Whether something is due every so many batches; a step of a grown batch may have passed it."""
    return every is not None and state.batches // every > state.batches_before // every
