"""What the sinks of all trackers share: the run that they tell of, and that no step is told twice."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from fismo_cli.errors import UsageError
from fismo_cli.reporting.scalars import Measured, scalars
from fismo_cli.training.events import Evaluated, Event, Finished
from fismo_cli.training.run_summary import RunSummary

__all__ = ["TrackedRun", "TrackerSink", "event_kind", "tracker_package"]


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers are told of it.

    Attributes:
        directory: of the run.
        config: its resolved preset.
        id: under which the tracker knows it already; None: a new one.
        told: of a run that is continued, the last step of each kind of event that the tracker was told.
    """

    directory: Path
    config: Mapping[str, Any]
    id: str | None = None
    told: Mapping[str, int] = field(default_factory=dict)


def event_kind(name: str, split: str | None) -> str:
    """A kind of event of which each step has one: `StepLogged`, `Evaluated validation`."""
    return name if split is None else f"{name} {split}"


def tracker_package(name: str) -> Any:
    """The package of a tracker; a folder of its name in the current directory, which W&B makes itself, is none.

    Raises:
        UsageError: if it is not installed.
    """
    with suppress(ImportError):
        package = import_module(name)
        if getattr(package, "__file__", None) is not None:
            return package
    raise UsageError(f"logging.{name} needs the package {name}: pip install 'fismo[{name}]'")


class TrackerSink(ABC):
    """Tells one tracker the numbers of a run, and the summary at the end.

    A run that is continued takes the steps after its checkpoint again, to the same result; what the tracker was told
    of them before is not told again.

    Attributes:
        id: under which the tracker knows the run, now or when it is continued.
        place: where the run can be seen there.
    """

    id: str
    place: str

    def __init__(self, run: TrackedRun) -> None:
        self._told = run.told

    def write(self, event: Event) -> None:
        """Tell the numbers of an event that has some."""
        if isinstance(event, Finished):
            self.finish(event.summary)
        elif isinstance(event, Measured) and (values := scalars(event)):
            kind = event_kind(type(event).__name__, event.split if isinstance(event, Evaluated) else None)
            if event.step > self._told.get(kind, -1):
                self.log(values, event.step)

    @abstractmethod
    def log(self, values: dict[str, float], step: int) -> None:
        """Tell the numbers of a step."""

    @abstractmethod
    def finish(self, summary: RunSummary) -> None:
        """Tell how the run ended; it may still be continued."""

    @abstractmethod
    def close(self) -> None:
        """Send what has not been sent, and let go of the tracker."""
