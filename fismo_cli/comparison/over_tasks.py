"""Several comparisons of the same optimizers, each on a task of its own, taken together: from their summaries alone.

How soon an optimizer is where all of them get is told as AlgoPerf does, by performance profiles (Dahl et al., 2023,
arXiv 2306.07179, section 4.2; Dolan and Moré, 2002).
"""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

from fismo_cli.comparison.power import LEVEL
from fismo_cli.comparison.summary import (
    COMPARISON_VERSION,
    Against,
    ComparisonSummary,
    JudgedRun,
    Number,
    Profile,
    Task,
    TasksSummary,
    TaskVerdict,
    VerdictSummary,
)
from fismo_cli.metrics import cost

__all__ = ["LARGEST_RATIO", "over_tasks"]

LARGEST_RATIO = 4.0
"""Up to which ratio of steps profiles are looked at, as in AlgoPerf."""


def over_tasks(summaries: Sequence[ComparisonSummary]) -> TasksSummary:
    """What several comparisons of the same contenders say together.

    Args:
        summaries: what `analyse` returned of each.

    Returns:
        `tasks`: of each the verdicts, the target, and how often as many steps as the soonest each contender took to it.
        `profiles`: by contender, the share of tasks on which it took at most so many times as many, and its mean up to
        `LARGEST_RATIO` as the score. `against`: for each baseline, on how many tasks the candidate won, with an
        exact interval for the share of such tasks, as if they had been drawn at random.
    """
    labels = [contender["label"] for contender in summaries[0]["contenders"]]
    tasks, metric = [_task(summary) for summary in summaries], summaries[0]["metric"]
    return {
        "version": COMPARISON_VERSION,
        "candidate": labels[0],
        "baselines": labels[1:],
        "tune_trials": summaries[0]["tune_trials"],
        "studies": summaries[0]["studies"],
        "seeds": len(summaries[0]["seeds"]),
        "metric": metric,
        "tasks": tasks,
        "profiles": [_profile(label, [task["ratios"][label] for task in tasks]) for label in labels],
        "against": [
            _against(summaries[0]["metric"], label, [task["verdicts"][label] for task in tasks]) for label in labels[1:]
        ],
    }


def _task(summary: ComparisonSummary) -> Task:
    target = _common_target(summary)
    steps = {contender["label"]: _steps_to(target, summary, contender["label"]) for contender in summary["contenders"]}
    soonest = min(steps.values())
    return {
        "preset": summary["preset"],
        "comparison": summary["comparison"],
        "report": summary["report"],
        "verdicts": {verdict["baseline"]: _kept(verdict) for verdict in summary["verdicts"]},
        "values": {entry["label"]: entry["value"] for entry in summary["contenders"]},
        "target": cost(summary["metric"], target) if math.isfinite(target) else None,
        "ratios": {label: taken / soonest if math.isfinite(taken) else "inf" for label, taken in steps.items()},
    }


def _kept(verdict: VerdictSummary) -> TaskVerdict:
    return {
        "verdict": verdict["verdict"],
        "difference": verdict["difference"],
        "p_holm": verdict["p_holm"],
        "wins": verdict["wins"],
        "losses": verdict["losses"],
    }


def _common_target(summary: ComparisonSummary) -> float:
    """The cost of a value that the median run of every contender reaches: the highest of their median final ones.

    Of those alone of which half the runs end; infinite where no contender has such.
    """
    medians = []
    for contender in summary["contenders"]:
        runs = [run for run in summary["runs"] if run["label"] == contender["label"]]
        medians.append(statistics.median_high([_final(summary["metric"], run) for run in runs]))
    finite = [median for median in medians if math.isfinite(median)]
    return max(finite) if finite else math.inf


def _final(metric: str, run: JudgedRun) -> float:
    value = (run["metrics"]["validation"] or {}).get(metric)
    return math.inf if run["status"] != "completed" or not isinstance(value, int | float) else cost(metric, value)


def _steps_to(target: float, summary: ComparisonSummary, label: str) -> float:
    """Median over the runs of the steps until an evaluation is at the target; a run that is never there: infinite."""
    if math.isinf(target):
        return math.inf
    curves = [curve for curve in summary["curves"] if curve["label"] == label]
    points = [zip(curve["step"], curve["value"], strict=True) for curve in curves]
    metric = summary["metric"]
    first = [next((float(step) for step, value in run if _at(metric, value, target)), math.inf) for run in points]
    return statistics.median_high(first) if first else math.inf


def _at(metric: str, value: float | None, target: float) -> bool:
    return value is not None and cost(metric, value) <= target


def _profile(label: str, ratios: Sequence[Number]) -> Profile:
    """The share of tasks up to each ratio, and its mean from 1 to `LARGEST_RATIO`: 1 if soonest everywhere."""
    reached = sorted(ratio for ratio in ratios if isinstance(ratio, float) and ratio <= LARGEST_RATIO)
    points = [(ratio, number / len(ratios)) for number, ratio in enumerate(reached, start=1)]
    area = sum(LARGEST_RATIO - ratio for ratio in reached) / len(ratios)
    return {"label": label, "points": points, "score": area / (LARGEST_RATIO - 1)}


def _against(metric: str, label: str, verdicts: Sequence[TaskVerdict]) -> Against:
    won = sum(_won(metric, verdict) for verdict in verdicts)
    interval = stats.binomtest(won, len(verdicts)).proportion_ci(1 - LEVEL, method="exact")
    return {
        "baseline": label,
        "won": won,
        "tasks": len(verdicts),
        "ci95": [float(interval.low), float(interval.high)],
        "verdicts": {
            word: sum(verdict["verdict"] == word for verdict in verdicts)
            for word in ("better", "worse", "equivalent", "inconclusive", "underpowered")
        },
    }


def _won(metric: str, verdict: TaskVerdict) -> bool:
    """Whether the candidate's mean was better; where runs diverged, whether it won more seeds than it lost."""
    difference = verdict["difference"]
    return bool(verdict["wins"] > verdict["losses"] if difference is None else cost(metric, difference) < 0)
