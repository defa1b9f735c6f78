"""The page and the tables of a comparison that was cut off, or still runs: what there is, and no verdict."""

import math
import statistics
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.records import judged_run
from fismo_cli.comparison.results import Results
from fismo_cli.files import whole_file
from fismo_cli.metrics import called, cost
from fismo_cli.reporting.comparison_words import opponents
from fismo_cli.reporting.console import print_rows, say
from fismo_cli.reporting.page import document, figure, link, table
from fismo_cli.reporting.run_figures import run_figures
from fismo_cli.runs.directory import json_safe
from fismo_cli.runs.record import read_run
from fismo_cli.words import counted

__all__ = ["is_complete", "print_unfinished", "write_unfinished"]


def is_complete(plan: Plan, results: Results) -> bool:
    """Whether every run that is judged has finished."""
    return all((contender.label, seed) in results.runs for contender in plan.contenders for seed in plan.seeds)


def write_unfinished(plan: Plan, results: Results) -> dict[str, Any]:
    """Write `report.html` of what has finished and return what it says; `summary.json` is for complete comparisons."""
    summary = _summary(plan, results)
    with whole_file(plan.directory / "report.html") as file:
        file.write_text(document(f"fismo compare: {summary['preset']}", _body(plan, results, summary)), "utf-8")
    return summary


def print_unfinished(console: Console, summary: Mapping[str, Any]) -> None:
    """What has finished, what is missing, and where the page is."""
    say(console, _opening(summary))
    say(console, _missing(summary), style="bold")
    print_rows(console, *_progress(summary))
    say(console, f"report: {summary['report']}")


def _summary(plan: Plan, results: Results) -> dict[str, Any]:
    contenders = []
    for contender in plan.contenders:
        label = contender.label
        records = [results.runs[label, seed] for seed in plan.seeds if (label, seed) in results.runs]
        values = [cost(plan.metric, own) for record in records if math.isfinite(own := record.cost(plan.metric))]
        contenders.append(
            {
                "label": label,
                "finished": len(records),
                "diverged": len(records) - len(values),
                "missing": len(plan.seeds) - len(records),
                "tuning_trials": sum(len(tuned.trials) for (own, _), tuned in results.tuned.items() if own == label),
                "mean": statistics.mean(values) if values else None,
            }
        )
    made: dict[str, Any] = json_safe(
        {
            "comparison": str(plan.directory),
            "preset": plan.candidate.loaded.name,
            "candidate": plan.candidate.label,
            "complete": False,
            "seeds": plan.seeds,
            "tune_trials": plan.tune_trials,
            "studies": plan.studies,
            "metric": plan.metric,
            "verdicts": [],
            "contenders": contenders,
            "runs": [judged_run(record) for record in results.runs.values()],
            "report": str(plan.directory / "report.html"),
        }
    )
    return made


def _opening(summary: Mapping[str, Any]) -> str:
    seeds = counted(len(summary["seeds"]), "seed", "paired seeds")
    baselines = [contender["label"] for contender in summary["contenders"][1:]]
    return f"{summary['candidate']} against {opponents(baselines)} on {summary['preset']}, {seeds}."


def _missing(summary: Mapping[str, Any]) -> str:
    """What has to be run before there is a verdict."""
    parts = [f"{entry['missing']} of {entry['label']}" for entry in summary["contenders"] if entry["missing"]]
    trials = [
        f"{count} tuning trials of {entry['label']}"
        for entry in summary["contenders"]
        if (count := summary["studies"] * summary["tune_trials"] - entry["tuning_trials"]) > 0
    ]
    return (
        f"Not complete, so there is no verdict: runs are missing: {', '.join(parts)}"
        f"{'; and ' + ', '.join(trials) if trials else ''}. The same fismo compare goes on with them."
    )


def _progress(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each contender. Means over different seeds compare nothing: they are no result."""
    total, tuned = len(summary["seeds"]), summary["studies"] * summary["tune_trials"]
    rows = [
        [
            entry["label"],
            *([f"{entry['tuning_trials']}/{tuned}"] if tuned else []),
            f"{entry['finished']}/{total}",
            str(entry["diverged"]),
            "" if entry["mean"] is None else f"{entry['mean']:.4f}",
        ]
        for entry in summary["contenders"]
    ]
    return [
        "optimizer",
        *(["tuning"] if tuned else []),
        "runs",
        "diverged",
        f"mean validation {called(summary['metric'])} so far",
    ], rows


def _body(plan: Plan, results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h1>{escape(_opening(summary))}</h1>"
    yield f'<p class="verdict">{escape(_missing(summary))}</p>'
    headings, rows = _progress(summary)
    yield table(headings, [[escape(cell) for cell in row] for row in rows])
    first: dict[str, Path] = {}
    for (label, seed), record in sorted(results.runs.items(), key=lambda item: item[0][1]):
        if label not in {shown.rpartition(", seed ")[0] for shown in first}:
            first[f"{label}, seed {seed}"] = Path(record.summary["run_dir"])
    if first:
        yield "<h2>Figures</h2><p>The first finished run of each optimizer.</p>"
        for name, (drawing, caption) in run_figures({label: read_run(path) for label, path in first.items()}).items():
            yield figure(name, drawing, caption)
    yield "<h2>Runs</h2>"
    yield table(
        ("optimizer", "seed", "status", "directory"),
        [
            [
                escape(label),
                str(seed),
                escape(str(record.summary["status"])),
                link(Path(record.summary["run_dir"]), plan.directory),
            ]
            for (label, seed), record in results.runs.items()
        ],
    )
