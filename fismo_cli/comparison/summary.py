"""What `summary.json` of a comparison, and of several, holds: tables, words, pages and `--json` are made from it alone.

Numbers that may be infinite are the word `inf`. Values are those of the comparison's metric, whichever way it goes.
"""

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

from fismo_cli.comparison.statistics import Verdict

__all__ = [
    "COMPARISON_VERSION",
    "Against",
    "Budget",
    "ComparisonSummary",
    "ContenderSummary",
    "Curve",
    "JudgedRun",
    "Number",
    "Profile",
    "Ratio",
    "Speedups",
    "Spread",
    "StudySummary",
    "TargetSummary",
    "Task",
    "TaskVerdict",
    "TasksSummary",
    "TrialSummary",
    "TuningSummary",
    "VerdictSummary",
]

COMPARISON_VERSION = 1
"""Of the keys below; one that is taken away, or means something else, needs another one."""

Number = float | Literal["inf"]


class Spread(TypedDict):
    """Over the seeds."""

    mean: float
    standard_deviation: float


class Ratio(TypedDict):
    """A median over the seeds with its interval; None where it could be anything."""

    median: Number | None
    ci95: list[Number]


class TargetSummary(TypedDict):
    """To what steps and seconds are counted."""

    metric: str
    value: float
    given: bool


class Speedups(TypedDict):
    """How many times as many steps, and seconds, the baseline needs; None without a target."""

    steps_speedup: Ratio | None
    seconds_speedup: Ratio | None


class VerdictSummary(Speedups):
    """On one baseline; `differences` are the candidate's values less the baseline's, seed by seed."""

    baseline: str
    verdict: Verdict
    difference: float | None
    ci95: Sequence[float | None] | None
    p_value: float
    p_holm: float
    t_p_value: float | None
    effect_size: float | None
    wins: int
    ties: int
    losses: int
    diverged: int
    margin: float
    differences: list[float | None]


class ContenderSummary(TypedDict):
    """One optimizer; `value` is the metric that is judged by, of the runs that did not diverge."""

    label: str
    settings: dict[str, Any]
    same_adamw: bool
    completed: int
    diverged: int
    value: Spread | None
    metrics: dict[str, dict[str, Spread | None]]
    reached_target: int
    target_steps: list[Number]
    steps_to_target: Number | None
    seconds_to_target: Number | None
    seconds: Spread | None
    step_milliseconds: float | None
    optimizer_share: float | None
    peak_memory_bytes: int | None
    optimizer_state_bytes: int | None


class TrialSummary(TypedDict):
    """A tuning trial; `value` is None for one that diverged."""

    settings: dict[str, Any]
    value: float | None
    run_dir: str


class BestTrial(TypedDict):
    """The trial whose settings were judged; `trial` counts from 0."""

    value: float | None
    params: dict[str, Any]
    trial: int | None


class StudySummary(TypedDict):
    """A tuning study of a contender."""

    seed: int
    judged_with: list[int]
    directory: str
    trial_list: list[TrialSummary]
    best: BestTrial | None
    best_preset: str | None
    at_bound: list[str]


class Budget(TypedDict):
    """What is to be expected of a number of tuning trials; the mean is `inf` where a run diverged."""

    trials: int
    searches: int
    mean: Number
    standard_deviation: float | None


class TuningSummary(TypedDict):
    """All studies of a contender."""

    label: str
    space: dict[str, dict[str, Any]]
    trials: dict[str, int]
    studies: list[StudySummary]
    budgets: list[Budget]


class JudgedRun(TypedDict):
    """A run that is judged: what a comparison reads of its own summary."""

    label: str
    seed: int
    status: str
    seconds: float
    run_dir: str
    metrics: dict[str, dict[str, float] | None]


class Curve(TypedDict):
    """The validation metric of a run, evaluation by evaluation."""

    label: str
    seed: int
    step: list[int]
    seconds: list[float]
    value: list[float | None]


class ComparisonSummary(TypedDict):
    """A whole comparison."""

    version: int
    comparison: str
    preset: str
    task: str
    candidate: str
    seeds: list[int]
    tune_trials: int
    studies: int
    metric: str
    margin: float
    target: TargetSummary | None
    target_missed: bool
    timing: Literal["shared", "alone"]
    cpus: list[str]
    versions: dict[str, str]
    mixed_versions: bool
    environment: dict[str, Any]
    declarations: list[dict[str, Any]]
    verdicts: list[VerdictSummary]
    contenders: list[ContenderSummary]
    tuning: list[TuningSummary]
    runs: list[JudgedRun]
    pairing: list[dict[str, Any]]
    curves: list[Curve]
    report: NotRequired[str]


class TaskVerdict(TypedDict):
    """What is kept of a task's verdict on a baseline."""

    verdict: Verdict
    difference: float | None
    p_holm: float
    wins: int
    losses: int


class Task(TypedDict):
    """One task of several; `ratios` are steps to `target` by those of the soonest contender."""

    preset: str
    comparison: str
    report: str
    verdicts: dict[str, TaskVerdict]
    values: dict[str, Spread | None]
    target: float | None
    ratios: dict[str, Number]


class Profile(TypedDict):
    """A contender's performance profile: pairs of a ratio and the share of tasks up to it, and the mean height."""

    label: str
    points: list[tuple[float, float]]
    score: float


class Against(TypedDict):
    """A baseline over all tasks: on how many the candidate won, an interval for the share of such, and verdicts."""

    baseline: str
    won: int
    tasks: int
    ci95: list[float]
    verdicts: dict[str, int]


class TasksSummary(TypedDict):
    """Several comparisons taken together."""

    version: int
    directory: NotRequired[str]
    report: NotRequired[str]
    candidate: str
    baselines: list[str]
    tune_trials: int
    studies: int
    seeds: int
    metric: str
    tasks: list[Task]
    profiles: list[Profile]
    against: list[Against]
