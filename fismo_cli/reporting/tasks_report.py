"""Several comparisons of the same optimizers as one: words, tables and page, from their summaries alone."""

import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from fismo_cli.comparison.over_tasks import LARGEST_RATIO, over_tasks
from fismo_cli.comparison.summary import COMPARISON_VERSION, ComparisonSummary, Spread, TasksSummary
from fismo_cli.errors import UsageError
from fismo_cli.files import whole_file
from fismo_cli.metrics import called
from fismo_cli.reporting.comparison_figures import style_of
from fismo_cli.reporting.comparison_tables import Rows
from fismo_cli.reporting.comparison_words import spread
from fismo_cli.reporting.console import print_rows, say
from fismo_cli.reporting.page import document, figure, link, styled, table
from fismo_cli.runs.directory import json_safe, read_json, write_json
from fismo_cli.words import counted

__all__ = ["print_tasks", "rebuild_tasks", "write_tasks"]


WITHIN = (1.0, 1.1, 1.5, 2.0)
"""Ratios of steps of which the table says on how many tasks they were kept."""


def write_tasks(summaries: Sequence[ComparisonSummary], root: Path) -> TasksSummary:
    """Write `summary.json` and `report.html` of several finished comparisons into a directory beside theirs."""
    names = sorted(Path(summary["comparison"]).name for summary in summaries)
    directory = root / f"tasks-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"
    together = {"directory": str(directory), "report": str(directory / "report.html"), **over_tasks(summaries)}
    summary: TasksSummary = json_safe(together)
    directory.mkdir(parents=True, exist_ok=True)
    with whole_file(directory / "report.html") as file:
        file.write_text(_page(summary, directory), encoding="utf-8")
    write_json(directory / "summary.json", summary)
    return summary


def rebuild_tasks(directory: Path) -> TasksSummary:
    """The same again, from the comparisons that a directory is about, which are beside it.

    Raises:
        UsageError: if one of them is not there.
    """
    summaries: list[ComparisonSummary] = []
    for task in read_json(directory / "summary.json").get("tasks", ()):
        place = directory.parent / Path(task["comparison"]).name
        found: Any = read_json(place / "summary.json")
        if "verdicts" not in found:
            raise UsageError(f"{directory}: it is about {place}, which has no summary.json of a comparison")
        if found.get("version") != COMPARISON_VERSION:
            raise UsageError(
                f"{place}: its summary.json is of another version of fismo; run fismo report {place} first"
            )
        found["comparison"], found["report"] = str(place), str(place / "report.html")
        summaries.append(found)
    return write_tasks(summaries, directory.parent)


def print_tasks(console: Console, summary: TasksSummary) -> None:
    """What holds over all tasks, task by task, and where the report is."""
    say(console, _opening(summary))
    for line in _sentences(summary):
        say(console, line, style="bold")
    for headings, rows in (_by_task(summary), _profiles(summary)):
        print_rows(console, headings, rows)
    for note in _caveats(summary):
        say(console, f"note: {note}")
    say(console, f"report: {summary['report']}")


def _opening(summary: TasksSummary) -> str:
    seeds, tasks = counted(summary["seeds"], "paired seed"), counted(len(summary["tasks"]), "task")
    return f"{summary['candidate']} against {', '.join(summary['baselines'])} on {tasks}, with {seeds} on each."


def _sentences(summary: TasksSummary) -> list[str]:
    lines = []
    for against in summary["against"]:
        words = [f"{word} on {count}" for word, count in against["verdicts"].items() if count]
        low, high = (f"{100 * end:.0f}" for end in against["ci95"])
        lines.append(
            f"{summary['candidate']} against {against['baseline']}, of {counted(against['tasks'], 'task')}: "
            f"{', '.join(words)}; its mean {called(summary['metric'])} was better on {against['won']} (of all "
            f"such tasks {low} to {high} %)."
        )
    return lines


def _caveats(summary: TasksSummary) -> list[str]:
    return [
        "The interval takes the tasks for a random sample of those that it speaks of.",
        "Verdicts are corrected for the number of baselines within a task, not for the number of tasks.",
    ]


def _by_task(summary: TasksSummary) -> Rows:
    labels = [summary["candidate"], *summary["baselines"]]
    headings = ("task", *labels, *(f"against {label}" for label in summary["baselines"]))
    rows = [
        (
            task["preset"],
            *(_spread(summary["metric"], task["values"][label]) for label in labels),
            *(task["verdicts"][label]["verdict"] for label in summary["baselines"]),
        )
        for task in summary["tasks"]
    ]
    return headings, rows


def _spread(metric: str, value: Spread | None) -> str:
    return "diverged" if value is None else spread(metric, value)


def _profiles(summary: TasksSummary) -> Rows:
    headings = ("optimizer", "soonest on", *(f"within {ratio:g}x" for ratio in WITHIN[1:]), "score")
    count, rows = len(summary["tasks"]), []
    for profile in summary["profiles"]:
        kept = [sum(ratio <= within for ratio, _ in profile["points"]) for within in WITHIN]
        rows.append((profile["label"], *(f"{number} of {count}" for number in kept), f"{profile['score']:.2f}"))
    return headings, rows


def _page(summary: TasksSummary, directory: Path) -> str:
    return document(f"fismo compare: {counted(len(summary['tasks']), 'task')}", _body(summary, directory))


def _body(summary: TasksSummary, directory: Path) -> Iterator[str]:
    yield f"<h1>{escape(summary['candidate'])} against {escape(', '.join(summary['baselines']))}</h1>"
    yield f"<p>{escape(_opening(summary))}</p>"
    yield from (f'<p class="verdict">{escape(line)}</p>' for line in _sentences(summary))
    yield f'<ul class="soft">{"".join(f"<li>{escape(note)}</li>" for note in _caveats(summary))}</ul>'
    yield f"<h2>Final validation {called(summary['metric'])}, task by task</h2>"
    headings, rows = _by_task(summary)
    linked = [
        [link(directory.parent / Path(task["comparison"]).name / "report.html", directory, task["preset"]), *cells]
        for task, (_, *cells) in zip(summary["tasks"], ([escape(cell) for cell in row] for row in rows), strict=True)
    ]
    yield table([*map(escape, headings)], linked)
    yield "<h2>How soon</h2>"
    yield table(*_profiles(summary))
    yield figure(
        "profiles",
        _drawn(summary),
        "Performance profiles: the share of tasks on which an optimizer took at most so many times as many steps as "
        "the soonest one to a validation result that the median run of each reaches. The score is the mean height.",
    )


def _drawn(summary: TasksSummary) -> Any:
    import plotly.graph_objects as go

    drawing = go.Figure()
    for index, profile in enumerate(summary["profiles"]):
        style, points = style_of(index, profile["label"]), profile["points"]
        x = [1.0, *(ratio for ratio, _ in points), LARGEST_RATIO]
        y = [0.0, *(share for _, share in points), points[-1][1] if points else 0.0]
        line = {"color": style.colour, "dash": style.dash, "shape": "hv"}
        drawing.add_scatter(x=x, y=y, name=style.label, mode="lines", line=line)
    drawing.update_xaxes(title="times the steps of the soonest", range=[1, LARGEST_RATIO])
    drawing.update_yaxes(title="share of tasks", range=[-0.03, 1.03], tickformat=".0%")
    return styled(drawing)
