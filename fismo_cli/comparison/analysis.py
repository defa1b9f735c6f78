"""From the records of a comparison to its numbers: pairing asserted, target, verdicts, costs.

`analyse` returns what `summary.json` holds; tables, words and pages are made from that alone.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from fismo_cli.comparison.budget import by_budget
from fismo_cli.comparison.contenders import Contender
from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.records import Record, judged_run
from fismo_cli.comparison.results import Results, Tuned, judged
from fismo_cli.comparison.statistics import compare_paired, decide, holm, median_interval
from fismo_cli.comparison.summary import (
    COMPARISON_VERSION,
    Budget,
    ComparisonSummary,
    ContenderSummary,
    Number,
    Ratio,
    Speedups,
    Spread,
    StudySummary,
    TargetSummary,
    TuningSummary,
    VerdictSummary,
)
from fismo_cli.comparison.target import Target
from fismo_cli.errors import FismoError
from fismo_cli.metrics import cost
from fismo_cli.preset.optimizer_names import takes_matrices
from fismo_cli.tuning.search_space import near_bounds

__all__ = ["analyse", "check_pairing"]


def check_pairing(records: Sequence[Record]) -> None:
    """Make sure that equal seeds mean equal initial weights and equal order of samples (point 4 of the protocol).

    Raises:
        FismoError: if they do not, naming two runs.
    """
    first: dict[int, Record] = {}
    for record in records:
        other = first.setdefault(record.summary["seed"], record)
        for what in ("initial_weights", "sample_order"):
            if getattr(record, what) != getattr(other, what):
                raise FismoError(
                    f"these runs are not paired, their {what.replace('_', ' ')} differ: {other.summary['run_dir']} and "
                    f"{record.summary['run_dir']}; a comparison of them would mean nothing"
                )


def analyse(plan: Plan, results: Results) -> ComparisonSummary:
    """All numbers of a comparison whose runs have finished.

    Raises:
        FismoError: if runs are missing or not paired.
    """
    runs = results.runs
    records = {
        contender.label: [runs[contender.label, seed] for seed in plan.seeds if (contender.label, seed) in runs]
        for contender in plan.contenders
    }
    missing = {label: len(plan.seeds) - len(found) for label, found in records.items() if len(found) < len(plan.seeds)}
    if missing:
        raise FismoError(
            f"runs are missing in {plan.directory}: "
            + ", ".join(f"{count} of {label}" for label, count in missing.items())
            + "; run the same `fismo compare` again"
        )
    everything = [record for found in records.values() for record in found]
    check_pairing(everything)
    target = plan.target or _own_target(plan.metric, [records[baseline.label] for baseline in plan.baselines])
    return {
        "version": COMPARISON_VERSION,
        "comparison": str(plan.directory),
        "preset": plan.candidate.loaded.name,
        "task": plan.candidate.loaded.preset.task,
        "candidate": plan.candidate.label,
        "seeds": list(plan.seeds),
        "tune_trials": plan.tune_trials,
        "studies": plan.studies,
        "metric": plan.metric,
        "margin": plan.margin,
        "target": _target(target, given=plan.target is not None),
        "target_missed": target is not None and _missed(records[plan.candidate.label], target),
        "timing": "shared" if plan.shared_cores else "alone",
        "cpus": sorted({record.cpu for record in everything}),
        "versions": everything[0].versions,
        "mixed_versions": any(record.versions != everything[0].versions for record in everything),
        "environment": {name: known for name, known in plan.environment.items() if name != "data"},
        "declarations": plan.declarations,
        "verdicts": _verdicts(plan, records, target),
        "contenders": [
            _contender(contender, plan, records[contender.label], target, results) for contender in plan.contenders
        ],
        "tuning": [
            _tuning(contender, plan, records[contender.label], results) for contender in plan.contenders if plan.studies
        ],
        "runs": [judged_run(record) for record in everything],
        "pairing": [
            {
                "seed": seed,
                "initial_weights_sha256": records[plan.candidate.label][index].initial_weights,
                "sample_order_sha256": records[plan.candidate.label][index].sample_order,
            }
            for index, seed in enumerate(plan.seeds)
        ],
        "curves": [
            {
                "label": record.label,
                "seed": record.summary["seed"],
                "step": [point.step for point in record.curve],
                "seconds": [point.seconds for point in record.curve],
                "value": [point.metrics.get(plan.metric) for point in record.curve],
            }
            for record in everything
        ],
    }


def _own_target(metric: str, baselines: Sequence[Sequence[Record]]) -> Target | None:
    """The median final value of the best baseline; None if each diverged in half of its runs or more."""
    best = min(statistics.median_high([record.cost(metric) for record in records]) for records in baselines)
    return Target(metric, cost(metric, best)) if math.isfinite(best) else None


def _missed(records: Sequence[Record], target: Target) -> bool:
    return math.isinf(statistics.median_high([record.reached(target)[0] for record in records]))


def _verdicts(plan: Plan, records: dict[str, list[Record]], target: Target | None) -> list[VerdictSummary]:
    count, candidate, metric = len(plan.baselines), records[plan.candidate.label], plan.metric
    own = [record.cost(metric) for record in candidate]
    others = {
        baseline.label: [record.cost(metric) for record in records[baseline.label]] for baseline in plan.baselines
    }
    compared = {label: compare_paired(own, costs, baselines=count) for label, costs in others.items()}
    adjusted = dict(zip(compared, holm([paired.p_value for paired in compared.values()]), strict=True))
    verdicts: list[VerdictSummary] = []
    for label, paired in compared.items():
        finite = [each for each in others[label] if math.isfinite(each)]
        margin = plan.margin * abs(statistics.mean(finite)) if finite else 0.0
        verdicts.append(
            {
                "baseline": label,
                "verdict": decide(
                    paired, p_holm=adjusted[label], margin=margin, seeds=len(plan.seeds), baselines=count
                ),
                "difference": None if paired.difference is None else cost(metric, paired.difference),
                "ci95": None if paired.ci95 is None else sorted(cost(metric, end) for end in paired.ci95),
                "p_value": paired.p_value,
                "p_holm": adjusted[label],
                "t_p_value": paired.t_p_value,
                "effect_size": None if paired.effect_size is None else cost(metric, paired.effect_size),
                "wins": paired.wins,
                "ties": paired.ties,
                "losses": paired.losses,
                "diverged": paired.diverged,
                "margin": margin,
                "differences": [_difference(metric, a, b) for a, b in zip(own, others[label], strict=True)],
                **_speedups(candidate, records[label], target),
            }
        )
    return verdicts


def _target(target: Target | None, *, given: bool) -> TargetSummary | None:
    return None if target is None else {"metric": target.metric, "value": target.value, "given": given}


def _difference(metric: str, own: float, other: float) -> float | None:
    """Of the values, from their costs."""
    return cost(metric, own - other) if math.isfinite(own) and math.isfinite(other) else None


def _speedups(candidate: Sequence[Record], baseline: Sequence[Record], target: Target | None) -> Speedups:
    """How many times as long the baseline needs to the target: the median over the seeds, with its interval."""
    if target is None:
        return {"steps_speedup": None, "seconds_speedup": None}
    pairs = [(a.reached(target), b.reached(target)) for a, b in zip(candidate, baseline, strict=True)]
    steps, seconds = (_ratio([(theirs[index], ours[index]) for ours, theirs in pairs]) for index in (0, 1))
    return {"steps_speedup": steps, "seconds_speedup": seconds}


def _ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Median ratio with its interval. One that misses the target makes a ratio infinite or 0; where both do it could be
    anything: the interval takes it as the least at its lower end and as the most at its upper one, and the median is
    None where it would depend on it.
    """
    both = [math.isinf(above) and math.isinf(below) for above, below in pairs]
    ratios = [0.0 if missed else above / below for (above, below), missed in zip(pairs, both, strict=True)]
    least, low, _ = median_interval(ratios)
    most, _, high = median_interval([math.inf if missed else ratio for ratio, missed in zip(ratios, both, strict=True)])
    return {"median": _number(least) if least == most else None, "ci95": [_number(low), _number(high)]}


def _number(value: float) -> Number:
    return "inf" if math.isinf(value) else value


def _value(metric: str, its_cost: float) -> Number:
    return "inf" if math.isinf(its_cost) else cost(metric, its_cost)


def _untreated(contender: Contender) -> Any:
    """Who treats the parameters that matrix optimizers leave out, and how; None for other optimizers."""
    config = contender.loaded.preset.optimizer
    return (config.adamw, config.rules) if takes_matrices(config.name) else None


def _settings(contender: Contender, plan: Plan, records: Sequence[Record], results: Results) -> dict[str, Any]:
    """The settings that the first judged run had: tuned ones, and the rate that a library chose where none was given.

    Where every seed has a study of its own, the others differ in what was tuned.
    """
    loaded = judged(contender, plan.seeds[0], results.tuned_for(plan, contender, plan.seeds[0]))
    settings: dict[str, Any] = loaded.preset.optimizer.model_dump(mode="json")
    rates = next((rates for record in records if (rates := record.summary.get("peak_lr"))), None)
    if settings.get("lr", 0.0) is None and rates is not None:
        settings["lr"] = rates.get("matrix", next(iter(rates.values())))
    return settings


def _contender(
    contender: Contender, plan: Plan, records: Sequence[Record], target: Target | None, results: Results
) -> ContenderSummary:
    done = [record for record in records if not record.diverged]
    costs = [record.cost(plan.metric) for record in done]
    summaries = [record.summary for record in done]
    reached = [record.reached(target) for record in records] if target is not None else []
    steps, seconds = ([pair[index] for pair in reached] for index in (0, 1))
    total, optimizer = sum(s["seconds"] for s in summaries), sum(s["optimizer_seconds"] for s in summaries)
    return {
        "label": contender.label,
        "settings": _settings(contender, plan, records, results),
        "same_adamw": _untreated(contender) in (None, _untreated(plan.candidate)),
        "completed": len(done),
        "diverged": len(records) - len(done),
        "value": _spread([cost(plan.metric, each) for each in costs if math.isfinite(each)]),
        "metrics": {
            split: {
                name: _spread([value for record in done if (value := record.metric(split, name)) is not None])
                for name in (done[0].summary["metrics"][split] or {})
            }
            for split in ("validation", "test")
            if done and done[0].summary["metrics"][split]
        },
        "reached_target": sum(math.isfinite(value) for value in steps),
        "target_steps": [_number(value) for value in steps],
        "steps_to_target": _number(statistics.median_high(steps)) if steps else None,
        "seconds_to_target": _number(statistics.median_high(seconds)) if seconds else None,
        "seconds": _spread([s["seconds"] for s in summaries]),
        "step_milliseconds": 1000 * total / sum(s["steps"] for s in summaries) if summaries else None,
        "optimizer_share": optimizer / total if total else None,
        "peak_memory_bytes": max((s["peak_memory_bytes"] or 0 for s in summaries), default=0) or None,
        "optimizer_state_bytes": max((s["optimizer_state_bytes"] or 0 for s in summaries), default=0) or None,
    }


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "standard_deviation": deviation}


def _tuning(contender: Contender, plan: Plan, records: Sequence[Record], results: Results) -> TuningSummary:
    """All studies of a contender; with one for each seed, also what more trials would have brought."""
    metric = plan.metric
    studies = [results.tuned.get((contender.label, number), Tuned(metric=metric)) for number in range(plan.studies)]
    failed = sum(record.diverged for tuned in studies for _, record in tuned.trials)
    budgets: list[Budget] = []
    if plan.studies > 1:
        found = [math.inf if tuned.best is None else tuned.trials[tuned.best][1].cost(metric) for tuned in studies]
        for budget in by_budget(found, [record.cost(metric) for record in records], plan.tune_trials):
            mean = _value(metric, budget.mean)
            budgets.append({**vars(budget), "mean": mean})  # type: ignore[typeddict-item]
    return {
        "label": contender.label,
        "space": {name: vars(where) for name, where in contender.space.items()},
        "trials": {"finished": sum(len(tuned.trials) for tuned in studies) - failed, "failed": failed},
        "studies": [_study(contender, number, tuned, plan) for number, tuned in enumerate(studies)],
        "budgets": budgets,
    }


def _study(contender: Contender, number: int, tuned: Tuned, plan: Plan) -> StudySummary:
    best = None if tuned.best is None else tuned.trials[tuned.best]
    value = None if best is None else best[1].metric("validation", plan.metric)
    return {
        "seed": plan.tuning_seed(number),
        "judged_with": [seed for seed in plan.seeds if plan.study_of(seed) == number],
        "directory": str(plan.tuning_dir(contender, number)),
        "trial_list": [
            {
                "settings": settings,
                "value": record.metric("validation", plan.metric),
                "run_dir": record.summary["run_dir"],
            }
            for settings, record in tuned.trials
        ],
        "best": None if best is None else {"value": value, "params": best[0], "trial": tuned.best},
        "best_preset": None if best is None else f"{best[1].summary['run_dir']}/preset.yaml",
        "at_bound": [] if best is None else list(near_bounds(contender.space, best[0])),
    }
