"""`fismo train`: one run, from a preset to a trained model in a run directory."""

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fismo_cli.commands.options import Overrides, PresetName, Quiet, refuse
from fismo_cli.commands.output import print_json
from fismo_cli.errors import DataError, ExitCode
from fismo_cli.own_optimizers import import_arguments
from fismo_cli.preset.files import check_files
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.processes import end_with_parent
from fismo_cli.runs.directory import RunDirectory, check_name
from fismo_cli.training.distributed.together import check_parallel, check_shares

if TYPE_CHECKING:
    from rich.console import Console

    from fismo_cli.training.run_summary import RunSummary

__all__ = ["train"]


def train(
    preset: PresetName,
    overrides: Overrides = None,
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
    allow_changed_data: Annotated[
        bool, typer.Option("--allow-changed-data", help="Resume also where the data has changed since the run began.")
    ] = False,
    runs_dir: Annotated[
        Path, typer.Option("--runs-dir", metavar="DIR", help="Where run directories are made.", file_okay=False)
    ] = Path("runs"),
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the run, and of its directory.")
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes on this host, by torchrun; its own arguments go after --."),
    ] = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    same_data: Annotated[Path | None, typer.Option(hidden=True)] = None,
    torchrun: Annotated[str | None, typer.Option(hidden=True, envvar="TORCHELASTIC_RUN_ID")] = None,
    restarts: Annotated[int, typer.Option(hidden=True, envvar="TORCHELASTIC_RESTART_COUNT")] = 0,
) -> None:
    """Train a model as a preset says."""
    if torchrun is not None:  # before the imports: who finds torchrun gone after them, waits for it for ten minutes
        end_with_parent()
    given, torchrun_arguments = _split(overrides or ())
    loaded = load_preset(preset, given)
    refuse(
        (dry_run and resume is not None, "--dry-run starts from step 0: leave out --resume"),
        (
            name is not None and resume not in (None, "auto"),
            "--name: a run that is continued keeps its name; leave it out",
        ),
        (
            nproc is None and bool(torchrun_arguments),
            f"{' '.join(torchrun_arguments)}: arguments after -- are torchrun's, and need --nproc",
        ),
    )
    if name is not None:
        check_name(name, runs_dir, loaded, new=resume is None and restarts == 0 and torchrun is None)
    if torchrun is None:  # before torch and the like, which take seconds to import
        _check(loaded, nproc if not torchrun_arguments else None, new=resume is None)
    if restarts > 0 and resume is None and not dry_run:
        resume = "auto"  # torchrun started the processes again, after one of them died
    with contextlib.suppress(OSError, ValueError):
        if torchrun is None and not quiet:
            print(f"preparing {loaded.name} ...", file=sys.stderr, flush=True)
    if nproc is not None and torchrun is None:
        flags = {"--dry-run": dry_run, "--json": as_json, "--quiet": quiet, "--allow-changed-data": allow_changed_data}
        values = {"--resume": resume, "--name": name, "--same-data": same_data, "--runs-dir": runs_dir}
        options = [flag for flag, wanted in flags.items() if wanted]
        options += [part for option, value in values.items() if value is not None for part in (option, str(value))]
        _launch(["train", preset, *given, *options, *import_arguments()], nproc, torchrun_arguments, loaded)
    if dry_run:
        _show_dry_run(loaded, as_json, quiet)
        return
    from fismo_cli.reporting.console import looking, stderr_console
    from fismo_cli.reporting.progress import progress_sink
    from fismo_cli.runs.execution import execute

    console = stderr_console(quiet=quiet)
    progress = progress_sink(console)
    try:
        summary = execute(
            loaded,
            runs_dir=runs_dir,
            name=name,
            link=same_data is None,
            resume=resume,
            sinks=[progress],
            command=["fismo", *sys.argv[1:]],
            attempt=restarts,
            allow_changed_data=allow_changed_data,
            same_data=same_data,
            progress=looking(console),
        )
    except DataError as error:
        if same_data is not None:  # for the study or comparison that started this run
            error.exit_code = ExitCode.DATA
        raise
    finally:
        progress.close()
    if summary is not None:  # None: in another process than the first
        _answer(summary, loaded.preset.task, as_json, quiet)


def _answer(summary: "RunSummary", task: str, as_json: bool, quiet: bool) -> None:
    """Show what came out of a run and how to go on; leaves with the exit code of one that did not complete."""
    from fismo_cli.reporting.console import answer_console, print_pairs, say, stderr_console
    from fismo_cli.reporting.tables import summary_rows

    answer = answer_console(as_json=as_json, quiet=quiet)
    print_pairs(answer, {"run": summary["run_dir"], **summary_rows(summary)})
    if as_json:
        print_json(summary)
    match summary["status"]:
        case "completed":
            if not as_json and not quiet:
                _say_what_next(answer, task, Path(summary["run_dir"]))
        case "diverged":
            if (step := summary["kept_step"]) is not None:
                kept = f"fismo export {shlex.quote(summary['run_dir'])} weights.safetensors --step {step}"
                say(stderr_console(), f"the weights of step {step} are kept: {kept}")
            raise typer.Exit(ExitCode.DIVERGED)
        case "interrupted":
            command = RunDirectory(Path(summary["run_dir"])).resume_command
            command += f" --nproc {summary['world_size']}" if summary["world_size"] > 1 else ""
            say(stderr_console(), f"continue with: {command}")
            raise typer.Exit(128 + (summary["signal"] or 0))


def _say_what_next(console: "Console", task: str, run: Path) -> None:
    """How the trained model is loaded and used."""
    from fismo_cli.reporting.console import say
    from fismo_cli.runs.model_card import loading_lines

    place = shlex.quote(str(run))
    use = f"fismo predict {place} IMAGES" if task == "image-classification" else f'fismo generate {place} "TEXT"'
    say(console, "\nload the model in Python:")
    for line in loading_lines(task, run / "model"):
        say(console, f"    {line}")
    say(console, f"use it: {use}\nlook at the run: fismo report {place}")


def _check(loaded: LoadedPreset, processes: int | None, *, new: bool) -> None:
    """What can be wrong with a preset that is well formed, as far as a look at the disk shows it.

    Args:
        loaded: the preset.
        processes: how many train together; None: not known here.
        new: whether no run is continued, whose data is looked for where it was.

    Raises:
        PresetError: files are missing.
        UsageError: the processes cannot train together.
    """
    if new:
        check_files(loaded)
    if processes is not None:
        check_parallel(loaded.preset, processes)
        check_shares(loaded.preset.train.batch_size, loaded.preset.train.accumulate, processes)


def _split(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and what follows them for torchrun."""
    first = next((index for index, text in enumerate(given) if text.startswith("-")), len(given))
    return list(given[:first]), list(given[first:])


def _launch(arguments: list[str], nproc: int, torchrun_arguments: list[str], loaded: LoadedPreset) -> NoReturn:
    """Run the command in several processes and leave with their exit code."""
    from fismo_cli.environment import usable_cores
    from fismo_cli.runs.launcher import launch

    threads = loaded.preset.train.threads or max(1, (usable_cores() or 1) // nproc)
    raise typer.Exit(launch(arguments, nproc=nproc, torchrun_arguments=torchrun_arguments, threads=threads))


def _show_dry_run(loaded: LoadedPreset, as_json: bool, quiet: bool) -> None:
    from fismo_cli.reporting.console import answer_console, print_pairs, say, stderr_console
    from fismo_cli.reporting.tables import dry_run_rows
    from fismo_cli.runs.execution import dry_run

    result = dry_run(loaded)
    if result is None:  # of another process than the first
        return
    for note in result["notes"]:
        say(stderr_console(quiet=quiet), f"note: {note}")
    answer = answer_console(as_json=as_json, quiet=quiet)
    if result["plan"] is not None:
        say(answer, result["plan"])
    print_pairs(answer, dry_run_rows(result))
    if as_json:
        print_json(result)
