"""What runs there are under a directory. Never imports torch."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fismo_cli.metrics import higher_is_better
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.record import read_summary

__all__ = ["ListedRun", "list_runs", "sorted_by"]


@dataclass(frozen=True)
class ListedRun:
    """One run, by what its summary says, or what is known of it where it has none yet.

    Attributes:
        path: Its directory.
        preset: Its preset's name.
        optimizer: The optimizer's name; None where it is not known.
        seed: Of training.
        status: completed, diverged, interrupted, running or unfinished (it was killed).
        steps: Steps done.
        total_steps: Of so many; None where that is not known.
        metrics: Of the validation part.
        seconds: Of training.
        changed: When it last wrote.
    """

    path: Path
    preset: str
    optimizer: str | None
    seed: int | None
    status: str
    steps: int
    total_steps: int | None
    metrics: dict[str, float]
    seconds: float | None
    changed: datetime

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path), "changed": self.changed.isoformat(timespec="seconds")}


def list_runs(root: Path) -> list[ListedRun]:
    """All runs in a directory and below it, the one that wrote last first. Links are not followed."""
    return sorted(map(_listed, _directories(root)), key=lambda run: run.changed, reverse=True)


def sorted_by(runs: list[ListedRun], metric: str) -> list[ListedRun]:
    """The best first; those that do not have the metric last."""
    sign = -1.0 if higher_is_better(metric) else 1.0
    measured = [run for run in runs if run.metrics.get(metric) is not None]
    best = sorted(measured, key=lambda run: sign * run.metrics[metric])
    return [*best, *(run for run in runs if run.metrics.get(metric) is None)]


def _directories(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        if "preset.yaml" in files:
            folders.clear()  # a run has no runs in it
            yield Path(folder)


def _listed(path: Path) -> ListedRun:
    summary, run = read_summary(path), RunDirectory(path)
    newest = max(file.stat().st_mtime for file in (run.summary, run.metrics, run.preset) if file.exists())
    return ListedRun(
        path=path,
        preset=summary["preset"],
        optimizer=summary["optimizer"],
        seed=summary["seed"],
        status=summary["status"],
        steps=summary["steps"],
        total_steps=summary["total_steps"],
        metrics=summary["metrics"]["validation"] or {},
        seconds=summary["seconds"],
        changed=datetime.fromtimestamp(newest).astimezone(),
    )
