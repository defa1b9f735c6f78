"""Trained models that a command is given."""

from pathlib import Path

from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.directory import RunDirectory

__all__ = ["no_model", "refuse_other_task"]


def refuse_other_task(path: Path, task: str, instead: str) -> None:
    """Make sure that a path can be that of a model of a task.

    Args:
        path: A run directory, or the folder of a model.
        task: The task.
        instead: The command for other models.

    Raises:
        UsageError: It is not there, a run of another task, or one that has no model.
    """
    run = RunDirectory(path)
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such directory; give a run directory or the folder of a model")
    if not run.preset.is_file():
        return
    own = load_preset(str(run.preset)).preset.task
    if own != task:
        raise UsageError(f"{path}: a run of {own}; try: {instead}")
    if not run.model.is_dir():
        raise UsageError(f"{path}: this run {no_model(run)}")


def no_model(run: RunDirectory) -> str:
    """Why a run has no model, and what to do."""
    if run.status() == "diverged":
        return "diverged, so it has no model"
    if not any(run.checkpoints.glob("step-*")):
        return f"has no model and no checkpoint to continue from; start anew with: fismo train {run.preset}"
    return f"has no model yet; continue it with: {run.resume_command}"
