"""Measures the model that a run left behind, on the data its preset names or on other data."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fismo_cli.errors import UsageError
from fismo_cli.models import load_model_dir, saved_classes
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.preset.schema import Preset
from fismo_cli.runs.class_counts import ClassCounts
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.same_data import (
    check_as_trained,
    data_of_run,
    names_other_data,
    names_other_source,
    say_where,
    splits_anew,
)
from fismo_cli.runs.weights import find_checkpoint, model_of
from fismo_cli.tasks import build_task
from fismo_cli.tasks.base import Progress, Task
from fismo_cli.training.device import choose_device, explain_memory
from fismo_cli.training.evaluation import evaluate_part
from fismo_cli.training.seeding import configure_torch

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """What a model does on a part: metrics, and of image classification each class (not of thousands)."""

    metrics: dict[str, float]
    classes: ClassCounts | None


def measure(
    run_dir: Path,
    loaded: LoadedPreset,
    *,
    step: str | None = None,
    allow_changed_data: bool = False,
    tell: Callable[[str], None] = lambda note: None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Measurement | None]:
    """What the model does on the validation and the test part, None where the data has no such part.

    Args:
        run_dir: a run directory.
        loaded: its preset, with overrides such as other data.
        step: of the checkpoint whose weights are measured (see `find_checkpoint`); None: the finished model.
        allow_changed_data: whether to measure also where the data has changed since the run began.
        tell: is told what a user should know.
        progress: is told how much of the data has been looked at.

    Raises:
        DataError: if the data is named as it was, but is not what it was.
        UsageError: if model and data do not fit, or there is nothing to measure on.
        FismoError: if memory runs out.
    """
    preset = loaded.preset
    configure_torch(threads=preset.train.threads, deterministic=preset.train.deterministic)
    device = choose_device(preset.train.device)
    run = RunDirectory(run_dir)
    try:
        task = _data(run, preset, progress)
    except UsageError as error:
        raise say_where(run, preset, error) from error
    identity = task.description.get("identity")
    if names_other_data(run, preset):
        if identity != data_of_run(run):
            tell("measured on other data than the run's own")
        elif splits_anew(run, preset):
            tell("measured on the run's own data, split in another way: the run was trained on some of it")
        notes = list(task.notes)
    else:
        instead = "name other data by data.* overrides"
        notes = check_as_trained(run, identity, allowed=allow_changed_data, instead=instead)[1]
    for note in notes:
        tell(note)
    if task.validation is None and task.test is None:
        raise UsageError("the data has neither a validation nor a test part: see data.test_fraction")
    model = load_model_dir(run_dir, preset, task) if step is None else _model_at(run, step, preset, task, tell)
    model.to(device)
    batch_size = preset.evaluate.batch_size or preset.train.batch_size // preset.train.accumulate
    found: dict[str, Measurement | None] = {}
    with explain_memory(device, lambda: f"with {batch_size} samples at once. Set evaluate.batch_size to fewer"):
        for name, part in (("validation", task.validation), ("test", task.test)):
            found[name] = None
            if part is None:
                continue
            measured = evaluate_part(
                task,
                model,
                part,
                batch_size=batch_size,
                device=device,
                precision=preset.train.precision,
                workers=preset.data.workers,
            )
            assert measured is not None  # no signal asks to leave
            matrix, classes = measured.confusion, task.confusion_classes
            counts = None if matrix is None else ClassCounts.from_matrix(classes, matrix.tolist())
            found[name] = Measurement(measured.metrics, counts)
    return found


def _model_at(run: RunDirectory, step: str, preset: Preset, task: Task, tell: Callable[[str], None]) -> nn.Module:
    """The model with the weights of a checkpoint, in evaluation mode."""
    checkpoint = find_checkpoint(run, step)
    for problem in checkpoint.problems:
        tell(problem)
    tell(f"measured with the weights of step {checkpoint.step}")
    return model_of(checkpoint, preset, task).eval()


def _data(run: RunDirectory, preset: Preset, progress: Progress) -> Task:
    """What to measure: other data as it is, the run's own (also where it has moved) split as in training.

    Raises:
        UsageError: It cannot be used.
    """
    known = saved_classes(run.path, preset)
    other = names_other_source(run, preset)
    task = build_task(preset, known=known, split=not other, progress=progress)
    own, found = data_of_run(run), task.description.get("identity")
    if other and own and found and all(own.get(part) == found[part] for part in found):
        with suppress(UsageError):  # a part that is not measured has what the run does not know
            whole = build_task(preset, known=known, progress=progress)
            if whole.description.get("identity") == own:
                return whole
    return task
