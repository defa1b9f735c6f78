"""`fismo runs`: the runs that are there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fismo_cli.commands.output import print_json
from fismo_cli.errors import UsageError

if TYPE_CHECKING:
    from fismo_cli.runs.listing import ListedRun

__all__ = ["runs"]

STATUSES = ("completed", "diverged", "interrupted", "running", "unfinished")


def runs(
    directories: Annotated[
        list[Path] | None, typer.Argument(metavar="DIR...", help="Where to look for runs; by default in runs.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this preset.")] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs with this optimizer.")] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help=f"Only runs that are this: {', '.join(STATUSES)}.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="METRIC", help="The best first, by a validation metric such as loss or top1.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N lines.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON on stdout.")] = False,
) -> None:
    """List the runs that are there, the newest first."""
    from fismo_cli.reporting.console import answer_console, print_rows, say, stderr_console
    from fismo_cli.runs.listing import list_runs, sorted_by

    roots = directories or [Path("runs")]
    if missing := [root for root in directories or () if not root.is_dir()]:
        raise UsageError.of(f"{root}: there is no such directory" for root in missing)
    if status is not None and status not in STATUSES:
        raise UsageError(f"--status {status}: must be one of {', '.join(STATUSES)}")
    every = list_runs(roots[0]) if len(roots) == 1 else [run for root in roots for run in list_runs(root)]
    wanted = {"preset": preset, "optimizer": optimizer, "status": status}
    found = [run for run in every if all(value in (None, getattr(run, name)) for name, value in wanted.items())]
    if sort is not None:
        known = sorted({name for run in found for name in run.metrics})
        if known and sort not in known:
            raise UsageError(f"--sort {sort}: these runs have {', '.join(known)}")
        found = sorted_by(found, sort)
    found = found[:last]
    if as_json:
        print_json({"runs": [run.as_plain() for run in found]})
    elif found:
        print_rows(answer_console(as_json=False), *_table(found))
    else:
        say(stderr_console(), f"no such run among {len(every)}" if every else f"no run in {', '.join(map(str, roots))}")


def _table(found: list["ListedRun"]) -> tuple[list[str], list[list[str]]]:
    from fismo_cli.metrics import shown

    names = list(dict.fromkeys(name for run in found for name in run.metrics))
    rows = [
        [
            str(run.path),
            run.optimizer or "",
            run.status,
            f"{run.steps}" if run.total_steps in (None, run.steps) else f"{run.steps}/{run.total_steps}",
            *(shown(name, value) if (value := run.metrics.get(name)) is not None else "" for name in names),
            "" if run.seconds is None else f"{run.seconds:.0f} s",
            f"{run.changed:%Y-%m-%d %H:%M}",
        ]
        for run in found
    ]
    return ["run", "optimizer", "status", "steps", *names, "time", "written"], rows
