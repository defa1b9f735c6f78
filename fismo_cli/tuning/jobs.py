"""A trial that a worker runs, and what is told of a study while it goes on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.runs.executor import RunProcess
from fismo_cli.tuning.ledger import Ledger
from fismo_cli.tuning.results import RunResult

__all__ = ["Active", "Job", "Status"]


@dataclass(frozen=True)
class Active:
    """A trial that this worker runs: its number, settings, step and steps in all (of all its repeats)."""

    number: int
    settings: dict[str, Any]
    step: int
    total: int


@dataclass(frozen=True)
class Status:
    """How far a study is, told at every change and a few times a second.

    Attributes:
        ledger: its trials.
        active: what this worker runs now.
        elsewhere: trials that other workers run.
        trials: how many are wanted.
        fresh: trials ended by this worker, and the seconds since it began: for what is left.
        seconds: see `fresh`.
        finished: what has just happened, as a line of text.
    """

    ledger: Ledger
    active: tuple[Active, ...]
    elsewhere: int
    trials: int
    fresh: int
    seconds: float
    finished: str | None = None


@dataclass
class Job:
    """A trial that this worker runs; `done` are the runs of it that have ended, with their summaries; `process` is the
    one that goes on.
    """

    trial: Trial
    runs_dir: Path
    slot: int
    runs: list[LoadedPreset] = field(default_factory=list)
    steps: int = 0
    process: RunProcess | None = None
    done: list[RunResult] = field(default_factory=list)
    reported: set[int] = field(default_factory=set)
    restarts: int = 0
    pruned: str | None = None

    def active(self) -> Active:
        """How far it is."""
        step = len(self.done) * self.steps + (0 if self.process is None else self.process.step())
        return Active(self.trial.number, dict(self.trial.params), step, self.steps * len(self.runs))

    def stop(self) -> None:
        """Ask the run that goes on to save and leave."""
        if self.process is not None:
            self.process.stop()

    def kill(self) -> None:
        """Make it end at once."""
        if self.process is not None:
            self.process.kill()

    def wait(self) -> None:
        """Until it has ended."""
        if self.process is not None:
            self.process.wait()
