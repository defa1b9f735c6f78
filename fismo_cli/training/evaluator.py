"""Measures a run's model: on the validation part while it trains, on the test part when it has; knows the best step."""

import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fismo_cli.preset.schema import TrainConfig
from fismo_cli.tasks.base import Part, Task
from fismo_cli.training import events
from fismo_cli.training.distributed.world import World
from fismo_cli.training.evaluation import Measured, evaluate_part
from fismo_cli.training.signals import StopRequest
from fismo_cli.training.state import RunState, Stopwatch

__all__ = ["Evaluator"]


class Evaluator:
    """Evaluates one model, whose weights change meanwhile.

    Args:
        task: data and metrics.
        model: to measure; the average of the weights where there is one.
        train: the run's settings.
        batch_size: samples that this process sees at once.
        device: where the model is.
        workers: data loading processes.
        stop: asked between batches.
        watch: the training clock, which stands still meanwhile.
        world: the processes that share the batches.
    """

    def __init__(
        self,
        *,
        task: Task,
        model: nn.Module,
        train: TrainConfig,
        batch_size: int,
        device: torch.device,
        workers: int,
        stop: StopRequest,
        watch: Stopwatch,
        world: World,
    ) -> None:
        self._task, self._model, self._train, self._batch_size = task, model, train, batch_size
        self._device, self._workers, self._stop, self._watch, self._world = device, workers, stop, watch, world
        self._confusions: dict[int, Tensor] = {}
        self._test_confusion: Tensor | None = None

    def enough(self, state: RunState) -> bool:
        """Whether the validation loss has not become better for as long as the run is patient."""
        patience = self._train.patience
        return patience is not None and state.since_best >= patience

    def best_to_keep(self, state: RunState) -> bool:
        """Whether the weights as they are would be the final ones, if no later step is better."""
        return self._train.final_model == "best" and state.best_step == state.step

    def final_step(self, state: RunState) -> int:
        """The step whose weights are the final model's, if the run ends here."""
        best = state.best_step if self._train.final_model == "best" else None
        return state.step if best is None else best

    def confusions(self, state: RunState) -> dict[str, Tensor]:
        """The final model's confusion matrices by part, of tasks that have them."""
        found = {"validation": self._confusions.get(self.final_step(state)), "test": self._test_confusion}
        return {part: matrix for part, matrix in found.items() if matrix is not None}

    def validate(self, state: RunState) -> Iterator[events.Evaluated]:
        """Measure the validation part, which there must be; no event if a signal asked to leave: it is due again."""
        started = time.perf_counter()
        assert self._task.validation is not None
        measured = self._measure(self._task.validation)
        if measured is None:
            return
        metrics = measured.metrics
        best = math.isfinite(metrics["loss"]) and (state.best_loss is None or metrics["loss"] < state.best_loss)
        state.since_best = 0 if best else state.since_best + 1
        if best:
            state.best_step, state.best_validation = state.step, metrics
        state.evaluated_step, state.validation = state.step, metrics
        if measured.confusion is not None:
            before = self._confusions.items()
            kept = {step: matrix for step, matrix in before if step == state.best_step}
            self._confusions = {**kept, state.step: measured.confusion}
        yield self._event("validation", metrics, state, started, best)

    def count_classes(self, state: RunState) -> bool:
        """Make sure that the final model's confusion matrix is there: a resumed run may not have counted it.

        Returns:
            False if a signal asked to leave meanwhile.
        """
        part, step = self._task.validation, self.final_step(state)
        if part is None or not self._task.confusion_classes or step in self._confusions:
            return True
        measured = self._measure(part)
        if measured is None:
            return False
        assert measured.confusion is not None
        self._confusions[step] = measured.confusion
        return True

    def test(self, state: RunState) -> events.Evaluated | None:
        """Measure the test part, which there must be; None if a signal asked to leave."""
        started = time.perf_counter()
        assert self._task.test is not None
        measured = self._measure(self._task.test)
        if measured is None:
            return None
        self._test_confusion = measured.confusion
        return self._event("test", measured.metrics, state, started)

    def _measure(self, part: Part) -> Measured | None:
        self._world.same_as_main(self._model.buffers())  # statistics of batch norm differ: each saw its own share
        return evaluate_part(
            self._task,
            self._model,
            part,
            batch_size=self._batch_size,
            device=self._device,
            precision=self._train.precision,
            workers=self._workers,
            stop=self._stop,
            world=self._world,
        )

    def _event(
        self, split: events.Split, metrics: dict[str, float], state: RunState, started: float, best: bool = False
    ) -> events.Evaluated:
        seconds, samples = time.perf_counter() - started, state.batches * self._train.batch_size
        return events.Evaluated(state.step, split, metrics, seconds, self._watch.read(), best, samples)
