"""Runs the trials of studies, some at a time, until each has as many as were asked for; other workers may share them.

State is in the studies' storage and in the run directories: a trial that was lost is run again with the same settings,
from its last checkpoint where its directory is on this host.
"""

import hashlib
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from fismo_cli.campaigns.executor import Failure, RunProcess, finished_run
from fismo_cli.campaigns.jobs import Job, Site, Source, Status
from fismo_cli.campaigns.judging import REPORTS, run_value, trial_result
from fismo_cli.campaigns.ledger import (
    FAILURE,
    OWNER,
    SLOT,
    Worker,
    check_hope,
    copy_result,
    give_up,
    read_ledger,
    root,
    twin_of,
    worker,
)
from fismo_cli.campaigns.storage import HEARTBEAT_SECONDS, storage_errors
from fismo_cli.environment import gpu_count
from fismo_cli.errors import DataError, ExitCode, FismoError, StoppedError, UsageError
from fismo_cli.files import locked
from fismo_cli.preset.files import missing_files
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.training.signals import StopRequest

__all__ = ["carry_out"]

POLL_SECONDS = 0.1
LOOK_SECONDS = 2.0
"""How often the storage is read for what other workers did."""

RESTARTS = 1
"""How often a run that was killed or failed goes on from its last checkpoint, before the trial counts as failed."""


def carry_out(site: Site, stages: Sequence[Sequence[Source]], *, workers: int, tell: Callable[[Status], None]) -> None:
    """Run trials until every source has as many as it wants, whoever ran them.

    Args:
        site: where.
        stages: sources; those of a stage have all their trials before the next one begins.
        workers: trials side by side.
        tell: shown how far all of it is.

    Raises:
        StoppedError: if a signal asked to stop; what ran was saved and will be run again with the same parameters.
        FismoError: if the storage went away, trial after trial fails and none ends well, or a run failed of a source
            that does not survive that.
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    with (
        storage_errors(site.url, site.directory),
        worker(site.directory, name) as me,
        StopRequest() as stop,
    ):
        pool = Pool(site, [source for stage in stages for source in stage], workers, tell, me, stop)
        for stage in stages:
            pool.work(stage)


class Pool:
    """The trials that this worker runs side by side."""

    def __init__(
        self,
        site: Site,
        sources: Sequence[Source],
        workers: int,
        tell: Callable[[Status], None],
        me: Worker,
        stop: StopRequest,
    ) -> None:
        self.site, self.workers = site, workers
        self.tell, self.me, self.stop = tell, me, stop
        self.jobs: list[Job] = []
        self.ledgers = {source.study.study_name: read_ledger(source.study) for source in sources}
        self.sources = {source.study.study_name: source for source in sources}
        begun = {name: len(ledger.counted) for name, ledger in self.ledgers.items()}
        self.before = {
            name: 0 if begun[name] >= source.trials else begun[name] for name, source in self.sources.items()
        }
        self.stage: Sequence[Source] = sources
        self.fresh, self.started = 0, time.monotonic()
        self._looked = self._told = self._beat = -math.inf

    def work(self, stage: Sequence[Source]) -> None:
        """Until the sources of a stage have all their trials."""
        self.stage = stage
        try:
            while not self.stop.requested():
                self._show_life()
                self._look()
                over = not self.jobs and all(self._missing(source) <= 0 for source in stage)
                for source in stage:
                    if source.survives_errors:
                        name = source.study.study_name
                        check_hope(self.ledgers[name], over=over, before=self.before[name])
                if over:
                    return
                while (wanted := self._wanted()) is not None:
                    self._start(wanted)
                for job in list(self.jobs):
                    if job in self.jobs:  # not taken from us meanwhile
                        self._advance(job)
                self._say()
                time.sleep(POLL_SECONDS)
        except DataError:
            self._leave()
            raise
        except BaseException as error:  # the storage went away, or nothing ends well
            self._end_runs(show_life=isinstance(error, FismoError | KeyboardInterrupt))
            raise
        self._leave()
        assert self.stop.signal is not None
        raise StoppedError(self.stop.signal)

    def _leave(self) -> None:
        """End the runs; their trials are for whoever comes next."""
        self._end_runs()
        with self._alone():
            for job in self.jobs:
                give_up(job.source.study, job.source.frozen(job.trial), blamed=False)

    def _end_runs(self, *, show_life: bool = True) -> None:
        for job in self.jobs:
            job.stop()
        try:
            while any(job.process is not None and job.process.running for job in self.jobs):
                if show_life:
                    try:
                        self._show_life()
                    except Exception:  # the storage has gone: asking it again may take long
                        show_life = False
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            for job in self.jobs:
                job.kill()

    def _missing(self, source: Source) -> int:
        return source.trials - source.count(self.ledgers[source.study.study_name].counted)

    def _wanted(self) -> Source | None:
        """Whose trial to start next, if any: of the sources that have begun the fewest, one in an order that is random.

        Not more are begun, by all workers together, than are missing.
        """
        if len(self.jobs) >= self.workers:
            return None

        def place(source: Source) -> tuple[int, bytes]:
            begun = self._begun(source)
            return begun, hashlib.sha256(f"{source.study.study_name} {begun}".encode()).digest()

        return min(filter(self._may_begin, self.stage), key=place, default=None)

    def _begun(self, source: Source) -> int:
        ledger = self.ledgers[source.study.study_name]
        return source.count([*ledger.counted, *ledger.running])

    def _may_begin(self, source: Source) -> bool:
        ledger = self.ledgers[source.study.study_name]
        if source.in_turn and ledger.running:
            return False
        return (not source.queued or bool(ledger.waiting)) and self._begun(source) < source.trials

    def _look(self, source: Source | None = None) -> None:
        """Read the storage, at times; give up the trials of workers that have gone, drop those that others took.

        Args:
            source: the one to read at once; None: all of the stage, if it is time.
        """
        if source is None and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        if source is None:
            self._looked = time.monotonic()
        for one in self.stage if source is None else (source,):
            self._look_at(one)

    def _look_at(self, source: Source) -> None:
        study, database = source.study, self.site.url is not None
        if database:
            optuna.storages.fail_stale_trials(study)
        running = read_ledger(study).running
        lost = [trial for trial in running if self.me.lost(trial, others_have_heartbeats=database)]
        if lost:
            with self._alone():  # nobody draws another trial in place of one that is about to be queued again
                for trial in lost:
                    give_up(study, trial)
        ledger = read_ledger(study)
        if source.queued and not ledger.waiting and source.count([*ledger.counted, *ledger.running]) < source.trials:
            with self._alone():
                source.queue()
            ledger = read_ledger(study)
        self.ledgers[study.study_name] = ledger
        still_ours = {trial.number for trial in ledger.running}
        for job in [job for job in self.jobs if job.source is source and job.trial.number not in still_ours]:
            self._drop(job)  # taken for dead: it is somebody else's now

    def _start(self, source: Source) -> None:
        """Draw a trial; of workers on a host one does so at a time, so that not one too many is drawn."""
        study = source.study
        with self._alone():
            self.ledgers[study.study_name] = read_ledger(study)
            if not self._may_begin(source):
                return  # others were first
            trial = study.ask(source.distributions)
            if source.queued and SLOT not in source.frozen(trial).user_attrs:
                study.tell(trial.number, state=TrialState.FAIL)  # another host took the last one: this one was drawn
                return
            trial.set_user_attr(OWNER, self.me.name)
        self._heartbeat(trial)
        job = Job(
            source,
            trial,
            runs_dir=source.runs_dir(root(source.frozen(trial))),
            slot=min(set(range(self.workers)) - {job.slot for job in self.jobs}),
        )
        self.jobs.append(job)
        self._look(source)
        try:
            job.runs = source.runs(trial.params)
            job.steps = source.steps(trial.params)
        except UsageError as error:  # settings that do not go together
            self._fail(job, "error", str(error))

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self.site.directory / "workers" / ".drawing")

    def _advance(self, job: Job) -> None:
        """Begin the next run of a trial, or take up what has become of the one that goes on."""
        try:
            self._go_on(job)
        except UpdateFinishedTrialError:  # taken for dead by another worker, which has queued it again
            self._drop(job)

    def _drop(self, job: Job) -> None:
        job.kill()
        job.wait()
        if job in self.jobs:
            self.jobs.remove(job)

    def _go_on(self, job: Job) -> None:
        if job.pruned is not None and job.process is not None:
            if not job.process.running:
                shutil.rmtree(job.runs_dir, ignore_errors=True)
                job.source.study.tell(job.trial.number, state=TrialState.PRUNED, skip_if_finished=True)
                self._ended(job, job.pruned)
            return
        if job.process is None:
            ledger = self.ledgers[job.source.study.study_name]
            twin = None if job.done else twin_of(job.trial.number, job.trial.params, ledger)
            if twin is not None:
                if twin.state.is_finished():
                    self._copy(job, twin)
                return  # else it is waited for
            found = finished_run(job.runs_dir, job.runs[len(job.done)], self.site.data)
            if found is None:
                job.process = self._run(job)
            else:  # by a worker that died before it could tell
                self._take(job, found)
            return
        outcome = job.process.poll()
        if outcome is None:
            self._report(job)
        elif isinstance(outcome, Failure) and (outcome.code == ExitCode.DATA or missing_files(job.runs[0].preset)):
            raise DataError(f"{outcome.message} (what this stopped is run again by the same command)")
        elif isinstance(outcome, RunDirectory):
            job.process = None
            self._take(job, outcome)
        elif (
            outcome.code < 0 or outcome.code > 128 or outcome.code == ExitCode.FAILED
        ) and job.restarts < RESTARTS:  # by a signal, or by an accident: a data worker that died, a disk that was full
            job.process, job.restarts = None, job.restarts + 1
        else:
            by = f"was killed by signal {-outcome.code}" if outcome.code < 0 else f"exit code {outcome.code}"
            self._fail(job, "error", f"{by}: {outcome.message}")

    def _run(self, job: Job) -> RunProcess:
        file = job.source.file(job.trial.params, job.trial.number)
        return RunProcess(
            job.runs[len(job.done)],
            preset_file=self.site.directory / "presets" / f"{file}.yaml",
            runs_dir=job.runs_dir,
            log=self.site.directory / "logs" / f"{file}.log",
            keep_open=(self.me.descriptor,),
            nproc=self.site.nproc,
            gpus=self._gpus(job),
            same_data=self.site.same_data,
            data=self.site.data,
        )

    def _gpus(self, job: Job) -> list[int] | None:
        """The GPUs of one of the trials side by side; None where it may use all, or there are too few to share out."""
        nproc, device = self.site.nproc, job.runs[0].preset.train.device
        if self.workers == 1 or device not in ("auto", "cuda") or not self.site.device.startswith("cuda"):
            return None
        count = gpu_count()
        return [(job.slot * nproc + index) % count for index in range(nproc)] if count >= nproc else None

    def _take(self, job: Job, run: RunDirectory) -> None:
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # of a finished run
        try:
            summary = json.loads(run.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._fail(job, "error", f"{run.summary} cannot be read: {error}")
            return
        metric = job.source.judging.metric
        job.done.append((run, summary))
        if run_value(summary, metric) is None:
            diverged = summary["status"] == "diverged"
            missing = f"{metric} was not measured, or is not finite"
            self._fail(job, "diverged" if diverged else "error", summary["reason"] if diverged else missing)
        elif len(job.done) == len(job.runs):
            self._complete(job)

    def _complete(self, job: Job) -> None:
        source, trial = job.source, job.trial
        result = trial_result(source.judging, job.done)
        for name, limit in result.limits.items():
            trial.set_constraint(name, limit)
        for key, known in {**result.attributes, **source.records(job.done)}.items():
            trial.set_user_attr(key, known)
        source.study.tell(trial.number, result.value, skip_if_finished=True)
        self._ended(job, f"{source.judging.metric} {result.value:.4f}")
        source.counted(self.ledgers[source.study.study_name])

    def _copy(self, job: Job, twin: FrozenTrial) -> None:
        copy_result(job.source.study, job.trial, twin)
        result = twin.user_attrs.get(FAILURE, {}).get("reason") or twin.state.name.lower()
        if twin.state == TrialState.COMPLETE:
            result = f"{job.source.judging.metric} {twin.value:.4f}"
        self._ended(job, f"the settings of trial {twin.number}, whose result is used: {result}")

    def _fail(self, job: Job, kind: str, reason: str) -> None:
        if kind == "error" and not job.source.survives_errors:
            give_up(job.source.study, job.source.frozen(job.trial), blamed=False)
            self.jobs.remove(job)
            raise FismoError(
                f"the run {job.title} ended with {reason}. It counts for nothing; the same command goes on from what "
                f"has finished (logs in {self.site.directory / 'logs'})"
            )
        for key, known in job.source.records(job.done).items() if kind == "diverged" else ():
            job.trial.set_user_attr(key, known)
        job.trial.set_user_attr(FAILURE, {"kind": kind, "reason": reason})
        job.source.study.tell(job.trial.number, state=TrialState.FAIL, skip_if_finished=True)
        self._ended(job, reason)

    def _report(self, job: Job) -> None:
        """Tell the pruner of the evaluations of a trial's first run, and stop it if it says so."""
        judging = job.source.judging
        if judging.pruner == "none" or job.done or job.process is None:
            return
        samples = job.steps * job.runs[0].preset.train.batch_size
        for seen, metrics in job.process.validations():
            percent = 100 // REPORTS * round(REPORTS * seen / samples)
            value = metrics.get(judging.metric)
            if value is None or percent in job.reported or percent >= 100:
                continue
            job.reported.add(percent)
            job.trial.report(value, percent)
            if job.trial.should_prune():
                job.pruned = f"pruned at {percent} % with {judging.metric} {value:.4f}"
                job.stop()
                return

    def _ended(self, job: Job, what: str) -> None:
        self.jobs.remove(job)
        self.fresh += 1
        self._look(job.source)
        self._say(f"{job.title}: {what}{job.source.shown(job.trial.params)}")

    def _show_life(self) -> None:
        if time.monotonic() - self._beat >= HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            for job in self.jobs:
                self._heartbeat(job.trial)

    def _heartbeat(self, trial: Trial) -> None:
        if self.site.url is not None:
            trial.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    def _say(self, finished: str | None = None) -> None:
        now = time.monotonic()
        if finished is None and now - self._told < 0.5:
            return
        self._told = now
        ours = {(job.source.study.study_name, job.trial.number) for job in self.jobs}
        running = {(name, trial.number) for name, ledger in self.ledgers.items() for trial in ledger.running}
        self.tell(
            Status(
                ledgers=dict(self.ledgers),
                active=tuple(job.active() for job in self.jobs),
                elsewhere=len(running - ours),
                trials=sum(source.trials for source in self.sources.values()),
                fresh=self.fresh,
                seconds=now - self.started,
                finished=finished,
            )
        )
