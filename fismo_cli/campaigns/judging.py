"""How a trial is judged, and what its runs came to. From their summaries alone."""

import math
import socket
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fismo_cli.metrics import higher_is_better
from fismo_cli.preset.schema import Preset
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.training.run_summary import RunSummary

__all__ = ["REPORTS", "Judging", "RunResult", "TrialResult", "run_value", "trial_result", "why_not_judged"]

REPORTS = 10
"""Into how many parts the budget of a trial is cut for a pruner."""

RunResult = tuple[RunDirectory, RunSummary]
"""A finished run and its summary."""


@dataclass(frozen=True)
class Judging:
    """How a trial is judged.

    Attributes:
        metric: of the validation part, after the last step.
        repeats: runs of a trial, on seeds one after the other; their mean counts.
        pruner: none, or one of those that `samplers.make_pruner` makes.
        max_step_seconds: a trial with a slower training step is not eligible.
        max_memory_gib: nor is one that took more memory.
        nproc: processes that train each run together.
    """

    metric: str = "loss"
    repeats: int = 1
    pruner: str = "none"
    max_step_seconds: float | None = None
    max_memory_gib: float | None = None
    nproc: int = 1

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of the metric is the better one."""
        return higher_is_better(self.metric)


def why_not_judged(preset: Preset) -> list[str]:
    """Why runs of a preset cannot be judged by what they are after an equal number of steps."""
    problems = []
    if preset.train.patience is not None:
        problems.append("train.patience: here all runs have the same number of steps: add train.patience=null")
    if preset.train.final_model != "last":
        problems.append(
            "train.final_model: here all runs are judged after their last step, never by the best on the way: add "
            "train.final_model=last"
        )
    return problems


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


def run_value(summary: RunSummary, metric: str) -> float | None:
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
