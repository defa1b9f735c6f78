"""Who is told what happens in a run: its record on disk, TensorBoard and other trackers, and whoever else wants to."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress

from fismo_cli.errors import first_line
from fismo_cli.reporting import Sink
from fismo_cli.reporting.jsonl import JsonlSink
from fismo_cli.reporting.tensorboard import TensorBoardSink
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.preparation import Prepared
from fismo_cli.runs.trackers import start_trackers
from fismo_cli.training.checkpoints.store import Loaded
from fismo_cli.training.events import Event, Noticed

__all__ = ["Teller"]


def _close_quietly(sink: Sink) -> None:
    """Closing writes again what could not be written; by then that has been said."""
    with suppress(Exception):
        sink.close()


class Teller:
    """Tells the sinks of a run its events. The run's record must be whole; of the others one that fails is left out."""

    def __init__(
        self,
        prepared: Prepared,
        run: RunDirectory,
        checkpoint: Loaded | None,
        sinks: Sequence[Sink],
        stack: ExitStack,
    ) -> None:
        self._trainer, self._record, self._others = prepared.trainer, JsonlSink(run.metrics), list(sinks)
        self._path = run.metrics
        stack.callback(_close_quietly, self._record)
        if prepared.loaded.preset.logging.tensorboard:
            tensorboard = TensorBoardSink(run.tensorboard, None if checkpoint is None else checkpoint.step)
            stack.callback(_close_quietly, tensorboard)
            self._others.insert(0, tensorboard)
        for tracker, note in start_trackers(prepared.loaded, run):
            if tracker is not None:
                stack.callback(_close_quietly, tracker)
                self._others.insert(0, tracker)
            self(Noticed(note))

    def __call__(self, event: Event) -> None:
        """Tell all of them."""
        try:
            self._record.write(event)
        except OSError as error:
            # This ends the run, in all processes at the same step.
            self._trainer.fail(OSError(error.errno, error.strerror, str(self._path)))
        for sink in list(self._others):
            try:
                sink.write(event)
            except Exception as error:
                self._others.remove(sink)
                reason = getattr(error, "strerror", None) or first_line(error)
                name = type(sink).__name__.removesuffix("Sink")
                self(Noticed(f"{name} gets no more of this run, since writing failed: {reason}"))
