"""`fismo report`: tables and page of runs, a comparison or a study again, from their files alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fismo_cli.commands.output import print_json
from fismo_cli.errors import UsageError
from fismo_cli.runs.directory import read_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["report"]

Kind = Literal["run", "study", "comparison", "tasks"]


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="A directory that fismo train, fismo tune or fismo compare made; or several of fismo train.",
        ),
    ],
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="FISMO_STORAGE",
            help="The database of a study or comparison; else what is here.",
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Of runs: write a picture of the figures, too.", dir_okay=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Rebuild the tables and the page of a run, a study or a comparison."""
    from fismo_cli.reporting.console import answer_console

    kinds, console = [_kind(directory) for directory in directories], answer_console(as_json=as_json)
    if png is not None:
        from fismo_cli.reporting.picture import check_png

        check_png(png)
        if any(kind != "run" for kind in kinds):
            raise UsageError("--png: only of runs of fismo train")
    if all(kind == "run" for kind in kinds):
        summary = _report_runs(console, directories, png)
    elif len(directories) > 1:
        other = next(directory for directory, kind in zip(directories, kinds, strict=True) if kind != "run")
        raise UsageError(f"{other}: several directories must be runs of fismo train, all of them; give this one alone")
    elif kinds == ["study"]:
        summary = _report_study(console, directories[0], storage)
    elif kinds == ["tasks"]:
        summary = _report_tasks(console, directories[0])
    else:
        summary = _report_comparison(console, directories[0], storage)
    if as_json:
        print_json(summary)


def _kind(directory: Path) -> Kind:
    """Whose directory it is, by the files that each kind has from its beginning on.

    Raises:
        UsageError: it is none of them.
    """
    if (directory / "plan.json").is_file():
        return "comparison"
    if any((directory / name).exists() for name in ("study.json", "journal.log", "trials")):
        return "study"
    if (directory / "preset.yaml").is_file():
        return "run"
    if "profiles" in read_json(directory / "summary.json"):
        return "tasks"
    reason = "there is no such directory" if not directory.exists() else "it has no preset.yaml, trials or plan.json"
    raise UsageError(
        f"{directory}: not a directory of fismo train, fismo tune or fismo compare ({reason}); give a run "
        "(runs/PRESET/NAME), a study (studies/NAME) or a comparison (comparisons/NAME)"
    )


def _report_runs(console: "Console", directories: list[Path], png: Path | None) -> Any:
    from fismo_cli.reporting.run_report import print_runs, write_run_report

    runs, page = write_run_report(list(dict.fromkeys(directories)), png)
    print_runs(console, runs, page)
    summaries = [run.summary for run in runs.values()]
    return {**summaries[0], "report": str(page)} if len(runs) == 1 else {"runs": summaries, "report": str(page)}


def _report_study(console: "Console", directory: Path, url: str | None) -> Any:
    from fismo_cli.reporting.tuning_report import print_study, rebuild_study_page

    summary = rebuild_study_page(directory, url)
    print_study(console, summary)
    return summary


def _report_tasks(console: "Console", directory: Path) -> Any:
    from fismo_cli.reporting.tasks_report import print_tasks, rebuild_tasks

    summary = rebuild_tasks(directory)
    print_tasks(console, summary)
    return summary


def _report_comparison(console: "Console", directory: Path, url: str | None) -> Any:
    from fismo_cli.comparison.plan import read_plan
    from fismo_cli.comparison.studies import stored_results
    from fismo_cli.reporting.comparison_report import write_report
    from fismo_cli.reporting.comparison_tables import print_comparison
    from fismo_cli.reporting.comparison_unfinished import is_complete, print_unfinished, write_unfinished

    plan = read_plan(directory)
    results = stored_results(plan, url)
    if is_complete(plan, results):
        summary = write_report(plan, results)
        print_comparison(console, summary)
        return summary
    so_far = write_unfinished(plan, results)
    print_unfinished(console, so_far)
    return so_far
