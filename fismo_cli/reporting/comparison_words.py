"""A comparison in words, from its summary alone: the verdict first, then what weakens it."""

import math
from collections.abc import Iterator, Sequence

from fismo_cli.comparison.power import seeds_needed
from fismo_cli.comparison.summary import (
    ComparisonSummary,
    Curve,
    Number,
    Ratio,
    Spread,
    TargetSummary,
    VerdictSummary,
)
from fismo_cli.metrics import called, cost
from fismo_cli.words import counted

__all__ = [
    "MANY",
    "caveats",
    "number",
    "opening",
    "opponents",
    "speedup",
    "spread",
    "verdict_lines",
    "verdict_sentence",
]

LITTLE, STEEP, LAST_PART = 0.1, 0.1, 0.1
"""Shares of the most that any contender got better, and of the steps: below and above them there is a note."""

MANY = 8
"""Baselines above which they are told by numbers and groups."""


def opening(summary: ComparisonSummary) -> str:
    """What was compared, and whether anything was tuned."""
    trials, studies = counted(summary["tune_trials"], "trial"), summary["studies"]
    if studies > 1:
        tuned = f"for each seed every optimizer was tuned anew, by {trials} at random on yet another seed"
    elif studies == 1:
        tuned = f"each tuned once, by {trials} on another seed"
    else:
        tuned = "nothing was tuned: the preset's own settings, its `compare` values, or built-in defaults"
    baselines = [contender["label"] for contender in summary["contenders"][1:]]
    environment = summary["environment"]
    grows = environment.get("batch_grows", False)  # then each run takes steps of its own number
    amount = f"{environment['total_samples']:,} samples" if grows else f"{environment['total_steps']:,} steps"
    threads = counted(environment["threads"], "CPU thread")
    seeds = counted(len(summary["seeds"]), "seed", "paired seeds")
    return (
        f"{summary['candidate']} against {opponents(baselines)} on {summary['preset']}, {seeds} "
        f"of {amount} with {threads}; {tuned}."
    )


def opponents(labels: Sequence[str]) -> str:
    """Baselines by name, or their number where a reader would not read them all."""
    return ", ".join(labels) if len(labels) <= MANY else f"{len(labels)} baselines"


def verdict_lines(summary: ComparisonSummary) -> list[str]:
    """The verdict on each baseline as a sentence; of many baselines, a line for each verdict."""
    verdicts = summary["verdicts"]
    if len(verdicts) <= MANY:
        return [verdict_sentence(summary, verdict) for verdict in verdicts]
    kinds = dict.fromkeys(verdict["verdict"] for verdict in verdicts)
    groups = {kind: [entry["baseline"] for entry in verdicts if entry["verdict"] == kind] for kind in kinds}
    return [
        f"{_about(summary)}"
        f"{_start(summary['candidate'], f'{len(labels)} baselines', kind, len(summary['seeds']), len(verdicts))}: "
        f"{', '.join(labels)}."
        for kind, labels in groups.items()
    ]


def verdict_sentence(summary: ComparisonSummary, verdict: VerdictSummary) -> str:
    """The verdict on one baseline: by how much, with what certainty, how much faster."""
    own, other = summary["candidate"], verdict["baseline"]
    start = _about(summary) + _start(own, other, verdict["verdict"], len(summary["seeds"]), len(summary["verdicts"]))
    within = f" of {number(verdict['margin'])}" if verdict["verdict"] == "equivalent" else ""
    parts = [f"{start}{within}: {_difference(summary['metric'], verdict)}"]
    steps, seconds, target = verdict["steps_speedup"], verdict["seconds_speedup"], summary["target"]
    if steps is not None and seconds is not None and target is not None:
        parts.append(_how_soon(target, other, steps, seconds))
    return "; ".join(parts) + "."


def _about(summary: ComparisonSummary) -> str:
    """What a verdict is about."""
    if summary["studies"] > 1:
        return f"Tuned by {counted(summary['tune_trials'], 'trial')} and then trained, "
    return "With the settings that one search found, " if summary["studies"] == 1 else ""


def _start(own: str, other: str, verdict: str, seeds: int, baselines: int) -> str:
    few = counted(seeds, "seed is", "seeds are")
    return {
        "better": f"{own} is better than {other}",
        "worse": f"{own} is worse than {other}",
        "equivalent": f"{own} and {other} are equivalent within the margin",
        "inconclusive": f"{own} against {other} is inconclusive",
        "underpowered": f"{own} against {other} is underpowered: {few} too few for any decision, "
        f"{seeds_needed(baselines)} would do",
    }[verdict]


def caveats(summary: ComparisonSummary) -> list[str]:
    """What a reader should know before trusting the verdict."""
    found = []
    if summary["timing"] == "shared":
        found.append("Runs were made side by side: seconds are uncertain. Use --workers 1 for seconds that count.")
    if summary["mixed_versions"] or len(summary["cpus"]) > 1:
        found.append("The runs were not all made on the same machine with the same versions.")
    if (changes := len(summary["declarations"]) - 1) > 0:
        found.append(
            f"Baselines, seeds, margin, target or workers were changed {counted(changes, 'time')} after the first "
            "start; the tests assume that they were declared beforehand."
        )
    if summary["studies"] == 1:
        found.append(
            "One search for each optimizer: verdicts are about the settings that it found, and another finds others. "
            "Without --studies 1 each seed has a search of its own, and verdicts are about the optimizers."
        )
    for tuning in summary["tuning"]:
        edges = tuning["studies"][0]["at_bound"] if summary["studies"] == 1 else ()
        if edges:
            found.append(
                f"The best settings found for {tuning['label']} lie at the edge of what was searched "
                f"({', '.join(edges)}): better ones may lie beyond."
            )
        empty = sum(study["best"] is None for study in tuning["studies"])
        if empty:
            which = (
                "Every tuning trial"
                if empty == len(tuning["studies"])
                else f"Every trial of {counted(empty, 'study', 'studies')}"
            )
            found.append(f"{which} of {tuning['label']} diverged; it ran with the settings it started from.")
    found += [
        f"{contender['label']} diverged on {contender['diverged']} of {len(summary['seeds'])} seeds, which count as "
        "the worst of their seed; means are over the others."
        for contender in summary["contenders"]
        if contender["diverged"]
    ]
    found += [
        f"{contender['label']} has other AdamW settings or rules than the candidate for the parameters that matrix "
        "optimizers do not treat: more than the optimizer differs."
        for contender in summary["contenders"]
        if not contender["same_adamw"]
    ]
    decayed = [contender["settings"].get("weight_decay_on", "matrices") for contender in summary["contenders"]]
    found += [
        f"{contender['label']} decays {'all parameters' if own == 'all' else 'matrices alone'}, the candidate "
        f"{'all' if own == 'matrices' else 'matrices alone'}: more than the optimizer differs."
        for contender, own in zip(summary["contenders"], decayed, strict=True)
        if own != decayed[0]
    ]
    found += _about_curves(summary)
    if summary["target"] is None:
        found.append("No baseline finished often enough to set a target, so no speed-up is given.")
    return found


def _about_curves(summary: ComparisonSummary) -> Iterator[str]:
    """Who learnt next to nothing, and who was still getting better quickly when training ended."""
    metric = summary["metric"]
    curves = {
        contender["label"]: _mean_curve(metric, [c for c in summary["curves"] if c["label"] == contender["label"]])
        for contender in summary["contenders"]
    }
    known = [curve for curve in curves.values() if len(curve) > 1]
    if not known:
        return
    start, best = max(curve[0] for curve in known), min(curve[-1] for curve in known)
    for label, curve in curves.items():
        if len(curve) < 2 or best >= start:
            continue
        if start - curve[-1] < LITTLE * (start - best):
            yield (
                f"{label} learnt next to nothing (from {number(cost(metric, start))} to "
                f"{number(cost(metric, curve[-1]))}): its settings may be wrong, and a comparison with it says little."
            )
            continue
        last = int(len(curve) * LAST_PART)
        if last and curve[-1 - last] - curve[-1] > STEEP * (start - best):
            yield (
                f"{label} was still getting better quickly when training ended, by more than {STEEP:.0%} of all "
                f"progress in the last {LAST_PART:.0%} of the steps: with more steps the verdict may be another."
            )


def _mean_curve(metric: str, curves: Sequence[Curve]) -> list[float]:
    """Mean cost at each evaluation that all runs reached with a finite value."""
    columns = zip(*(curve["value"] for curve in curves), strict=False)
    known = ([value for value in column if value is not None] for column in columns)
    return [cost(metric, sum(values) / len(values)) for values in known if len(values) == len(curves)]


def speedup(ratio: Ratio) -> str:
    """A ratio with its interval: `1.30 (1.10 to 1.52) times`."""
    low, high = ratio["ci95"]
    return f"{_times(ratio['median'])} ({_times(low)} to {_times(high)}) times"


def number(value: float) -> str:
    """A loss or a difference with enough digits to see it."""
    return f"{value:.4f}" if abs(value) >= 0.0001 or value == 0 else f"{value:.2e}"


def spread(metric: str, value: Spread) -> str:
    """Mean and standard deviation over the seeds."""
    mean, deviation = value["mean"], value["standard_deviation"]
    if metric.startswith("top"):
        return f"{100 * mean:.2f} ± {100 * deviation:.2f} %"
    return f"{number(mean)} ± {number(deviation)}"


def _difference(metric: str, verdict: VerdictSummary) -> str:
    if verdict["difference"] is None:
        return f"a run diverged on {verdict['diverged']} seeds, p {verdict['p_holm']:.3g} by ranks"
    interval = verdict["ci95"]
    if interval is None:
        within = "median over the seeds, with diverged runs"
    elif (low := interval[0]) is None or (high := interval[1]) is None or math.isinf(low) or math.isinf(high):
        within = "too few seeds for an interval"
    else:
        within = f"95 % interval {low:+.4f} to {high:+.4f}"
    return (
        f"difference in validation {called(metric)} {verdict['difference']:+.4f} ({within}), p "
        f"{verdict['p_holm']:.3g} after Holm's correction, {verdict['wins']} wins, {verdict['ties']} ties, "
        f"{verdict['losses']} losses"
    )


def _how_soon(target: TargetSummary, baseline: str, steps: Ratio, seconds: Ratio) -> str:
    goal = f"{target['metric']} {target['value']:.4g}"
    if steps["median"] is None or seconds["median"] is None:
        return f"too few runs of the two reach {goal} to say who is sooner there"
    if steps["median"] == "inf":
        return f"{baseline} does not reach {goal} in half of the seeds or more"
    if steps["median"] == 0:
        return f"{baseline} reaches {goal}, the candidate does not in half of the seeds or more"
    return f"to {goal} {baseline} takes {speedup(steps)} as many steps and {speedup(seconds)} as many seconds"


def _times(value: Number | None) -> str:
    return "" if value is None else "∞" if value == "inf" else f"{value:.2f}"
