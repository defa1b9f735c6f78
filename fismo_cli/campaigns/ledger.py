"""Which trials of a study count, and what happens to those whose worker died: pure reading, and one write.

A trial ends as complete, pruned, or failed with a reason. One that failed without a reason was lost: its worker was
killed or left. Its parameters are queued again, as a new trial that knows which one it repeats; the lost one never
counts.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from fismo_cli.errors import DivergedError, FismoError

__all__ = [
    "FAILURE",
    "OWNER",
    "SAME_AS",
    "SLOT",
    "Ledger",
    "Worker",
    "best_of",
    "check_hope",
    "copy_result",
    "give_up",
    "read_ledger",
    "requeue",
    "root",
    "twin_of",
    "worker",
]

FAILURE = "failure"
"""User attribute of a failed trial: why."""

OWNER = "worker"
"""User attribute of a trial: the worker that runs it."""

SAME_AS = "same_as"
"""User attribute of a trial that was not run: the number of the one with the same settings whose result it has."""

SLOT = "slot"
"""User attribute of a trial that was queued, not drawn: its place; the first one of a place that ends counts."""

MOST_REPEATS = 3
"""How often a trial is run again after its worker died."""

UNOWNED_SECONDS = 60.0
"""A running trial that nobody has claimed after so long was lost between being drawn and being claimed."""

HOPELESS_ERRORS, HOPELESS_DIVERGENCES = 3, 12
"""Failed trials after which a study stops if none has ended well: by errors, and by divergence as well."""

_ORIGINAL, _HISTORY = "failed_trial", "retry_history"
"""System attributes by which Optuna knows retried trials too."""


@dataclass(frozen=True)
class Ledger:
    """The trials of a study that matter.

    Attributes:
        counted: finished ones, lost ones left out.
        running: those that somebody runs.
        waiting: those that are queued again.
    """

    counted: tuple[FrozenTrial, ...]
    running: tuple[FrozenTrial, ...]
    waiting: tuple[FrozenTrial, ...]

    def of(self, state: TrialState) -> list[FrozenTrial]:
        """The counted trials that ended so."""
        return [trial for trial in self.counted if trial.state == state]


def read_ledger(study: Study) -> Ledger:
    """Read all trials of a study."""
    trials = study.get_trials(deepcopy=False)
    return Ledger(
        counted=tuple(
            t for t in trials if t.state.is_finished() and (t.state != TrialState.FAIL or FAILURE in t.user_attrs)
        ),
        running=tuple(trial for trial in trials if trial.state == TrialState.RUNNING),
        waiting=tuple(trial for trial in trials if trial.state == TrialState.WAITING),
    )


def root(trial: FrozenTrial) -> int:
    """The number of the trial that this one repeats, after any number of repetitions; its own if it repeats none."""
    return int(trial.system_attrs.get(_ORIGINAL, trial.number))


def twin_of(number: int, settings: Mapping[str, Any], ledger: Ledger) -> FrozenTrial | None:
    """A trial before a number with the same settings, whose result is this one's too: one that ended, or one that runs.

    An error may have been an accident: a trial that ended by one is no twin. That it diverged, or was pruned, counts.
    """
    ended = [t for t in ledger.counted if t.user_attrs.get(FAILURE, {}).get("kind") != "error"]
    return next((t for t in (*ended, *ledger.running) if t.number < number and t.params == settings), None)


def copy_result(study: Study, trial: Trial, twin: FrozenTrial) -> None:
    """End a trial with the result of an earlier one with the same settings: training again would give the same."""
    for name, measured in twin.constraints.items():
        trial.set_constraint(name, measured)
    for key, known in {**twin.user_attrs, SAME_AS: twin.user_attrs.get(SAME_AS, twin.number)}.items():
        if key != OWNER:
            trial.set_user_attr(key, known)
    for step, reported in twin.intermediate_values.items():
        trial.report(reported, step)
    value = twin.value if twin.state == TrialState.COMPLETE else None
    study.tell(trial.number, value, state=twin.state, skip_if_finished=True)


def requeue(study: Study, lost: FrozenTrial, *, blamed: bool = True) -> None:
    """Queue the parameters of a lost trial again; or count it as failed, if its workers die of it time after time.

    Args:
        study: the study.
        lost: the trial.
        blamed: whether the trial may be what its worker died of.
    """
    if FAILURE in lost.user_attrs:  # it had failed, and its worker died before it could say so
        return
    history = [*lost.system_attrs.get(_HISTORY, ()), *([lost.number] if blamed else [])]
    again = len(history) <= MOST_REPEATS
    queued = {SLOT: lost.user_attrs[SLOT]} if SLOT in lost.user_attrs else {}
    reason = f"its worker died {len(history)} times (out of memory?)"
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING if again else TrialState.FAIL,
            params=lost.params,
            distributions=lost.distributions,
            user_attrs={**queued, **({} if again else {FAILURE: {"kind": "error", "reason": reason}})},
            system_attrs={_ORIGINAL: root(lost), _HISTORY: history},
        )
    )


def give_up(study: Study, trial: FrozenTrial, *, blamed: bool = True) -> None:
    """Declare a running trial lost and queue it again, see `requeue`; nothing happens if somebody else was first."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return
    requeue(study, trial, blamed=blamed)


@dataclass(frozen=True)
class Worker:
    """A process that runs trials: alive as long as it, or a run that it started, holds the lock on its file."""

    name: str
    directory: Path
    descriptor: int
    unowned: dict[int, float] = field(default_factory=dict)

    def lost(self, trial: FrozenTrial, others_have_heartbeats: bool) -> bool:
        """Whether the worker of a running trial is known to be gone from this host.

        Args:
            trial: the trial.
            others_have_heartbeats: whether the storage itself notices workers elsewhere that have gone. Locks say
                nothing of those: not every shared file system shares them.
        """
        owner = trial.user_attrs.get(OWNER)
        if owner == self.name:
            return False
        if owner is None:
            first = self.unowned.setdefault(trial.number, time.monotonic())
            return time.monotonic() - first > UNOWNED_SECONDS
        if others_have_heartbeats and not owner.startswith(f"{socket.gethostname()}-"):
            return False
        try:
            descriptor = os.open(_lock_file(self.directory, owner), os.O_RDWR)
        except OSError:
            return not others_have_heartbeats
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            return True
        finally:
            os.close(descriptor)


@contextmanager
def worker(directory: Path, name: str) -> Iterator[Worker]:
    """Be a worker of the study in a directory; others see that it is gone however it ends."""
    path = _lock_file(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Worker(name, directory, descriptor)
        path.unlink(missing_ok=True)  # not after an error: its trials may still be running in the study's eyes
    finally:
        os.close(descriptor)


def _lock_file(directory: Path, name: str) -> Path:
    return directory / "workers" / f"{name}.lock"


def best_of(trials: Sequence[FrozenTrial], *, higher_is_better: bool) -> FrozenTrial | None:
    """The best complete trial that keeps all limits, the first of equals."""
    sign = -1.0 if higher_is_better else 1.0
    kept = [t for t in trials if t.state == TrialState.COMPLETE and all(v <= 0 for v in t.constraints.values())]
    return min(kept, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)


def check_hope(ledger: Ledger, *, over: bool = False, before: int = 0) -> None:
    """Stop a search in which trials fail and none ends well.

    Args:
        ledger: the study's trials.
        over: whether there will be no more.
        before: how many had ended when this process began; what failed then may have been put right.

    Raises:
        DivergedError: if all of them diverged.
        FismoError: if some failed for another reason, which is given.
    """
    failures = [trial.user_attrs[FAILURE] for trial in ledger.of(TrialState.FAIL)]
    if len(failures) < len(ledger.counted) or not failures:
        return
    errors = [failure["reason"] for failure in failures if failure["kind"] == "error"]
    new = 0 if over else before
    if len(errors) >= HOPELESS_ERRORS + new or (over and errors):
        raise FismoError(f"all {len(failures)} trials failed, the last one so: {errors[-1]}")
    if len(failures) >= HOPELESS_DIVERGENCES + new or over:
        raise DivergedError(f"all {len(failures)} trials diverged: start from a smaller learning rate or trust radius")
