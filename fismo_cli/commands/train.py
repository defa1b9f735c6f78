"""`fismo train`: one run, from a preset to a trained model in a run directory."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.output import print_json
from fismo_cli.errors import ExitCode, UsageError
from fismo_cli.preset.loading import LoadedPreset, load_preset

__all__ = ["train"]


def train(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="A preset file, or the name of a shipped preset.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as train.seed=3.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="auto|RUN_DIR",
            help="Continue a run bit for bit; auto: the newest unfinished one of this preset, or a new one.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take 3 steps and show their time and memory; write nothing.")
    ] = False,
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", metavar="DIR", help="Where run directories are made.", file_okay=False)
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Train a model as a preset says."""
    loaded = load_preset(preset, overrides or ())
    if dry_run and resume is not None:
        raise UsageError("--dry-run starts from step 0: leave out --resume")
    with contextlib.suppress(OSError, ValueError):  # before torch and the like, which take seconds to import
        print(f"preparing {loaded.name} ...", file=sys.stderr, flush=True)
    if dry_run:
        _show_dry_run(loaded, as_json)
        return
    from fismo_cli.reporting.console import stderr_console
    from fismo_cli.reporting.progress import progress_sink
    from fismo_cli.reporting.tables import summary_table
    from fismo_cli.runs.directory import RunDirectory
    from fismo_cli.runs.execution import execute

    console = stderr_console()
    progress = progress_sink(console)
    try:
        summary = execute(loaded, runs_dir=runs_dir, resume=resume, sinks=[progress], command=["fismo", *sys.argv[1:]])
    finally:
        progress.close()
    console.print(summary_table(summary))
    if as_json:
        print_json(summary)
    match summary["status"]:
        case "diverged":
            raise typer.Exit(ExitCode.DIVERGED)
        case "interrupted":
            command = RunDirectory(Path(summary["run_dir"])).resume_command
            console.print(f"continue with: {command}", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(128 + summary["signal"])


def _show_dry_run(loaded: LoadedPreset, as_json: bool) -> None:
    from fismo_cli.reporting.console import stderr_console
    from fismo_cli.reporting.tables import dry_run_table
    from fismo_cli.runs.execution import dry_run

    result = dry_run(loaded)
    console = stderr_console()
    for note in result["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if result["plan"] is not None:
        console.print(result["plan"], markup=False, highlight=False, soft_wrap=True)
    console.print(dry_run_table(result))
    if as_json:
        print_json(result)
