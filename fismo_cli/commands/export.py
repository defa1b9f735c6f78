"""`fismo export`: the weights of a run as one file; of a run that has not ended, those in a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.output import print_json
from fismo_cli.errors import UsageError

__all__ = ["export"]


def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The safetensors file to write.", dir_okay=False)],
    step: Annotated[
        str | None,
        typer.Option(
            metavar="N|best|last",
            help="The checkpoint of a step, or that with the lowest validation loss, or the last one; by default the "
            "final model of a run that has completed, else the last checkpoint.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print step and file as JSON on stdout.")] = False,
) -> None:
    """Write the weights of a run to one safetensors file."""
    from fismo_cli.runs.directory import RunDirectory

    run = RunDirectory(run_dir)
    if not run.preset.is_file():
        raise UsageError(f"{run_dir}: not a run directory (it has no preset.yaml)")
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: the file's name must end in .safetensors")
    from fismo_cli.reporting.console import answer_console, say, stderr_console
    from fismo_cli.runs.weights import check_step, export_weights

    check_step(step)

    exported = export_weights(run, path, step)
    for problem in exported.problems:
        say(stderr_console(), f"note: {problem}")
    say(answer_console(as_json=as_json), f"{exported.description} are in {path}")
    if as_json:
        answer = {"run_dir": str(run_dir), "step": exported.step, "path": str(path)}
        print_json({**answer, "final": exported.final, "averaged": exported.averaged})
