"""Which weights of a run are meant, and a file of them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fismo_cli.errors import UsageError
from fismo_cli.files import whole_file
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.schema import Preset
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.same_data import say_where
from fismo_cli.training.checkpoints.store import CheckpointStore, Loaded, final_weights, write_weights

if TYPE_CHECKING:
    from torch import nn

    from fismo_cli.tasks.base import Task

__all__ = ["Exported", "check_step", "export_weights", "find_checkpoint", "model_of"]


@dataclass(frozen=True)
class Exported:
    """What was written: the weights after a step, averaged or not; the final model's, or a checkpoint's."""

    step: int
    final: bool
    averaged: bool
    problems: Sequence[str] = ()

    @property
    def description(self) -> str:
        """As the subject of a sentence."""
        averaged = ", averaged (train.ema_decay)," if self.averaged else ""
        return f"the {'final ' if self.final else ''}weights{averaged} of step {self.step}"


def export_weights(run: RunDirectory, path: Path, step: str | None = None) -> Exported:
    """Write the weights of a run to a safetensors file, whole or not at all: their average where the run has one.

    Args:
        run: the run.
        path: the file; its folder is made.
        step: of the checkpoint to take: a number, `best` or `last`. None takes the final model of a run that has
            completed, else the last checkpoint.

    Raises:
        UsageError: if the run has no such weights, or the data, by which a model with adapters is built, is gone.
        FismoError: if they are broken.
    """
    if path.exists() and path.resolve().is_relative_to(run.path.resolve()):
        raise UsageError(f"{path}: this file is the run's own; give another place")
    if step is None and (steps := run.completed_steps()) is not None and run.weights.is_file():
        with whole_file(path) as temporary:
            shutil.copyfile(run.weights, temporary)
        averaged = load_preset(str(run.preset)).preset.train.ema_decay is not None
        return Exported(steps, final=True, averaged=averaged)
    checkpoint = find_checkpoint(run, step)
    if any(".lora_A." in name for name in final_weights(checkpoint)):
        _write_merged(run, checkpoint, path)
    else:
        write_weights(checkpoint, path)
    averaged = bool(checkpoint.state["average"])
    return Exported(checkpoint.step, final=False, averaged=averaged, problems=checkpoint.problems)


def _write_merged(run: RunDirectory, checkpoint: Loaded, path: Path) -> None:
    """Write the weights of a checkpoint that has LoRA's adapters, merged as those of the final model are."""
    from fismo_cli.models import save_flat
    from fismo_cli.tasks import build_task

    preset = load_preset(str(run.preset)).preset
    try:
        model = model_of(checkpoint, preset, build_task(preset))
    except UsageError as error:
        raise say_where(run, preset, error) from error
    save_flat(model, path)


def model_of(checkpoint: Loaded, preset: Preset, task: "Task") -> "nn.Module":
    """The model of a run's preset and task with the weights of a checkpoint."""
    from fismo_cli.models import build_untrained

    model = build_untrained(preset, task)
    model.load_state_dict(final_weights(checkpoint))
    return model


def check_step(step: str | None) -> None:
    """Make sure that an option names a checkpoint as `find_checkpoint` takes it.

    Raises:
        UsageError: if it does not.
    """
    if step not in (None, "best", "last") and not step.isdigit():
        raise UsageError(f"--step {step}: must be the number of a step, best, or last")


def find_checkpoint(run: RunDirectory, step: str | None) -> Loaded:
    """A checkpoint of a run: of a step, `best` by validation loss, or the last one.

    Raises:
        UsageError: if the run has no such checkpoint.
        FismoError: if it is broken.
    """
    store = CheckpointStore(run.checkpoints)
    there = store.steps()
    wanted = None if step in (None, "last") else store.best() if step == "best" else int(step)
    if step == "best" and wanted is None:
        raise UsageError(f"{run.path}: no checkpoint has a validation loss (see evaluate.every and checkpoint.every)")
    if wanted is not None and wanted not in there:
        known = f"there are those of {', '.join(map(str, there))}" if there else "there is none"
        raise UsageError(f"{run.path}: there is no checkpoint of step {wanted}; {known} (see checkpoint.keep)")
    checkpoint = store.load(wanted)
    if checkpoint is None:
        raise UsageError(f"{run.path}: this run has no checkpoint (see checkpoint.every)")
    return checkpoint
