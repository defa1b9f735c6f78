"""Which run is continued and from which checkpoint, and what its record says of that."""

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fismo_cli.errors import FismoError, UsageError
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.preset.schema import Preset, ScheduleConfig
from fismo_cli.runs.directory import RunDirectory, check_same_preset, read_json, unfinished_runs, write_json
from fismo_cli.runs.environment import differences
from fismo_cli.runs.record import read_run
from fismo_cli.runs.same_data import data_of_run
from fismo_cli.training.checkpoints.store import CheckpointStore, Loaded
from fismo_cli.training.schedule import same_until, total_steps

__all__ = ["find_resumable", "record_resumption", "same_checkpoint"]


def find_resumable(
    resume: str | None,
    loaded: LoadedPreset,
    runs_dir: Path,
    stack: ExitStack,
    *,
    name: str | None = None,
    restarted: bool = False,
) -> tuple[RunDirectory | None, Loaded | None, tuple[str, ...]]:
    """The run to continue, its checkpoint, and what to tell about the choice.

    Args:
        resume: a run directory, or `auto` for the newest unfinished run of the same preset; None: none.
        loaded: the preset.
        runs_dir: where runs are looked for.
        stack: holds the lock of the run that is found.
        name: of the run that is looked for by `auto`; None: any.
        restarted: whether torchrun has started this process again, after it had made the run.

    Raises:
        UsageError: if that run is another preset's, has ended, or cannot have another length; or if there is one of
            this name that cannot be continued.
        FismoError: if it has no checkpoint that can be read, or somebody trains in it.
    """
    if resume is None:
        return None, None, ()
    if resume != "auto":
        run = RunDirectory(_not_a_link(Path(resume)))
        other_length = check_same_preset(run, loaded, data_is_known=data_of_run(run) is not None)
        status = run.status()
        if status == "diverged" or (status == "completed" and not other_length):
            longer = "; to make it longer, say train.steps or train.epochs" if status == "completed" else ""
            raise UsageError(f"--resume {run.path}: this run has {status}; there is nothing to continue{longer}")
        stack.enter_context(run.lock())
        store = CheckpointStore(run.checkpoints)
        checkpoint = store.load(last_that_fits(run, loaded.preset, store) if other_length else None)
        if checkpoint is None:
            raise FismoError(f"--resume {run.path}: it has no checkpoint to continue from (see checkpoint.every)")
        return run, checkpoint, _resume_notes(run, checkpoint)
    notes: list[str] = []
    for run in unfinished_runs(runs_dir, loaded):
        if name is not None and run.path.name != name:
            continue
        with ExitStack() as lock:
            try:
                lock.enter_context(run.lock())
                checkpoint = CheckpointStore(run.checkpoints).load()
            except FismoError as error:
                notes.append(str(error))
                continue
            # It may have ended between the search and the lock.
            if checkpoint is not None and run.status() in (None, "interrupted"):
                stack.push(lock.pop_all())
                return run, checkpoint, (*notes, *_resume_notes(run, checkpoint))
    if name is not None and not restarted and (place := runs_dir / loaded.name / name).exists():
        why = notes[0] if notes else "it is no unfinished run of this preset with a checkpoint"
        raise UsageError(f"--name {name}: {place} is there already, and cannot be continued: {why}")
    if notes:
        return None, None, (*notes, "starting a new run instead")
    return (
        None,
        None,
        (f"no unfinished run of this preset with a checkpoint in {runs_dir / loaded.name}; starting a new one",),
    )


def last_that_fits(run: RunDirectory, preset: Preset, store: CheckpointStore) -> int:
    """Step of the newest checkpoint up to which a run of another length would have been the same.

    Args:
        run: the run that is there.
        preset: of the same run with another length.
        store: its checkpoints.

    Raises:
        UsageError: if there is none.
    """
    started, saved = read_run(run.path).of_kind("RunStarted"), load_preset(str(run.preset)).preset
    where = f"--resume {run.path}: another train.steps or train.epochs"
    if not started or preset.train.batch_growth is not None:
        why = "its batch may grow" if started else "its metrics.jsonl does not say how much data it has"
        raise UsageError(f"{where} is not possible: {why}")
    before, after = (total_steps(config, started[0]["train_samples"]) for config in (saved.train, preset.train))
    if after <= before:
        raise UsageError(f"--resume {run.path}: a run of {before} steps can only be made longer, not {after} steps")
    # The last step's has what is only done at the end: an evaluation and a progress record that were not due.
    same, there = min(same_until(before, after, preset.train.schedule), before - 1), store.complete_steps()
    if fitting := [step for step in there if step <= same]:
        return max(fitting)
    if not there:
        raise UsageError(f"{where} needs a checkpoint to go on from (see checkpoint.every)")
    raise UsageError(f"{where} is not possible: {_why_not_longer(preset.train.schedule, same)}")


def _why_not_longer(schedule: ScheduleConfig, same: int) -> str:
    """Why no checkpoint fits a run of another length, whose learning rates would be the same for so many steps."""
    if schedule.name in ("cosine", "linear"):
        return f"with train.schedule.name={schedule.name} all learning rates depend on the length of the run"
    if 0 < schedule.warmup < 1:
        return f"train.schedule.warmup={schedule.warmup:g} is a share of its steps; a number of steps would stay"
    return f"it would be the same only until step {same}, and no checkpoint is as early"


def _not_a_link(path: Path) -> Path:
    """What a link such as `runs/latest` leads to, which may be another run tomorrow."""
    return path.parent / path.readlink() if path.is_symlink() else path


def _resume_notes(run: RunDirectory, checkpoint: Loaded) -> tuple[str, ...]:
    return (*checkpoint.problems, f"continuing {run.path} from step {checkpoint.step}")


def same_checkpoint(run: RunDirectory, step: int | None) -> Loaded:
    """The checkpoint of a step that the main process found, in another one.

    Raises:
        FismoError: if it is not there: the run is not on a file system that all hosts share.
    """
    checkpoint = CheckpointStore(run.checkpoints).load(step)
    if checkpoint is None:
        raise FismoError(
            f"{run.checkpoints} has no checkpoint here: all hosts must see the directory of a run to resume"
        )
    return checkpoint


def record_resumption(
    run: RunDirectory, checkpoint: Loaded, now: dict[str, Any], changed_data: Sequence[str]
) -> tuple[str, ...]:
    """Add the resumption to `environment.json`; say so where the result cannot be expected to the last bit."""
    before = read_json(run.environment)
    changed = differences(before, json.loads(json.dumps(now))) if before else []
    record = {
        "step": checkpoint.step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": now["command"],
        "changed": changed,
        "changed_data": list(changed_data),
    }
    data = {"data": now["data"]} if changed_data else {}  # the next time, the run is held to what it went on with
    write_json(run.environment, {**(before or now), **data, "resumed": [*before.get("resumed", []), record]})
    if not changed:
        return ()
    return (f"changed since this run was started: {'; '.join(changed)}; the last digits of its results may differ",)
