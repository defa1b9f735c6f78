"""`fismo export`: the weights in a run's newest checkpoint as one file, for a run that has not ended."""

from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.output import print_json
from fismo_cli.errors import UsageError

__all__ = ["export"]


def export(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A run directory; its newest whole checkpoint is taken.")
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The safetensors file to write.", dir_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print step and file as JSON on stdout.")] = False,
) -> None:
    """Write the weights in a checkpoint to one safetensors file."""
    from fismo_cli.runs.directory import RunDirectory

    run = RunDirectory(run_dir)
    if not run.preset.is_file():
        raise UsageError(f"{run_dir}: not a run directory (it has no preset.yaml)")
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: the file's name must end in .safetensors")
    from fismo_cli.reporting.console import say, stderr_console
    from fismo_cli.training.checkpoint import CheckpointStore, write_weights

    checkpoint = CheckpointStore(run.checkpoints).load()
    if checkpoint is None:
        raise UsageError(f"{run_dir}: this run has no checkpoint (see checkpoint.every)")
    write_weights(checkpoint, path)
    console = stderr_console()
    for problem in checkpoint.problems:
        say(console, f"note: {problem}")
    say(console, f"the weights of step {checkpoint.step} are in {path}")
    if as_json:
        print_json({"run_dir": str(run_dir), "step": checkpoint.step, "path": str(path)})
