"""Carries out a plan: tunes, then runs every seed of every contender, some at a time; resumes what was begun.

State is in the run directories alone: what has finished there is taken as it is, tuning is replayed from it.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fismo_cli.campaigns.executor import Failure, RunProcess, finished_run
from fismo_cli.comparison.contenders import Contender
from fismo_cli.comparison.plan import PLAN_FILE, Plan
from fismo_cli.comparison.records import Record, read_record
from fismo_cli.errors import ChangedDataError, ExitCode, FismoError, StoppedError
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.training.signals import StopRequest
from fismo_cli.tuning.sampling import RandomSearch, TreeSearch

__all__ = ["Results", "Status", "Tuned", "carry_out", "judged", "stored_results"]

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Tuned:
    """What a study of a contender came to: each trial's settings and record, and the best one (None: all failed)."""

    trials: tuple[tuple[dict[str, Any], Record], ...] = ()
    best: int | None = None

    @property
    def settings(self) -> dict[str, Any] | None:
        """What was chosen; None if every trial failed."""
        return None if self.best is None else self.trials[self.best][0]


@dataclass
class Results:
    """Everything that has been run: tuning by (label, study), records by (label, seed)."""

    tuned: dict[tuple[str, int], Tuned] = field(default_factory=dict)
    runs: dict[tuple[str, int], Record] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """How far a comparison is, told at every change and a few times a second.

    Attributes:
        tuning: trials done, by (label, study).
        runs: records of judged runs, by (label, seed).
        active: what runs now, with the step each is at.
        done: runs done in all.
        total: runs in all.
        fresh: runs done by this process, and the seconds since it began: for what is left.
        seconds: see `fresh`.
        finished: what has just finished, as a line of text.
    """

    tuning: dict[tuple[str, int], int]
    runs: dict[tuple[str, int], Record]
    active: tuple[tuple[str, int], ...]
    done: int
    total: int
    fresh: int
    seconds: float
    finished: str | None = None


@dataclass(frozen=True)
class _Job:
    contender: Contender
    loaded: LoadedPreset
    runs_dir: Path
    name: str
    file: str


def carry_out(plan: Plan, *, workers: int, lock: int, tell: Callable[[Status], None]) -> Results:
    """Run everything that has not finished yet, and return all of it.

    Args:
        plan: what to run.
        workers: how many runs side by side.
        lock: the descriptor of the comparison's lock, which runs hold too, until they have left.
        tell: shown how far it is.

    Raises:
        StoppedError: if a signal asked to stop; what ran was saved.
        FismoError: if a run failed; a diverged run is a result, not a failure.
    """
    results = Results()
    with StopRequest() as stop:
        pool = _Pool(plan, workers, tell, results, stop, lock)
        if plan.tune_trials:
            pool.work(_tuning_jobs(plan, results, pool))
        pool.work(_final_jobs(plan, results))
    return results


def stored_results(plan: Plan) -> Results:
    """What the directories hold, without running anything; unfinished runs are left out."""
    results = Results()
    for contender in plan.contenders:
        for study in range(plan.studies):
            results.tuned[contender.label, study] = _replay(plan, contender, study)[0]
        for seed in plan.seeds:
            found = finished_run(plan.runs_dir(contender), judged(plan, contender, seed, results), plan.data)
            if found is not None:
                results.runs[contender.label, seed] = read_record(found, contender.label)
    return results


def _replay(plan: Plan, contender: Contender, study: int) -> tuple[Tuned, dict[str, Any] | None]:
    """Tell a new search all finished trials; returns also the settings of the first that is not."""
    kind = RandomSearch if plan.studies > 1 else TreeSearch
    search = kind(contender.space, trials=plan.tune_trials, seed=plan.tuning_seed(study))
    trials: list[tuple[dict[str, Any], Record]] = []
    while not search.done:
        settings = search.ask()
        loaded = contender.run(plan.tuning_seed(study), settings)
        found = finished_run(plan.tuning_dir(contender, study), loaded, plan.data)
        if found is None:
            return Tuned(tuple(trials), search.best), settings
        record = read_record(found, contender.label)
        search.tell(settings, record.loss)
        trials.append((settings, record))
    return Tuned(tuple(trials), search.best), None


def judged(plan: Plan, contender: Contender, seed: int, results: Results) -> LoadedPreset:
    """The preset of a judged run: with what its study found; with the starting point if all of its trials failed."""
    tuned = results.tuned.get((contender.label, plan.study_of(seed)), Tuned())
    return contender.run(seed, tuned.settings)


class _Pool:
    """Up to `workers` runs at a time, from streams of jobs of which each waits for its own previous one."""

    def __init__(
        self,
        plan: Plan,
        workers: int,
        tell: Callable[[Status], None],
        results: Results,
        stop: StopRequest,
        lock: int,
    ) -> None:
        self.plan, self.workers, self.tell, self.results = plan, workers, tell, results
        self.stop, self.lock = stop, lock
        self.tuning = {(contender.label, study): 0 for contender in plan.contenders for study in range(plan.studies)}
        self.fresh = 0
        self.started = time.monotonic()
        self._told = 0.0

    def work(self, streams: "list[Iterator[_Job]]") -> None:
        """Run all jobs of all streams; a stream is asked for its next job once its last one has finished."""
        waiting = list(streams)
        active: list[tuple[RunProcess, _Job, Iterator[_Job]]] = []
        failure: FismoError | None = None
        while waiting or active:
            if self.stop.requested() or failure is not None:
                waiting.clear()
            while waiting and len(active) < self.workers:
                stream = waiting.pop(0)
                job = next(stream, None)
                if job is not None:
                    active.append((self._start(job), job, stream))
            self._tell(active)
            if self.stop.requested() and active:
                self._leave(active)
            for entry in list(active):
                process, job, stream = entry
                outcome = process.poll()
                if outcome is None:
                    continue
                active.remove(entry)
                if isinstance(outcome, Failure):
                    failure = failure or _failed(outcome, job, self.plan)
                    continue
                shutil.rmtree(outcome.checkpoints, ignore_errors=True)  # of a finished run: the model is kept
                self.fresh += 1
                waiting.insert(0, stream)  # so that its result is taken up at once
                self._tell(active, f"{job.name}: {read_record(outcome, job.contender.label).headline()}")
            if active:
                time.sleep(POLL_SECONDS)
        if self.stop.requested():
            assert self.stop.signal is not None
            raise StoppedError(self.stop.signal)
        if failure is not None:
            raise failure

    def _start(self, job: _Job) -> RunProcess:
        return RunProcess(
            job.loaded,
            preset_file=self.plan.directory / "presets" / f"{job.file}.yaml",
            runs_dir=job.runs_dir,
            log=self.plan.directory / "logs" / f"{job.file}.log",
            keep_open=(self.lock,),
            same_data=self.plan.directory / PLAN_FILE,
            data=self.plan.data,
        )

    def _leave(self, active: list[tuple[RunProcess, _Job, Iterator[_Job]]]) -> None:
        for process, _, _ in active:
            process.stop()
        try:
            for process, _, _ in active:
                process.wait()
        except KeyboardInterrupt:
            for process, _, _ in active:
                process.kill()
        active.clear()

    def _tell(self, active: list[tuple[RunProcess, _Job, Iterator[_Job]]], finished: str | None = None) -> None:
        now = time.monotonic()
        if finished is None and now - self._told < 0.5:
            return
        self._told = now
        plan = self.plan
        self.tell(
            Status(
                tuning=dict(self.tuning),
                runs=dict(self.results.runs),
                active=tuple((job.name, process.step()) for process, job, _ in active),
                done=sum(self.tuning.values()) + len(self.results.runs) + (finished is not None),
                total=plan.total_runs,
                fresh=self.fresh,
                seconds=now - self.started,
                finished=finished,
            )
        )


def _tuning_jobs(plan: Plan, results: Results, pool: _Pool) -> list[Iterator[_Job]]:
    """One stream a study of a contender: its trials may depend on those before. Studies by turns of the contenders."""

    def stream(contender: Contender, study: int) -> Iterator[_Job]:
        label = contender.label
        while True:
            tuned, settings = _replay(plan, contender, study)
            pool.tuning[label, study] = len(tuned.trials)
            if settings is None:
                results.tuned[label, study] = tuned
                return
            number = len(tuned.trials) + 1
            which = f"study {study + 1}, " if plan.studies > 1 else ""
            yield _Job(
                contender,
                contender.run(plan.tuning_seed(study), settings),
                plan.tuning_dir(contender, study),
                f"tuning {label}, {which}trial {number}",
                f"tuning/{contender.folder}-{f'{study}-' if plan.studies > 1 else ''}{number}",
            )

    return [stream(contender, study) for study in range(plan.studies) for contender in plan.contenders]


def _final_jobs(plan: Plan, results: Results) -> list[Iterator[_Job]]:
    """One stream a run, in random order."""

    def stream(contender: Contender, seed: int) -> Iterator[_Job]:
        label, place = contender.label, plan.runs_dir(contender)
        loaded = judged(plan, contender, seed, results)
        found = finished_run(place, loaded, plan.data)
        if found is None:
            yield _Job(contender, loaded, place, f"{label}, seed {seed}", f"runs/{contender.folder}-{seed}")
            found = finished_run(place, loaded, plan.data)
        assert found is not None
        results.runs[label, seed] = read_record(found, label)

    return [stream(contender, seed) for contender, seed in plan.order()]


def _failed(failure: Failure, job: _Job, plan: Plan) -> FismoError:
    if failure.code == ExitCode.CHANGED_DATA:
        return ChangedDataError(failure.message)
    cause = f"by signal {-failure.code}" if failure.code < 0 else f"with exit code {failure.code}"
    return FismoError(
        f"the run {job.name} ended {cause}: {failure.message}. It counts for nothing; the same command goes on from "
        f"what has finished (logs in {plan.directory / 'logs'})"
    )
