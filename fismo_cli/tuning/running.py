"""Runs the trials of a study, some at a time, until it has as many as were asked for; other workers may share it.

State is in the study's storage and in the run directories: a trial that was lost is run again with the same parameters,
from its last checkpoint where its directory is on this host.
"""

import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from fismo_cli.errors import ChangedDataError, ExitCode, FismoError, StoppedError, UsageError
from fismo_cli.files import locked
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.executor import Failure, RunProcess, finished_run
from fismo_cli.training.signals import StopRequest
from fismo_cli.tuning.jobs import Job, Status
from fismo_cli.tuning.ledger import (
    FAILURE,
    OWNER,
    Worker,
    check_hope,
    copy_result,
    give_up,
    read_ledger,
    root,
    twin_of,
    worker,
)
from fismo_cli.tuning.plan import REPORTS, STUDY_FILE, StudyPlan, gpu_count
from fismo_cli.tuning.results import keep_the_best_model, run_value, trial_result
from fismo_cli.tuning.samplers import distributions
from fismo_cli.tuning.search_space import short_settings
from fismo_cli.tuning.storage import HEARTBEAT_SECONDS, storage_errors

__all__ = ["carry_out"]

POLL_SECONDS = 0.1
LOOK_SECONDS = 2.0
"""How often the storage is read for what other workers did."""

RESTARTS = 1
"""How often a run that was killed or failed goes on from its last checkpoint, before the trial counts as failed."""


def carry_out(plan: StudyPlan, study: Study, *, trials: int, workers: int, tell: Callable[[Status], None]) -> None:
    """Run trials until the study has as many, whoever ran them.

    Raises:
        StoppedError: if a signal asked to stop; what ran was saved and will be run again with the same parameters.
        FismoError: if the storage went away, or trial after trial fails and none ends well.
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    with (
        storage_errors(plan.url, plan.directory),
        worker(plan.directory, name) as me,
        StopRequest() as stop,
    ):
        _Pool(plan, study, trials, workers, tell, me, stop).work()


class _Pool:
    """The trials that this worker runs side by side."""

    def __init__(
        self,
        plan: StudyPlan,
        study: Study,
        trials: int,
        workers: int,
        tell: Callable[[Status], None],
        me: Worker,
        stop: StopRequest,
    ) -> None:
        self.plan, self.study, self.trials, self.workers = plan, study, trials, workers
        self.tell, self.me, self.stop = tell, me, stop
        self.jobs: list[Job] = []
        self.ledger = read_ledger(study)
        self.before = 0 if len(self.ledger.counted) >= trials else len(self.ledger.counted)
        self.fresh, self.started = 0, time.monotonic()
        self._looked = self._told = self._beat = -math.inf

    def work(self) -> None:
        try:
            while not self.stop.requested():
                self._show_life()
                self._look()
                over = not self.jobs and len(self.ledger.counted) >= self.trials
                check_hope(self.ledger, over=over, before=self.before)
                if over:
                    return
                while self._wanted() and self._start():
                    pass
                for job in list(self.jobs):
                    if job in self.jobs:  # not taken from us meanwhile
                        self._advance(job)
                self._say()
                time.sleep(POLL_SECONDS)
        except ChangedDataError:
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
                give_up(self.study, self._frozen(job.trial), blamed=False)

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

    def _wanted(self) -> bool:
        """Whether to start one more: not more are begun, by all workers together, than are missing."""
        begun = len(self.ledger.counted) + len(self.ledger.running)
        return len(self.jobs) < self.workers and begun < self.trials

    def _look(self, at_once: bool = False) -> None:
        """Read the storage, at times; give up the trials of workers that have gone, drop those that others took."""
        if not at_once and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        database = self.plan.url is not None
        if database:
            optuna.storages.fail_stale_trials(self.study)
        running = read_ledger(self.study).running
        lost = [trial for trial in running if self.me.lost(trial, others_have_heartbeats=database)]
        if lost:
            with self._alone():  # nobody draws another trial in place of one that is about to be queued again
                for trial in lost:
                    give_up(self.study, trial)
        self.ledger = read_ledger(self.study)
        still_ours = {trial.number for trial in self.ledger.running}
        for job in [job for job in self.jobs if job.trial.number not in still_ours]:
            self._drop(job)  # taken for dead: it is somebody else's now

    def _start(self) -> bool:
        """Draw a trial; of workers on a host one does so at a time, so that not one too many is drawn."""
        with self._alone():
            self.ledger = read_ledger(self.study)
            if not self._wanted():
                return False
            trial = self.study.ask(distributions(self.plan.space))
            trial.set_user_attr(OWNER, self.me.name)
        self._heartbeat(trial)
        job = Job(
            trial,
            runs_dir=self.plan.directory / "trials" / str(root(self._frozen(trial))),
            slot=min(set(range(self.workers)) - {job.slot for job in self.jobs}),
        )
        self.jobs.append(job)
        self._look(at_once=True)
        try:
            job.runs = [self.plan.trial(trial.params, repeat) for repeat in range(self.plan.judging.repeats)]
            job.steps = self.plan.steps(trial.params)
        except UsageError as error:  # settings that do not go together
            self._fail(job, "error", str(error))
        return True

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self.plan.directory / "workers" / ".drawing")

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
                self.study.tell(job.trial.number, state=TrialState.PRUNED, skip_if_finished=True)
                self._ended(job, job.pruned)
            return
        if job.process is None:
            twin = None if job.done else twin_of(job.trial.number, job.trial.params, self.ledger)
            if twin is not None:
                if twin.state.is_finished():
                    self._copy(job, twin)
                return  # else it is waited for
            found = finished_run(job.runs_dir, job.runs[len(job.done)], self.plan.environment.data)
            if found is None:
                job.process = self._run(job)
            else:  # by a worker that died before it could tell
                self._take(job, found)
            return
        outcome = job.process.poll()
        if outcome is None:
            self._report(job)
        elif isinstance(outcome, Failure) and outcome.code == ExitCode.CHANGED_DATA:
            raise ChangedDataError(outcome.message)
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
        number = job.trial.number
        return RunProcess(
            job.runs[len(job.done)],
            preset_file=self.plan.directory / "presets" / f"trial-{number}.yaml",
            runs_dir=job.runs_dir,
            log=self.plan.directory / "logs" / f"trial-{number}.log",
            keep_open=(self.me.descriptor,),
            nproc=self.plan.judging.nproc,
            gpus=self._gpus(job.slot),
            same_data=self.plan.directory / STUDY_FILE,
            data=self.plan.environment.data,
        )

    def _gpus(self, slot: int) -> list[int] | None:
        """The GPUs of one of the trials side by side; None where it may use all, or there are too few to share out."""
        nproc = self.plan.judging.nproc
        device = self.plan.loaded.preset.train.device
        if self.workers == 1 or device not in ("auto", "cuda") or not self.plan.environment.device.startswith("cuda"):
            return None
        count = gpu_count()
        return [(slot * nproc + index) % count for index in range(nproc)] if count >= nproc else None

    def _take(self, job: Job, run: RunDirectory) -> None:
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # of a finished run
        try:
            summary = json.loads(run.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._fail(job, "error", f"{run.summary} cannot be read: {error}")
            return
        value = run_value(summary, self.plan.judging.metric)
        if value is None:
            diverged = summary["status"] == "diverged"
            missing = f"{self.plan.judging.metric} was not measured, or is not finite"
            self._fail(job, "diverged" if diverged else "error", summary["reason"] if diverged else missing)
            return
        job.done.append((run, summary))
        if len(job.done) == len(job.runs):
            self._complete(job)

    def _complete(self, job: Job) -> None:
        result, trial = trial_result(self.plan.judging, job.done), job.trial
        for name, limit in result.limits.items():
            trial.set_constraint(name, limit)
        for key, known in result.attributes.items():
            trial.set_user_attr(key, known)
        self.study.tell(trial.number, result.value, skip_if_finished=True)
        self._ended(job, f"{self.plan.judging.metric} {result.value:.4f}")
        keep_the_best_model(self.plan, self.ledger)

    def _copy(self, job: Job, twin: FrozenTrial) -> None:
        copy_result(self.study, job.trial, twin)
        result = twin.user_attrs.get(FAILURE, {}).get("reason") or twin.state.name.lower()
        if twin.state == TrialState.COMPLETE:
            result = f"{self.plan.judging.metric} {twin.value:.4f}"
        self._ended(job, f"the settings of trial {twin.number}, whose result is used: {result}")

    def _fail(self, job: Job, kind: str, reason: str) -> None:
        job.trial.set_user_attr(FAILURE, {"kind": kind, "reason": reason})
        self.study.tell(job.trial.number, state=TrialState.FAIL, skip_if_finished=True)
        self._ended(job, reason)

    def _report(self, job: Job) -> None:
        """Tell the pruner of the evaluations of a trial's first run, and stop it if it says so."""
        if self.plan.judging.pruner == "none" or job.done or job.process is None:
            return
        samples = job.steps * job.runs[0].preset.train.batch_size
        for seen, metrics in job.process.validations():
            percent = 100 // REPORTS * round(REPORTS * seen / samples)
            value = metrics.get(self.plan.judging.metric)
            if value is None or percent in job.reported or percent >= 100:
                continue
            job.reported.add(percent)
            job.trial.report(value, percent)
            if job.trial.should_prune():
                job.pruned = f"pruned at {percent} % with {self.plan.judging.metric} {value:.4f}"
                job.stop()
                return

    def _ended(self, job: Job, what: str) -> None:
        self.jobs.remove(job)
        self.fresh += 1
        self._look(at_once=True)
        self._say(f"trial {job.trial.number}: {what}  ({short_settings(job.trial.params)})")

    def _show_life(self) -> None:
        if time.monotonic() - self._beat >= HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            for job in self.jobs:
                self._heartbeat(job.trial)

    def _heartbeat(self, trial: Trial) -> None:
        if self.plan.url is not None:
            trial.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _say(self, finished: str | None = None) -> None:
        now = time.monotonic()
        if finished is None and now - self._told < 0.5:
            return
        self._told = now
        ours = {job.trial.number for job in self.jobs}
        self.tell(
            Status(
                ledger=self.ledger,
                active=tuple(job.active() for job in self.jobs),
                elsewhere=len([trial for trial in self.ledger.running if trial.number not in ours]),
                trials=self.trials,
                fresh=self.fresh,
                seconds=now - self.started,
                finished=finished,
            )
        )
