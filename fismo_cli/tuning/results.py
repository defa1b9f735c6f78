"""What the runs of a trial came to: its value, its limits, and what is recorded of it. From their summaries alone."""

import json
import math
import shutil
import socket
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.settings import get_setting
from fismo_cli.runs.directory import RunDirectory, found_again
from fismo_cli.tuning.ledger import Ledger, best_of
from fismo_cli.tuning.plan import Judging, StudyPlan
from fismo_cli.tuning.samplers import distributions
from fismo_cli.tuning.search_space import Range

__all__ = ["RunResult", "TrialResult", "keep_the_best_model", "run_value", "study_of_runs", "trial_result"]

RunResult = tuple[RunDirectory, dict[str, Any]]
"""A finished run and its summary."""


@dataclass(frozen=True)
class TrialResult:
    """A trial that completed.

    Attributes:
        value: the mean of its runs'.
        limits: by name; one above 0 was broken.
        attributes: what else is recorded of it.
    """

    value: float
    limits: dict[str, float]
    attributes: dict[str, Any]


def run_value(summary: dict[str, Any], metric: str) -> float | None:
    """The final validation metric of a run; None if it diverged or the metric is not finite."""
    metrics = summary["metrics"]["validation"] or {}
    value = metrics.get(metric)
    if summary["status"] != "completed" or value is None or not math.isfinite(value):
        return None
    return float(value)


def trial_result(judging: Judging, runs: Sequence[RunResult]) -> TrialResult:
    """What the runs of a trial, of which each has a value, came to."""
    summaries = [summary for _, summary in runs]
    step_seconds = statistics.fmean(summary["seconds"] / summary["steps"] for summary in summaries)
    scales = [scale for summary in summaries if (scale := summary.get("noise_scale")) is not None]
    memory = max((summary["peak_memory_bytes"] or 0 for summary in summaries), default=0) / 2**30
    measured = (
        ("step seconds", step_seconds, judging.max_step_seconds),
        ("memory", memory, judging.max_memory_gib),
    )
    return TrialResult(
        value=statistics.fmean(run_value(summary, judging.metric) or 0.0 for summary in summaries),
        limits={name: value / limit - 1.0 for name, value, limit in measured if limit is not None},
        attributes={
            "run_dirs": [str(run.path) for run, _ in runs],
            "metrics": [summary["metrics"] for summary in summaries],
            "host": socket.gethostname(),
            "seconds": sum(summary["seconds"] for summary in summaries),
            "step_seconds": step_seconds,
            "memory_gib": memory,
            "noise_scale": statistics.fmean(scales) if scales else None,
        },
    )


def keep_the_best_model(plan: StudyPlan, ledger: Ledger) -> None:
    """Of all trials on this host, only the best one's models stay: models are large, and can be made again."""
    best = best_of(ledger.counted, higher_is_better=plan.judging.higher_is_better)
    if best is None:
        return
    kept = best.user_attrs.get("run_dirs", ())
    for place in {place for trial in ledger.counted for place in trial.user_attrs.get("run_dirs", ())}.difference(kept):
        run = RunDirectory(found_again(Path(place), plan.directory))
        shutil.rmtree(run.model, ignore_errors=True)
        run.weights.unlink(missing_ok=True)


def study_of_runs(plan: StudyPlan) -> Study:
    """The completed trials of a study, as far as the run directories on this host tell: its storage is not at hand."""
    study = optuna.create_study(direction="maximize" if plan.judging.higher_is_better else "minimize")
    where = distributions(plan.space)
    folders = (plan.directory / "trials").glob("*")
    for number, folder in sorted((int(path.name), path) for path in folders if path.name.isdecimal()):
        runs = list(_completed(folder, plan.judging.metric))
        if len(runs) != plan.judging.repeats:
            continue
        result = trial_result(plan.judging, runs)
        while len(study.get_trials(deepcopy=False)) < number:  # not known here
            study.add_trial(optuna.create_trial(state=TrialState.FAIL))
        trial = optuna.create_trial(
            value=result.value,
            params=_settings(plan, runs[0][0]),
            distributions=where,
            user_attrs=result.attributes,
        )
        for name, limit in result.limits.items():
            trial.set_constraint(name, limit)
        study.add_trial(trial)
    return study


def _completed(folder: Path, metric: str) -> Iterator[RunResult]:
    for file in sorted(folder.glob("*/*/summary.json")):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
            if run_value(summary, metric) is not None:
                yield RunDirectory(file.parent), summary
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _settings(plan: StudyPlan, run: RunDirectory) -> dict[str, Any]:
    """What a trial drew, from the preset of a run of it; 1 less 1 less a value is not always that value."""
    values = load_preset(str(run.preset)).preset.model_dump()
    found = {}
    for name, where in plan.space.items():
        value = get_setting(values, name)
        found[name] = min(max(value, where.low), where.high) if isinstance(where, Range) else value
    return found
