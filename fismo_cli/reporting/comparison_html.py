"""`report.html`: a comparison as one page without any network, from its summary alone. The verdict comes first."""

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

from fismo_cli.comparison.summary import ComparisonSummary, TrialSummary, VerdictSummary
from fismo_cli.metrics import called, higher_is_better
from fismo_cli.reporting.comparison_figures import figures
from fismo_cli.reporting.comparison_tables import Rows, budget_table, cost_table, quality_table
from fismo_cli.reporting.comparison_words import MANY, caveats, opening, opponents, verdict_lines, verdict_sentence
from fismo_cli.reporting.page import document, figure, link, table
from fismo_cli.words import counted

__all__ = ["page"]


def page(summary: ComparisonSummary, directory: Path) -> str:
    """The whole page.

    Args:
        summary: what `analyse` returned.
        directory: where the page will be, to which links are relative.
    """
    return document(
        f"fismo compare: {summary['preset']}",
        (
            *_verdicts(summary),
            *_results(summary),
            *_figures(summary),
            *_tuning(summary, directory),
            *_settings(summary),
            *_runs(summary, directory),
        ),
    )


def _verdicts(summary: ComparisonSummary) -> Iterator[str]:
    baselines = [contender["label"] for contender in summary["contenders"][1:]]
    yield f"<h1>{escape(summary['candidate'])} against {escape(opponents(baselines))}</h1>"
    yield f"<p>{escape(opening(summary))}</p>"
    many = len(summary["verdicts"]) > MANY
    if many:
        yield from (f'<p class="verdict">{escape(line)}</p>' for line in verdict_lines(summary))
        yield "<details><summary>each of them</summary>"
    for verdict in summary["verdicts"]:
        yield f'<p class="verdict {verdict["verdict"]}">{escape(verdict_sentence(summary, verdict))}</p>'
    if many:
        yield "</details>"
    notes = caveats(summary)
    if notes:
        yield f'<ul class="soft">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>'


def _results(summary: ComparisonSummary) -> Iterator[str]:
    results = _verdict_first(quality_table(summary))
    for title, (headings, rows) in (("Results", results), ("Cost", cost_table(summary))):
        yield f"<h2>{title}</h2>"
        yield table(headings, [[escape(cell) for cell in row] for row in rows])
    target = summary["target"]
    if target is not None:
        whose = "as asked for" if target["given"] else "the median final value of the best baseline"
        yield f'<p class="soft">Target: {target["metric"]} {target["value"]:.5g}, {whose}. A run that misses it '
        yield "counts as infinitely late. Mean ± standard deviation over the seeds.</p>"
    headings = (
        "baseline",
        "difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "p (paired t)",
        "effect size",
        "wins/ties/losses",
    )
    yield f"<h2>Paired differences in the final validation {called(summary['metric'])}</h2>"
    yield table(headings, [_test_row(verdict) for verdict in summary["verdicts"]])
    yield (
        f'<p class="soft">{"Positive" if higher_is_better(summary["metric"]) else "Negative"}: in favour of the '
        "candidate. Exact sign-flip permutation test and the interval that "
        "inverts it; Holm's correction for the number of baselines; a paired t test for comparison; the effect size is "
        "the mean difference by its standard deviation.</p>"
    )


def _verdict_first(found: Rows) -> Rows:
    """The verdict beside the name, where a phone shows it."""
    headings, rows = found
    if headings[-1] != "verdict":
        return found
    return (headings[0], headings[-1], *headings[1:-1]), [(row[0], row[-1], *row[1:-1]) for row in rows]


def _test_row(verdict: VerdictSummary) -> list[str]:
    interval = verdict["ci95"]
    ends = ["" if end is None else f"{end:+.4f}" for end in interval] if interval else []
    return [
        escape(verdict["baseline"]),
        "" if verdict["difference"] is None else f"{verdict['difference']:+.4f}",
        " to ".join(ends) if all(ends) else "unbounded",
        f"{verdict['p_value']:.3g}",
        f"{verdict['p_holm']:.3g}",
        "" if verdict["t_p_value"] is None else f"{verdict['t_p_value']:.3g}",
        "" if verdict["effect_size"] is None else f"{verdict['effect_size']:.2f}",
        f"{verdict['wins']}/{verdict['ties']}/{verdict['losses']}",
    ]


def _figures(summary: ComparisonSummary) -> Iterator[str]:
    yield "<h2>Figures</h2>"
    yield '<p class="soft">A click on a name in a legend switches its curve off and on.</p>'
    for name, (drawing, caption) in figures(summary).items():
        yield figure(name, drawing, caption)


def _tuning(summary: ComparisonSummary, directory: Path) -> Iterator[str]:
    if not summary["tuning"]:
        return
    yield "<h2>Tuning</h2>"
    if summary["studies"] > 1:
        yield table(*budget_table(summary))
        yield '<p class="soft">The judged result to be expected of a number of tuning trials: studies put together '
        yield "make longer ones, of which there are fewer.</p>"
    for tuning in summary["tuning"]:
        studies = tuning["studies"]
        amount = counted(sum(len(study["trial_list"]) for study in studies), "trial")
        inside = f" in {len(studies)} studies" if len(studies) > 1 else ""
        yield f"<details><summary>{escape(tuning['label'])}: {amount}{inside}</summary>"
        names = list(tuning["space"])
        rows = [
            [
                *([str(number)] if len(studies) > 1 else []),
                link(Path(trial["run_dir"]), directory, str(index)),
                f"{_value(trial)}{' (best)' if study['best'] and study['best']['trial'] == index - 1 else ''}",
                *(f"{trial['settings'][name]:.3g}" for name in names),
            ]
            for number, study in enumerate(studies, start=1)
            for index, trial in enumerate(study["trial_list"], start=1)
        ]
        which = ["study", "trial"] if len(studies) > 1 else ["trial"]
        yield table([*which, f"validation {called(summary['metric'])}", *map(escape, names)], rows)
        yield f"<pre>{escape(json.dumps(tuning['space'], indent=1))}</pre></details>"


def _value(trial: TrialSummary) -> str:
    return "diverged" if trial["value"] is None else f"{trial['value']:.4f}"


def _settings(summary: ComparisonSummary) -> Iterator[str]:
    yield "<h2>Settings</h2>"
    if summary["studies"] > 1:
        yield f'<p class="soft">Of the runs with seed {summary["seeds"][0]}; what was tuned differs between seeds.</p>'
    for contender in summary["contenders"]:
        yield f"<details><summary>{escape(contender['label'])}</summary>"
        yield f"<pre>{escape(json.dumps(contender['settings'], indent=1))}</pre></details>"
    keys = ("environment", "cpus", "versions", "seeds", "margin", "timing", "declarations", "pairing")
    everything = json.dumps({key: value for key, value in summary.items() if key in keys}, indent=1)
    yield f"<details><summary>environment, declarations, hashes</summary><pre>{escape(everything)}</pre></details>"


def _runs(summary: ComparisonSummary, directory: Path) -> Iterator[str]:
    yield "<h2>Runs</h2><details><summary>all of them, with their directories</summary>"
    rows = []
    for run in summary["runs"]:
        validation = (run["metrics"]["validation"] or {}).get("loss")
        rows.append(
            [
                escape(run["label"]),
                str(run["seed"]),
                escape(run["status"]),
                "" if validation is None else f"{validation:.4f}",
                f"{run['seconds']:.1f} s",
                link(Path(run["run_dir"]), directory),
            ]
        )
    yield table(("optimizer", "seed", "status", "validation loss", "time", "directory"), rows)
    yield "</details>"
