"""What `summary.json` of a study holds: tables, words, page and `--json` are made from it alone."""

from typing import Any, NotRequired, TypedDict

__all__ = ["STUDY_VERSION", "Best", "Judged", "PlanSummary", "StudySummary", "TrialRecord"]

STUDY_VERSION = 1
"""Of the keys below; one that is taken away, or means something else, needs another one."""


class Judged(TypedDict):
    """How trials are judged, see `campaigns.judging.Judging`."""

    metric: str
    repeats: int
    pruner: str
    max_step_seconds: float | None
    max_memory_gib: float | None
    nproc: int


class PlanSummary(TypedDict):
    """What was fixed before the first trial; `samples` are those of a trial."""

    preset: str
    optimizer: str
    samples: int
    judging: Judged
    environment: dict[str, Any]
    space: dict[str, dict[str, Any]]


class Best(TypedDict):
    """The best trial that keeps all limits."""

    value: float | None
    params: dict[str, Any]
    trial: int


class TrialRecord(TypedDict):
    """A trial that has ended; what is not known of it is None. `limits` above 0 are broken."""

    number: int
    original: int
    state: str
    value: float | None
    params: dict[str, Any]
    failure: dict[str, str] | None
    limits: dict[str, float]
    intermediate: dict[Any, float]
    same_as: int | None
    run_dirs: list[str] | None
    metrics: list[dict[str, dict[str, float] | None]] | None
    host: str | None
    worker: str | None
    seconds: float | None
    step_seconds: float | None
    memory_gib: float | None
    noise_scale: float | None
    started: str | None
    ended: str | None


class StudySummary(TypedDict):
    """A whole study; `unfinished` are trials that somebody runs or that are queued again."""

    version: int
    study: str
    directory: str
    storage: str
    plan: PlanSummary
    trials: dict[str, int]
    unfinished: int
    best: Best | None
    at_bound: list[str]
    eligible: int
    importances: dict[str, float]
    trial_list: list[TrialRecord]
    partial: NotRequired[str]
    best_preset: NotRequired[str | None]
    report: NotRequired[str]
