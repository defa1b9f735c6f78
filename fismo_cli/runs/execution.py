"""Carries out one run here: prepares it, trains, and fills the run directory.

The one path from a preset to a trained model; commands only parse options and print what it returns.
"""

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from fismo_cli.advice import gravest
from fismo_cli.errors import AbortedError, ExitCode, FismoError, QuietError, UsageError, first_line
from fismo_cli.files import link_or_copy, sweep
from fismo_cli.freezing import trained_parameters
from fismo_cli.models import save_flat, save_model
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.reporting import Sink
from fismo_cli.reporting.jsonl import truncate_after
from fismo_cli.runs.class_counts import ClassCounts, classes_document
from fismo_cli.runs.directory import RunDirectory, link_latest, run_identity, write_json
from fismo_cli.runs.environment import describe_run
from fismo_cli.runs.model_card import write_model_card
from fismo_cli.runs.preparation import Prepared, check_space, prepare
from fismo_cli.runs.record import read_run
from fismo_cli.runs.results_csv import write_results
from fismo_cli.runs.resuming import find_resumable, record_resumption, same_checkpoint
from fismo_cli.runs.same_data import check_as_recorded, check_as_trained, say_where
from fismo_cli.runs.telling import Teller
from fismo_cli.runs.trackers import keep_told
from fismo_cli.tasks.base import Progress
from fismo_cli.tasks.identity import identity_hash
from fismo_cli.training.checkpoints.store import CheckpointStore, Loaded
from fismo_cli.training.data.order import order_hash
from fismo_cli.training.device import peak_memory_bytes
from fismo_cli.training.distributed.together import check_parallel
from fismo_cli.training.distributed.world import World, join_world
from fismo_cli.training.events import CheckpointSaved, Event, Finished, Noticed, Trained
from fismo_cli.training.run_summary import RunSummary
from fismo_cli.training.schedule import same_until

__all__ = ["dry_run", "execute"]

NOISE_STEPS = 8
"""Steps of a dry run in which the noise scale is measured."""


def execute(
    loaded: LoadedPreset,
    *,
    runs_dir: Path,
    name: str | None = None,
    link: bool = False,
    resume: str | None = None,
    sinks: Sequence[Sink] = (),
    command: Sequence[str] = (),
    attempt: int = 0,
    allow_changed_data: bool = False,
    same_data: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> RunSummary | None:
    """Train as a preset says and return the summary, also when the run diverged or was interrupted.

    Where torchrun started this process, it trains together with the others; the first of them alone writes, and
    the others return None.

    Args:
        loaded: the preset.
        runs_dir: under which the run's directory is made.
        name: of the run; None: by time, optimizer and seed.
        link: whether `latest` leads to it.
        resume: a run directory to continue, or `auto` for the newest unfinished run of the same preset.
        sinks: told every event, besides the run directory's own; the caller closes them.
        command: the command line, for the record.
        attempt: how often torchrun has started the processes again.
        allow_changed_data: whether a run may go on with data that has changed since it began.
        same_data: a file of a study or a comparison that says what the data must be.
        progress: told how much of the data has been looked at before training.

    Raises:
        DataError: before anything is written, if the data is not what it must be.
        UsageError: before anything is written, for what is wrong with the preset or `resume`.
        AbortedError: if a second signal ended it.
        FismoError: if the run cannot go on.
    """
    with ExitStack() as stack:
        world = stack.enter_context(join_world(attempt))
        run, checkpoint, notes = world.together(
            lambda: (
                find_resumable(resume, loaded, runs_dir, stack, name=name, restarted=attempt > 0)
                if world.main
                else (None, None, ())
            )
        )
        run, step = world.from_main((run, None if checkpoint is None else checkpoint.step))
        checkpoint = world.together(lambda: checkpoint if run is None or world.main else same_checkpoint(run, step))
        prepared = world.together(lambda: _prepare(loaded, world, run, progress))
        _check_same_start(prepared, world)
        changed, data_notes = world.together(
            lambda: _check_data(prepared, run, allow_changed_data, same_data) if world.main else ([], [])
        )
        begun = world.together(
            lambda: (
                _begin(prepared, run, checkpoint, runs_dir, name, attempt > 0, command, changed, stack)
                if world.main
                else None
            )
        )
        if begun is not None and link:
            link_latest(begun[0], runs_dir)
        place = world.from_main(None if begun is None else begun[0])
        assert place is not None
        world.together(lambda: _check_seen(place))
        if begun is None:
            _carry_out(prepared, place, checkpoint, (), [], stack)
            return None
        return _carry_out(prepared, place, checkpoint, (*notes, *begun[1], *data_notes), sinks, stack)


def _carry_out(
    prepared: Prepared,
    run: RunDirectory,
    checkpoint: Loaded | None,
    notes: Sequence[str],
    sinks: Sequence[Sink],
    stack: ExitStack,
) -> RunSummary:
    """Train, tell the sinks, and return the summary; whatever fails, what was trained is kept.

    Raises:
        AbortedError: if a second signal ended it.
        Exception: whatever else did, with a note of what was kept. All failures from here on are exit code 1.
    """
    preset, trainer = prepared.loaded.preset, prepared.trainer
    schedule = preset.train.schedule
    stable = schedule.name in ("constant", "warmup-stable-decay")
    longer_from = min(same_until(trainer.total, trainer.total + 1, schedule), trainer.total - 1) if stable else 0
    store = CheckpointStore(run.checkpoints, keep=preset.checkpoint.keep, longer_from=longer_from)
    summary: RunSummary | None = None
    try:
        tell = Teller(prepared, run, checkpoint, sinks, stack) if trainer.world.main else None
        with closing(_events(prepared, run, checkpoint, store, (*notes, *prepared.notes))) as events:
            for event in events:
                if tell is not None:
                    tell(event)
                if isinstance(event, Finished):
                    summary = event.summary
        trainer.check()
    except KeyboardInterrupt:
        step = store.newest()
        kept = "of this run" if step is None else f"after step {step}; continue from there with: {run.resume_command}"
        raise AbortedError(f"stopped at once: nothing was saved {kept}", trainer.stopped_by) from None
    except Exception as error:
        if isinstance(error, FismoError) and not isinstance(error, QuietError):
            error.exit_code = ExitCode.FAILED  # also of a UsageError: this is no longer before the work
        rescued = _rescued(prepared, run, store, error)
        if rescued is not None and not isinstance(error, QuietError):
            error.add_note(rescued)
        raise
    assert summary is not None
    return summary


def _rescued(prepared: Prepared, run: RunDirectory, store: CheckpointStore, error: Exception) -> str | None:
    """Keep what a run that failed has trained; what to tell about it."""
    trainer = prepared.trainer
    if run.completed_steps() is not None:  # only the very last record could not be written
        return f"The run is complete: its model and summary are in {run.path}"
    problem = trainer.rescue(store, error)
    lost = "" if problem is None else f"Step {trainer.step} could not be saved: {problem}. "
    step = store.newest()
    if step is None:
        return lost or None
    how = f"continue from step {step} with: {run.resume_command}"
    how += f" --nproc {trainer.world.size}" if trainer.world.size > 1 else ""
    if run.weights.exists() and step == trainer.step:
        return f"{lost}The trained model is in {run.path}; {how}"
    return f"{lost}What was trained is kept; {how}"


def _begin(
    prepared: Prepared,
    run: RunDirectory | None,
    checkpoint: Loaded | None,
    runs_dir: Path,
    name: str | None,
    restarted: bool,
    command: Sequence[str],
    changed_data: Sequence[str],
    stack: ExitStack,
) -> tuple[RunDirectory, tuple[str, ...]]:
    """Make a run's directory, or make the one that is continued fit to go on; and what to tell about it."""
    surroundings = _describe(prepared, command)
    check_space(runs_dir if run is None else run.path, prepared.trainer.final_model)
    slow = gravest(prepared.loaded.preset, surroundings)
    advice = () if slow is None else (slow,)
    if run is None:
        run = RunDirectory.create(runs_dir, prepared.loaded, name, numbered=name is None or restarted)
        stack.enter_context(run.lock())
        write_json(run.environment, surroundings)
        return run, advice
    assert checkpoint is not None
    sweep(run.path)
    notes = record_resumption(run, checkpoint, surroundings, changed_data)
    CheckpointStore(run.checkpoints).drop_after(checkpoint.step)  # broken, or of a run of another length
    if load_preset(str(run.preset)).preset != prepared.loaded.preset:  # its data has moved, it logs more often ...
        run.write_preset(prepared.loaded)
    keep_told(run)
    truncate_after(run.metrics, checkpoint.step)
    run.classes.unlink(missing_ok=True)  # of an end that was not the last
    run.summary.unlink(missing_ok=True)  # of the interruption; from here on the run is unfinished again
    return run, (*notes, *advice)


def _prepare(loaded: LoadedPreset, world: World, run: RunDirectory | None, progress: Progress) -> Prepared:
    try:
        return prepare(loaded, world, progress) if world.main else prepare(loaded, world)
    except UsageError as error:
        raise say_where(run, loaded.preset, error) from error


def _check_data(
    prepared: Prepared, run: RunDirectory | None, allowed: bool, same_data: Path | None
) -> tuple[list[str], list[str]]:
    """What has changed of the data of the run that is continued, and what to tell about it; writes nothing."""
    identity = prepared.task.description.get("identity")
    check_as_recorded(same_data, identity)
    if run is None:
        return [], []
    return check_as_trained(run, identity, allowed=allowed, instead="leave out --resume to start a new run")


def _check_seen(run: RunDirectory) -> None:
    """Make sure that this process sees the run's directory, into which it writes its share of every checkpoint.

    Raises:
        UsageError: if it does not.
    """
    if not run.path.is_dir():
        raise UsageError(f"{run.path} is not there on every host: make --runs-dir a directory that all of them share")


def _check_same_start(prepared: Prepared, world: World) -> None:
    """Make sure that all processes begin with the same weights, as each of them has made them, and see the same data.

    Raises:
        FismoError: if they do not: the hosts have other versions, other pretrained weights or other files.
    """
    data = identity_hash(prepared.task.description.get("identity"))
    for what, words in ((prepared.initial_weights, "begins with other weights"), (data, "sees other data")):
        hashes = world.gather(what)
        if (other := next((rank for rank, found in enumerate(hashes) if found != hashes[0]), None)) is not None:
            problem = FismoError(f"process {other} of this run {words} than process 0: are all hosts equal?")
            raise problem if world.main else QuietError(str(problem))


def dry_run(loaded: LoadedPreset, steps: int = 3) -> dict[str, Any] | None:
    """Take a few steps and return their time, the memory they took and who treats which parameter; writes nothing.

    Of several processes that torchrun started, all but the first return None.

    Raises:
        UsageError: for whatever of the preset cannot be had on this machine.
        FismoError: if memory runs out.
    """
    with join_world() as world:
        prepared = world.together(lambda: prepare(loaded, world))
        trainer = prepared.trainer
        measured = 0 if loaded.preset.train.noise_every is None else NOISE_STEPS
        seconds, noise_scale = trainer.try_steps(steps, measured)
        sharded = check_parallel(loaded.preset, world.size)
        received = getattr(trainer.optimizer, "received_bytes", int)()
        each = world.gather((trainer.optimizer_state_bytes(), peak_memory_bytes(trainer.device), received))
        if not world.main:
            return None
        gradients = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
        usual = min(seconds[1:], default=seconds[0])
        plan = getattr(trainer.optimizer, "plan", None)
        return {
            "dry_run": True,
            "notes": [*prepared.notes, *trainer.take_notes()],
            "preset": loaded.name,
            "optimizer": loaded.preset.optimizer.name,
            "device": str(trainer.device),
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            "trained_parameters": trained_parameters(trainer.model),
            "total_steps": trainer.total,
            "total_samples": trainer.total * loaded.preset.train.batch_size,
            "batch_grows": loaded.preset.train.batch_growth is not None,
            "train_samples": len(prepared.task.train),
            "validation_samples": None if prepared.task.validation is None else len(prepared.task.validation),
            "first_step_seconds": seconds[0],
            "step_seconds": usual,
            "samples_per_second": loaded.preset.train.batch_size / usual,
            "optimizer_state_bytes": max(state for state, _, _ in each),
            "peak_memory_bytes": max(peak for _, peak, _ in each),
            "world_size": world.size,
            "gradient_bytes": round((1 if sharded else 2) * gradients * (world.size - 1) / world.size),  # in a ring
            "update_bytes": max(new for _, _, new in each),
            "noise_scale": noise_scale,
            "plan": None if plan is None else str(plan()),
            "data": prepared.task.description.get("identity"),
        }


def _events(
    prepared: Prepared, run: RunDirectory, checkpoint: Loaded | None, store: CheckpointStore, notes: Sequence[str]
) -> Generator[Event]:
    """The trainer's events; the model is kept before the test, the summary is written before the last one."""
    trainer = prepared.trainer
    for note in notes:
        yield Noticed(note)
    with closing(trainer.fit(store, checkpoint)) as events:
        for event in events:
            if isinstance(event, Trained | CheckpointSaved) and trainer.world.main and not run.preset.is_file():
                run.write_preset(prepared.loaded)
                yield Noticed(
                    f"{run.path} was removed while this run wrote to it: it has its preset again, no early records"
                )
            if isinstance(event, Trained):
                if trainer.world.main:
                    try:
                        _keep(prepared, run)
                    except FismoError as error:
                        trainer.fail(error)
            elif isinstance(event, Finished) and trainer.world.main:
                if event.summary["status"] == "completed" and run.model.is_dir():
                    _describe_model(prepared, run, event.summary["metrics"])
                _write_classes(prepared, run)
                summary: RunSummary = {
                    **event.summary,
                    "run_dir": str(run.path),
                    "identity": run_identity(prepared.loaded.preset),
                    "optimizer_state_bytes": trainer.optimizer_state_bytes(),
                    "kept_step": store.newest() if event.summary["status"] == "diverged" else None,
                }
                write_json(run.summary, summary)
                write_results(read_run(run.path))
                yield Finished(summary)
            else:
                yield event


def _keep(prepared: Prepared, run: RunDirectory) -> None:
    """Save the trained model.

    Raises:
        FismoError: if it could not be saved; nothing is left of it.
    """
    preset, model = prepared.loaded.preset, prepared.trainer.kept_model
    try:
        save_model(model, preset, prepared.task, run.model)
        if preset.model.library == "timm":
            link_or_copy(run.model / "model.safetensors", run.weights)  # the same content already
        else:
            save_flat(model, run.weights)
        _describe_model(prepared, run, {})
    except Exception as error:  # libraries report a full disk in exceptions of their own
        reason = getattr(error, "strerror", None) or first_line(error)
        shutil.rmtree(run.model, ignore_errors=True)  # half a result is none, and a checkpoint may need the space
        run.weights.unlink(missing_ok=True)
        raise FismoError(
            f"training is complete, but the model could not be saved in {run.path}: {reason}. Make room; nothing has "
            "to be trained again"
        ) from error


def _write_classes(prepared: Prepared, run: RunDirectory) -> None:
    """How the final model does on each class, where there are classes, and it has been measured."""
    if confusions := prepared.trainer.confusions:
        names = prepared.task.confusion_classes
        counts = {part: ClassCounts.from_matrix(names, matrix.tolist()) for part, matrix in confusions.items()}
        write_json(run.classes, classes_document(counts))


def _describe_model(prepared: Prepared, run: RunDirectory, metrics: Mapping[str, Any]) -> None:
    write_model_card(run.model, prepared.loaded, prepared.task.description, metrics)


def _describe(prepared: Prepared, command: Sequence[str]) -> dict[str, Any]:
    trainer = prepared.trainer
    return describe_run(
        command=command,
        device=trainer.device,
        initial_weights=prepared.initial_weights,
        sample_order=order_hash(trainer.train_config.seed, len(prepared.task.train), prepared.task.balance),
        data=prepared.task.description,
        optimizer=prepared.loaded.preset.optimizer.name,
    )
