"""What the files of a run say of it, whatever way it ended or if it still goes on."""

import fcntl
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fismo_cli.runs.directory import RunDirectory, read_json
from fismo_cli.training.run_summary import RunSummary

__all__ = ["RunRecord", "read_run"]


@dataclass(frozen=True)
class RunRecord:
    """A run of `fismo train` as its directory has it.

    Attributes:
        path: the directory.
        summary: what `summary.json` holds; where the run has none yet, what is known of it by the same keys, the others
            None, and the status `running` or `unfinished` (it was killed).
        events: the records of `metrics.jsonl`, in order.
    """

    path: Path
    summary: RunSummary
    events: tuple[dict[str, Any], ...]

    def of_kind(self, name: str) -> list[dict[str, Any]]:
        """The records of one kind of event, such as `StepLogged`."""
        return [event for event in self.events if event["event"] == name]


def read_run(path: Path) -> RunRecord:
    """Read a run's directory; a missing file or a line that was cut off counts as not written."""
    events = tuple(_events(RunDirectory(path).metrics))
    return RunRecord(path, read_summary(path, events), events)


def read_summary(path: Path, events: Sequence[dict[str, Any]] | None = None) -> RunSummary:
    """The summary of a run, or what is known so far by the same keys.

    Args:
        path: its directory.
        events: those of `metrics.jsonl`; None: they are read if they are needed.
    """
    run = RunDirectory(path)
    stored = read_json(run.summary)
    running = _is_locked(path)
    if "status" not in stored or running:
        known = tuple(_events(run.metrics) if events is None else events)
        stored = _unfinished(path, known, "running" if running else "unfinished")
    summary: Any = {**stored, "run_dir": str(path)}
    found: RunSummary = summary
    return found


def _events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            yield record


def _is_locked(path: Path) -> bool:
    """Whether a process is training in the directory."""
    try:
        with (path / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # never trained in, or on a file system without locks
    return False


def _unfinished(path: Path, events: tuple[dict[str, Any], ...], status: str) -> dict[str, Any]:
    """The keys of a summary that can be known from the events so far."""
    by_kind = {event["event"]: event for event in events}  # the last of each kind
    started, logged = by_kind.get("RunStarted", {}), by_kind.get("StepLogged", {})
    evaluated = {event["split"]: event for event in events if event["event"] == "Evaluated"}
    noise = by_kind.get("NoiseMeasured", {})
    return {
        "preset": started.get("preset", path.parent.name),
        "optimizer": started.get("optimizer"),
        "seed": started.get("seed"),
        "status": status,
        "reason": None,
        "device": started.get("device"),
        "steps": max((event.get("step", 0) for event in (logged, *evaluated.values())), default=0),
        "total_steps": started.get("total_steps"),
        "samples": max((event.get("samples", 0) for event in (logged, *evaluated.values())), default=0),
        "resumed_from_step": started.get("resumed_from_step"),
        "metrics": {
            "train": {"loss": logged["loss"]} if logged else None,
            **{split: evaluated[split]["metrics"] if split in evaluated else None for split in ("validation", "test")},
        },
        "noise_scale": noise.get("noise_scale"),
        "fisher_noise_scale": noise.get("fisher_noise_scale"),
        "seconds": None,
        "optimizer_seconds": None,
        "samples_per_second": logged.get("samples_per_second"),
        "peak_memory_bytes": None,
        "optimizer_state_bytes": None,
    }
