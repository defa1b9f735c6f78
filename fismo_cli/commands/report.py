"""`fismo report`: tables and page of a comparison or a study again, from its files alone."""

from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.output import print_json

__all__ = ["report"]


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory that `fismo compare` or `fismo tune` made.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Rebuild the tables and the page of a comparison or a study."""
    if (directory / "summary.json").exists() and not (directory / "plan.json").exists():
        from fismo_cli.reporting.console import stderr_console
        from fismo_cli.reporting.tuning_report import print_study, rebuild_study_page

        summary = rebuild_study_page(directory)
        print_study(stderr_console(), summary)
        if as_json:
            print_json(summary)
        return
    from fismo_cli.comparison.plan import read_plan
    from fismo_cli.comparison.running import stored_results
    from fismo_cli.reporting.comparison_report import write_report
    from fismo_cli.reporting.comparison_tables import print_comparison
    from fismo_cli.reporting.console import stderr_console

    plan = read_plan(directory)
    summary = write_report(plan, stored_results(plan))
    print_comparison(stderr_console(), summary)
    if as_json:
        print_json(summary)
