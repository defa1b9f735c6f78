"""Writes a comparison's `summary.json` and `report.html`."""

from fismo_cli.comparison.analysis import analyse
from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.results import Results
from fismo_cli.comparison.summary import ComparisonSummary
from fismo_cli.files import whole_file
from fismo_cli.reporting.comparison_html import page
from fismo_cli.runs.directory import json_safe, write_json

__all__ = ["write_report"]


def write_report(plan: Plan, results: Results) -> ComparisonSummary:
    """Analyse a comparison whose runs have finished, write both files, and return the summary.

    Raises:
        FismoError: if runs are missing or not paired.
    """
    report = plan.directory / "report.html"
    summary: ComparisonSummary = json_safe({**analyse(plan, results), "report": str(report)})
    write_json(plan.directory / "summary.json", summary)
    with whole_file(report) as file:
        file.write_text(page(summary, plan.directory), encoding="utf-8")
    return summary
