"""Progress for people, on stderr: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from fismo_cli.metrics import shown
from fismo_cli.reporting import Sink
from fismo_cli.reporting.console import say
from fismo_cli.training.events import (
    BatchGrown,
    CheckpointSaved,
    Diverged,
    Evaluated,
    Event,
    Interrupted,
    NoiseMeasured,
    Noticed,
    RunStarted,
    StepLogged,
)

__all__ = ["LiveProgress", "PlainProgress", "progress_sink"]


def progress_sink(console: Console) -> Sink:
    """The progress that fits the console."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


class PlainProgress:
    """Lines of text: every evaluation and event, and progress at most once in a while.

    Args:
        console: where to print.
        interval: seconds between two lines of progress.
        clock: tells the seconds.
    """

    def __init__(self, console: Console, interval: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._interval, self._clock = console, interval, clock
        self._total: int | None = None
        self._next, self._noise = -float("inf"), ""

    def write(self, event: Event) -> None:
        """Print what the event says."""
        match event:
            case RunStarted():
                self._total = event.total_steps
            case NoiseMeasured():
                self._noise = _noise(event)
            case StepLogged():
                if self._clock() < self._next and event.step != self._total:
                    return
                self._next = self._clock() + self._interval
        text = describe(event, self._total)
        if text is not None:
            say(self._console, text + (self._noise if isinstance(event, StepLogged) else ""))

    def close(self) -> None:
        """Nothing is held."""


class LiveProgress:
    """A bar with loss, metric, learning rate, speed and time left; other events are lines above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            BarColumn(bar_width=min(40, max(8, console.width // 6)), table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[steps]}"),
            _Measures(),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self._bar: TaskID | None = None
        self._total: int | None = None
        self._measures = dict.fromkeys(("loss", "metric", "lr", "speed", "noise"), "")

    def write(self, event: Event) -> None:
        """Move the bar or print a line above it."""
        match event:
            case RunStarted():
                self._total = event.total_steps
                self._progress.start()
                steps = _step(event.resumed_from_step or 0, self._total)
                self._bar = self._progress.add_task(
                    "", total=event.total_samples, completed=event.samples, measures=(), steps=steps
                )
            case NoiseMeasured():
                self._measures["noise"] = _noise(event).strip()
            case StepLogged():
                self._measures["loss"] = f"loss {event.loss:.4f}"
                self._measures["lr"] = f"lr {next(iter(event.lr.values())):.2g}"
                self._measures["speed"] = f"{event.samples_per_second:,.0f} samples/s"
                self._update(completed=event.samples, steps=_step(event.step, self._total))
                return
            case Evaluated():
                self._measures["metric"] = f"{event.split} {_headline(event.metrics)}"
                self._update()
        text = describe(event, self._total)
        if text is not None:
            self._progress.console.print(text, markup=False, emoji=False, highlight=False)

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()

    def _update(self, completed: int | None = None, **fields: Any) -> None:
        if self._bar is not None:
            measures = tuple(filter(None, self._measures.values()))
            self._progress.update(self._bar, completed=completed, measures=measures, **fields)


class _Measures(ProgressColumn):
    """The one column that gives way on a narrow terminal."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=False))  # rich shrinks no column that may not be wrapped

    def render(self, task: Task) -> "_Fitting":
        return _Fitting(task.fields["measures"])


@dataclass(frozen=True)
class _Fitting:
    """As many texts as there is room for, each of them whole; the most important is first."""

    parts: tuple[str, ...]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, min(cell_len("  ".join(self.parts)), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = ""
        for part in self.parts:
            longer = f"{shown}  {part}" if shown else part
            if cell_len(longer) > options.max_width:
                break
            shown = longer
        yield Text(shown, no_wrap=True)


def describe(event: Event, total: int | None) -> str | None:
    """An event as a line of text; None for those that need none."""
    match event:
        case RunStarted():
            begin = "training" if event.resumed_from_step is None else f"continuing from step {event.resumed_from_step}"
            amount = f"{event.total_samples:,} samples" if event.total_steps is None else f"{event.total_steps} steps"
            return (
                f"{begin}: {event.preset} with {event.optimizer}, seed {event.seed}, {amount}, "
                f"{event.parameters:,} parameters, {event.train_samples:,} training samples, on {event.device}"
            )
        case StepLogged():
            lr = next(iter(event.lr.values()))
            return (
                f"step {_step(event.step, total)}  loss {event.loss:.4f}  lr {lr:.3g}  "
                f"{event.samples_per_second:,.0f} samples/s"
            )
        case Evaluated():
            values = "  ".join(f"{name} {shown(name, value)}" for name, value in event.metrics.items())
            return f"step {_step(event.step, total)}  {event.split}: {values}{'  (best)' if event.best else ''}"
        case CheckpointSaved():
            return f"step {_step(event.step, total)}  checkpoint saved"
        case BatchGrown():
            return f"step {_step(event.step, total)}  the batch grows to {event.batch_size:,} samples"
        case Interrupted():
            return f"interrupted after step {event.step}"
        case Diverged():
            return f"diverged at step {event.step}: {event.reason}"
        case Noticed():
            return f"note: {event.message}"
    return None


def _step(step: int, total: int | None) -> str:
    return str(step) if total is None else f"{step}/{total}"


def _noise(event: NoiseMeasured) -> str:
    return "" if event.noise_scale is None else f"  noise scale {event.noise_scale:,.0f}"


def _headline(metrics: dict[str, float]) -> str:
    name = next((name for name in ("top1", "perplexity") if name in metrics), next(iter(metrics)))
    return f"{name} {shown(name, metrics[name])}"
