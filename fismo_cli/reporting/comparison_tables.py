"""The tables of a comparison for the terminal, from its summary alone."""

from rich.console import Console

from fismo_cli.comparison.summary import Budget, ComparisonSummary, Spread
from fismo_cli.metrics import called
from fismo_cli.reporting.comparison_words import MANY, caveats, number, opening, spread, verdict_lines
from fismo_cli.reporting.console import print_rows, say

__all__ = ["Rows", "budget_table", "cost_table", "print_comparison", "quality_table"]

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings, and one row an optimizer."""


def quality_table(summary: ComparisonSummary) -> Rows:
    """How well each optimizer trained, and the verdict on it."""
    verdicts = {verdict["baseline"]: verdict for verdict in summary["verdicts"]}
    metric = summary["metric"]
    other = {"loss": "top1"}.get(metric, "loss")
    headings = (
        *("optimizer", f"validation {called(metric)}", called(other)),
        *("test loss", "test top-1", "p (Holm)", "verdict"),
    )
    rows: list[tuple[str, ...]] = []
    for contender in summary["contenders"]:
        verdict = verdicts.get(contender["label"])
        validation, test = (contender["metrics"].get(part, {}) for part in ("validation", "test"))
        rows.append(
            (
                contender["label"],
                _spread(contender["value"], contender["diverged"], metric),
                _mean(other, validation.get(other)),
                _mean("loss", test.get("loss")),
                _mean("top1", test.get("top1")),
                "" if verdict is None else f"{verdict['p_holm']:.3g}",
                "" if verdict is None else _adjective(summary["candidate"], verdict["verdict"]),
            )
        )
    return _without_empty(headings, rows)


def cost_table(summary: ComparisonSummary) -> Rows:
    """What each optimizer costs, and how soon it reaches the target."""
    parameters = summary["environment"]["parameters"]
    headings = (
        "optimizer",
        "steps to target",
        "s to target",
        "ms a step",
        "its share",
        "peak MiB",
        "state B/parameter",
    )
    rows: list[tuple[str, ...]] = []
    for contender in summary["contenders"]:
        share, milliseconds = contender["optimizer_share"], contender["step_milliseconds"]
        memory, state = contender["peak_memory_bytes"], contender["optimizer_state_bytes"]
        rows.append(
            (
                contender["label"],
                _reached(contender["steps_to_target"], "{:,.0f}"),
                _reached(contender["seconds_to_target"], "{:.1f}"),
                "" if milliseconds is None else f"{milliseconds:.1f}",
                "" if share is None else f"{100 * share:.0f} %",
                "" if memory is None else f"{memory / 2**20:,.0f}",
                "" if state is None else f"{state / parameters:.1f}",
            )
        )
    return _without_empty(headings, rows)


def budget_table(summary: ComparisonSummary) -> Rows:
    """What more tuning would have brought: the mean of what was judged by trials, one row a number of trials."""
    tunings = summary["tuning"]
    headings = ("tuning trials", "studies", *(tuning["label"] for tuning in tunings))
    rows = [
        (
            str(budgets[0]["trials"]),
            str(budgets[0]["searches"]),
            *(_budget(summary["metric"], budget) for budget in budgets),
        )
        for budgets in zip(*(tuning["budgets"] for tuning in tunings), strict=True)
    ]
    return headings, rows


def _budget(metric: str, budget: Budget) -> str:
    mean, deviation = budget["mean"], budget["standard_deviation"]
    if deviation is None or isinstance(mean, str):
        return "diverged"
    return spread(metric, {"mean": mean, "standard_deviation": deviation})


def _without_empty(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> Rows:
    kept = [index for index in range(len(headings)) if any(row[index] for row in rows)]
    return tuple(headings[index] for index in kept), [tuple(row[index] for index in kept) for row in rows]


def print_comparison(console: Console, summary: ComparisonSummary) -> None:
    """Verdict in words, results, where the time went, where the report is."""
    say(console, opening(summary))
    for line in verdict_lines(summary):
        say(console, line, style="bold")
    tables = [quality_table(summary), cost_table(summary), *([budget_table(summary)] if summary["studies"] > 1 else [])]
    for headings, rows in tables:
        print_rows(console, headings, rows)
    seconds = {contender["label"]: 0.0 for contender in summary["contenders"]}
    for run in summary["runs"]:
        seconds[run["label"]] += run["seconds"]
    total = sum(seconds.values())
    most = sorted(seconds.items(), key=lambda item: -item[1])[:MANY] if len(seconds) > MANY + 1 else seconds.items()
    shares = ", ".join(f"{label} {100 * own / total:.0f} %" for label, own in most)
    more = ", ..." if len(most) < len(seconds) else ""
    say(console, f"training time of the judged runs: {total:.0f} s ({shares}{more})")
    for caveat in caveats(summary):
        say(console, f"note: {caveat}")
    say(console, f"report: {summary['report']}")


def _adjective(candidate: str, verdict: str) -> str:
    return f"{candidate} {verdict}" if verdict in ("better", "worse") else verdict


def _mean(metric: str, value: Spread | None) -> str:
    if value is None:
        return ""
    return f"{100 * value['mean']:.2f} %" if metric.startswith("top") else number(value["mean"])


def _spread(value: Spread | None, diverged: int, metric: str) -> str:
    if value is None:
        return "all diverged" if diverged else ""
    text = spread(metric, value)
    return f"{text} ({diverged} diverged)" if diverged else text


def _reached(value: float | str | None, pattern: str) -> str:
    if value is None:
        return ""
    return "not reached" if isinstance(value, str) else pattern.format(value)
