"""The trackers of a run: what they need is checked before it, and a run that is continued goes on in the same ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fismo_cli.errors import UsageError, first_line
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.preset.schema_logging import LoggingConfig
from fismo_cli.reporting.mlflow import MlflowSink
from fismo_cli.reporting.tensorboard import require_tensorboard
from fismo_cli.reporting.tracking import TrackedRun, TrackerSink, event_kind, tracker_package
from fismo_cli.reporting.trackio import TrackioSink
from fismo_cli.reporting.wandb import WandbSink, require_wandb
from fismo_cli.runs.directory import RunDirectory, read_json, write_json
from fismo_cli.runs.record import read_run

__all__ = ["check_trackers", "keep_told", "start_trackers"]


@dataclass(frozen=True)
class _Tracker:
    title: str
    require: Callable[[Any], object]
    sink: Callable[[Any, TrackedRun], TrackerSink]


_TRACKERS = {
    "wandb": _Tracker("Weights & Biases", require_wandb, WandbSink),
    "mlflow": _Tracker("MLflow", lambda _: tracker_package("mlflow"), MlflowSink),
    "trackio": _Tracker("trackio", lambda _: tracker_package("trackio"), TrackioSink),
}


def check_trackers(logging: LoggingConfig) -> None:
    """Make sure that all trackers of a preset can be told.

    Raises:
        UsageError: with everything that is missing.
    """
    needed = [require_tensorboard] if logging.tensorboard else []
    needed += [partial(tracker.require, config) for _, tracker, config in _asked(logging)]
    problems = []
    for require in needed:
        try:
            require()
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError.of(problems)


def _asked(logging: LoggingConfig) -> Iterator[tuple[str, _Tracker, Any]]:
    for name, tracker in _TRACKERS.items():
        if (config := getattr(logging, name)) is not None:
            yield name, tracker, config


def start_trackers(loaded: LoadedPreset, run: RunDirectory) -> Iterator[tuple[TrackerSink | None, str]]:
    """Start what a preset names: each tracker, None for one that cannot be started, and what to tell about it.

    What the run is known by there is kept in its directory, for when it is continued.
    """
    known = read_json(run.trackers)
    shown = loaded.preset.model_dump(mode="json", exclude={"logging", "compare", "tune"})  # what changes the result
    for name, tracker, config in _asked(loaded.preset.logging):
        before = known.get(name, {})
        told = before.get("told", {})
        try:
            sink = tracker.sink(
                config, TrackedRun(run.path.resolve(), {"preset": loaded.name, **shown}, before.get("id"), told)
            )
        except Exception as error:  # a server that is not there, and whatever else trackers raise
            yield None, f"{tracker.title} gets nothing of this run, since it cannot be started: {first_line(error)}"
            continue
        known[name] = {"id": sink.id, "told": told}
        write_json(run.trackers, known)
        yield sink, f"{tracker.title}: {sink.place}"


def keep_told(run: RunDirectory) -> None:
    """Keep how far the trackers of a run were told, before its record drops what comes after a checkpoint."""
    known = read_json(run.trackers)
    if not known:
        return
    recorded: dict[str, int] = {}
    for event in read_run(run.path).events:
        if "step" in event:
            kind = event_kind(event["event"], event.get("split"))
            recorded[kind] = max(event["step"], recorded.get(kind, 0))
    for tracker in known.values():
        told = tracker["told"]
        tracker["told"] = {kind: max(step, told.get(kind, 0)) for kind, step in {**told, **recorded}.items()}
    write_json(run.trackers, known)
