"""What a pool is given (sources of trials), what it works on (jobs), and what it tells while it goes on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from fismo_cli.campaigns.executor import RunProcess
from fismo_cli.campaigns.judging import Judging, RunResult
from fismo_cli.campaigns.ledger import SLOT, Ledger
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.tasks.identity import Identity

__all__ = ["Active", "Job", "Site", "Source", "Status"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Site:
    """What all runs of a campaign have in common on this host.

    Attributes:
        directory: where everything of it is.
        url: of the database; None: a journal file in the directory.
        same_data: the file that says what the data of all runs must be.
        data: what it says; None: not known.
        device: that runs use.
        nproc: processes that train each run together.
    """

    directory: Path
    url: str | None
    same_data: Path
    data: Identity | None
    device: str
    nproc: int = 1


@dataclass(frozen=True)
class Source:
    """Trials of one study, and how they are run.

    Attributes:
        study: where they are kept.
        trials: how many there are in the end, whoever runs them.
        distributions: of what a trial draws.
        judging: how a trial is judged.
        runs: the presets of a trial's runs, of its settings. A `UsageError` of it fails the trial.
        steps: optimizer steps of a run of a trial.
        title: of a trial of such settings and number, as lines and tables have it.
        shown: its settings in one line.
        runs_dir: under which the runs of a trial are, of the number of the first trial that had its settings.
        file: of a trial's settings and number, where its preset and log are in their folders, no suffix.
        queued: all trials are queued from the start, each in a slot; none is drawn.
        queue: queues trials again of which nothing is left, as when a process was killed while it gave one up.
        in_turn: a trial is drawn when all before it have ended.
        survives_errors: a run that fails fails its trial; else all work ends with its error.
        records: of a trial's runs, what is recorded of it besides.
        counted: called with the trials, once more have ended.
    """

    study: Study
    trials: int
    distributions: dict[str, BaseDistribution]
    judging: Judging
    runs: Callable[[Settings], list[LoadedPreset]]
    steps: Callable[[Settings], int]
    title: Callable[[Settings, int], str]
    shown: Callable[[Settings], str]
    runs_dir: Callable[[int], Path]
    file: Callable[[Settings, int], str]
    queued: bool = False
    queue: Callable[[], None] = lambda: None
    in_turn: bool = False
    survives_errors: bool = True
    records: Callable[[Sequence[RunResult]], dict[str, Any]] = lambda runs: {}
    counted: Callable[[Ledger], None] = lambda ledger: None

    def count(self, trials: Iterable[FrozenTrial]) -> int:
        """How many trials these are; of those in one slot one counts."""
        if not self.queued:
            return len(list(trials))
        return len({trial.user_attrs.get(SLOT) for trial in trials})

    def frozen(self, trial: Trial) -> FrozenTrial:
        """A trial as the storage has it."""
        return self.study.get_trials(deepcopy=False)[trial.number]


@dataclass(frozen=True)
class Active:
    """A trial that this worker runs: its title, settings, step and steps in all (of all its repeats)."""

    title: str
    source: Source
    settings: dict[str, Any]
    step: int
    total: int


@dataclass(frozen=True)
class Status:
    """How far a campaign is, told at every change and a few times a second.

    Attributes:
        ledgers: the trials of each source, by its study's name.
        active: what this worker runs now.
        elsewhere: trials that other workers run.
        trials: how many are wanted in all.
        fresh: trials ended by this worker, and the seconds since it began: for what is left.
        seconds: see `fresh`.
        finished: what has just happened, as a line of text.
    """

    ledgers: Mapping[str, Ledger]
    active: tuple[Active, ...]
    elsewhere: int
    trials: int
    fresh: int
    seconds: float
    finished: str | None = None

    @property
    def done(self) -> int:
        """Trials that count."""
        return sum(len(ledger.counted) for ledger in self.ledgers.values())


@dataclass
class Job:
    """A trial that this worker runs; `done` are the runs of it that have ended, with their summaries; `process` is the
    one that goes on.
    """

    source: Source
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

    @property
    def title(self) -> str:
        """What is run, in a few words."""
        return self.source.title(self.trial.params, self.trial.number)

    def active(self) -> Active:
        """How far it is."""
        step = len(self.done) * self.steps + (0 if self.process is None else self.process.step())
        return Active(self.title, self.source, dict(self.trial.params), step, self.steps * len(self.runs))

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
