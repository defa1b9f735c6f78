"""A study in words, and its tables, from its summary alone."""

from fismo_cli.metrics import cost
from fismo_cli.reporting.tables import noise_words
from fismo_cli.tuning.search_space import short_name, short_settings, short_value
from fismo_cli.tuning.summary import StudySummary
from fismo_cli.words import counted

__all__ = ["best_table", "importance_table", "notes", "opening", "result_sentence"]

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings, and rows."""

SHOWN = 5
"""Trials in the table on the terminal."""


def opening(summary: StudySummary) -> str:
    """What was searched, by how many trials."""
    plan, trials = summary["plan"], summary["trials"]
    names = ", ".join(short_name(name) for name in plan["space"])
    repeats = plan["judging"]["repeats"]
    each = f", each the mean of {repeats} seeds" if repeats > 1 else ""
    return (
        f"{plan['optimizer']} on {plan['preset']}: {counted(trials['finished'], 'trial')} finished, "
        f"{trials['failed']} failed, "
        f"{trials['pruned']} pruned, of {plan['samples']:,} samples{each}; searched: {names}."
    )


def result_sentence(summary: StudySummary) -> str:
    """The best trial, and what it gained over the starting point."""
    best, metric = summary["best"], summary["plan"]["judging"]["metric"]
    if best is None:
        return "No trial kept all limits." if summary["trials"]["finished"] else "No trial finished."
    text = f"best: validation {metric} {best['value']:.5g} in trial {best['trial']} ({short_settings(best['params'])})"
    start = next((trial["value"] for trial in summary["trial_list"] if trial["original"] == 0), None)
    return text if start is None else f"{text}; the starting point gave {start:.5g}"


def best_table(summary: StudySummary, count: int | None = SHOWN) -> Rows:
    """The best trials, best first."""
    judging, space = summary["plan"]["judging"], summary["plan"]["space"]
    metric = judging["metric"]
    done = [t for t in summary["trial_list"] if t["state"] == "complete" and t.get("same_as") is None]
    kept = [trial for trial in done if all(value <= 0 for value in trial["limits"].values())]
    kept.sort(key=lambda trial: (cost(metric, trial["value"] or 0.0), trial["number"]))
    headings = ("trial", judging["metric"], *(short_name(name) for name in space), "seconds", "ms a step")
    rows = [
        (
            str(trial["number"]),
            f"{trial['value']:.5g}",
            *(short_value(trial["params"][name]) for name in space),
            "" if trial["seconds"] is None else f"{trial['seconds']:.1f}",
            "" if trial["step_seconds"] is None else f"{1000 * trial['step_seconds']:.1f}",
        )
        for trial in kept[:count]
    ]
    return headings, rows


def importance_table(summary: StudySummary) -> Rows:
    """Which settings matter."""
    rows: list[tuple[str, ...]] = [
        (short_name(name), f"{100 * share:.0f} %") for name, share in summary["importances"].items()
    ]
    return ("setting", "importance"), rows


def notes(summary: StudySummary) -> list[str]:
    """What weakens the result, and what to do next."""
    found = [summary["partial"]] if summary.get("partial") else []
    best = None if summary["best"] is None else summary["best"]["trial"]
    scale = next((trial["noise_scale"] for trial in summary["trial_list"] if trial["number"] == best), None)
    if scale is not None:
        found.append(f"the gradient's noise scale at the end of the best trial was {noise_words(scale, None)}")
    if summary["at_bound"]:
        names = ", ".join(map(short_name, summary["at_bound"]))
        found.append(f"the best trial lies at the edge of what was searched ({names}): better ones may lie beyond")
    left_out = summary["trials"]["finished"] - summary["eligible"]
    if left_out:
        found.append(f"{left_out} trials finished, but broke a limit that was set")
    again = sum(trial.get("same_as") is not None for trial in summary["trial_list"])
    if again:
        found.append(
            f"settings that an earlier trial had were drawn {counted(again, 'time')} more, and have its result "
            "(--repeats R judges settings by the mean of R seeds)"
        )
    if summary.get("unfinished"):
        found.append(f"trials that run, or wait to be run again: {summary['unfinished']}")
    reasons: dict[str, int] = {}
    for trial in summary["trial_list"]:
        if trial["failure"]:
            reasons[trial["failure"]["reason"]] = reasons.get(trial["failure"]["reason"], 0) + 1
    found += [f"failed, {count} times: {reason}" for reason, count in sorted(reasons.items(), key=lambda x: -x[1])[:3]]
    finished = summary["trials"]["finished"]
    if 0 < finished < 10 * len(summary["plan"]["space"]):
        settings = counted(len(summary["plan"]["space"]), "setting")
        few = f"{counted(finished, 'trial is', 'trials are')} few for {settings}"
        found.append(f"{few}: run more by --trials")
    return found
