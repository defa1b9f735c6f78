"""What a comparison reads of a finished run: its summary, hashes, and validation curve. From files alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from fismo_cli.comparison.summary import JudgedRun
from fismo_cli.comparison.target import Target
from fismo_cli.errors import FismoError
from fismo_cli.metrics import cost
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.training.run_summary import RunSummary

__all__ = ["Point", "Record", "as_plain", "from_plain", "judged_run", "read_record"]


@dataclass(frozen=True)
class Point:
    """One evaluation on validation data; seconds of training alone."""

    step: int
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Record:
    """A run that completed or diverged."""

    label: str
    summary: RunSummary
    curve: tuple[Point, ...]
    initial_weights: str
    sample_order: str
    cpu: str
    versions: dict[str, str]

    @property
    def diverged(self) -> bool:
        """Whether it diverged; so does a run whose final validation loss is not finite."""
        metrics = self.summary["metrics"]["validation"]
        loss = None if metrics is None else metrics["loss"]
        return str(self.summary["status"]) != "completed" or loss is None or not math.isfinite(loss)

    def cost(self, metric: str) -> float:
        """The final value on validation data, lower being better; infinite for a run that diverged or has none."""
        value = self.metric("validation", metric)
        return math.inf if value is None or not math.isfinite(value) else cost(metric, float(value))

    def metric(self, split: Literal["train", "validation", "test"], name: str) -> float | None:
        """A final metric; None where it was not measured or the run diverged."""
        metrics = self.summary["metrics"][split]
        return None if self.diverged or not metrics else metrics.get(name)

    def reached(self, target: Target) -> tuple[float, float]:
        """Step and training seconds at the first evaluation that reaches a target; infinite where none does."""
        for point in self.curve:
            if target.reached(point.metrics):
                return float(point.step), point.seconds
        return math.inf, math.inf


def judged_run(record: Record) -> JudgedRun:
    """What the summary of a comparison has of a run: all of the run's own but its identity."""
    known: Any = {key: value for key, value in record.summary.items() if key != "identity"}
    return cast(JudgedRun, {"label": record.label, **known})


def as_plain(record: Record) -> dict[str, Any]:
    """A record as JSON can hold it, without its label."""
    plain = asdict(record)
    del plain["label"]
    return plain


def from_plain(label: str, plain: Mapping[str, Any]) -> Record:
    """What `as_plain` gave, with a label."""
    curve = tuple(Point(**point) for point in plain["curve"])
    return Record(label=label, **{**plain, "curve": curve})


def read_record(run: RunDirectory, label: str) -> Record:
    """Read a finished run.

    Raises:
        FismoError: if its files cannot be read.
    """
    try:
        summary: Any = {**json.loads(run.summary.read_text(encoding="utf-8")), "run_dir": str(run.path)}
        environment = json.loads(run.environment.read_text(encoding="utf-8"))
        curve = []
        for line in run.metrics.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record.get("event") == "Evaluated" and record.get("split") == "validation":
                metrics = {name: value for name, value in record["metrics"].items() if value is not None}
                curve.append(Point(record["step"], record["training_seconds"], metrics))
        return Record(
            label,
            summary,
            tuple(curve),
            environment["initial_weights_sha256"],
            environment["sample_order_sha256"],
            str(environment["cpu"]["model"]),
            environment["versions"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise FismoError(f"{run.path}: cannot be read ({error}); remove it and run again") from error
