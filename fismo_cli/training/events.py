"""What a run says while it runs: a stream of typed, immutable events, read by the sinks in `fismo_cli.reporting`.

Every field is a plain number, string or mapping, and `as_record` gives the JSON object that
`metrics.jsonl` holds.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fismo_cli.training.run_summary import RunSummary

__all__ = [
    "BatchGrown",
    "CheckpointSaved",
    "Diverged",
    "Evaluated",
    "Event",
    "Finished",
    "Interrupted",
    "NoiseMeasured",
    "Noticed",
    "RunStarted",
    "StepLogged",
    "Trained",
    "as_record",
]

Split = Literal["train", "validation", "test"]
Metrics = dict[str, float]


@dataclass(frozen=True)
class RunStarted:
    """Training begins or continues; `resumed_from_step` is None for a new run.

    `total_steps` is None where the batch may grow: then only the samples are known.
    """

    preset: str
    optimizer: str
    seed: int
    device: str
    total_steps: int | None
    resumed_from_step: int | None
    parameters: int
    train_samples: int
    total_samples: int
    samples: int = 0


@dataclass(frozen=True)
class Noticed:
    """Something the user should know that stops nothing, such as a broken checkpoint that was passed over."""

    message: str


@dataclass(frozen=True)
class StepLogged:
    """A progress record: the mean training loss since the last one, learning rates by group, samples a second.

    The loss is what is minimised: also what smoothing, mixing and the model itself (auxiliary losses) add to it.
    The learning rate of `matrix` is FISMO's trust radius, as adapted.
    """

    step: int
    loss: float
    lr: dict[str, float]
    gradient_norm: float | None
    samples: int
    samples_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of one split.

    `seconds` is what it took, `training_seconds` what training had taken until then, without evaluations and
    checkpoints, `samples` those seen until then; `best` says whether it is the best validation loss so far.
    """

    step: int
    split: Split
    metrics: Metrics
    seconds: float
    training_seconds: float
    best: bool = False
    samples: int = 0


@dataclass(frozen=True)
class NoiseMeasured:
    """The gradient's signal |G|^2 and noise tr(S) after a measured step, averaged over measurements.

    `noise_scale` tr(S) / |G|^2 is in samples, `fisher_noise_scale` the same of FISMO's matrices in the Fisher metric;
    None where the signal cannot be told from zero, or the metric is not at hand. `by_parameter` holds signal and noise
    by parameter and metric.
    """

    step: int
    batch_size: int
    signal: float
    noise: float
    noise_scale: float | None
    fisher_noise_scale: float | None
    by_parameter: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class BatchGrown:
    """From the next step on, a batch has more samples."""

    step: int
    batch_size: int
    noise_scale: float | None


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete on disk."""

    step: int
    path: str


@dataclass(frozen=True)
class Interrupted:
    """A signal ended the run after a whole step; the checkpoint is written."""

    step: int
    signal: int


@dataclass(frozen=True)
class Diverged:
    """The loss became non-finite or exceeded `train.max_loss`."""

    step: int
    reason: str


@dataclass(frozen=True)
class Trained:
    """All steps are done and the model is final: it can be kept before anything else is tried."""

    step: int


@dataclass(frozen=True)
class Finished:
    """The run is over, whatever way; `summary` is what `summary.json` holds."""

    summary: RunSummary


Event = (
    RunStarted
    | Noticed
    | StepLogged
    | Evaluated
    | NoiseMeasured
    | BatchGrown
    | CheckpointSaved
    | Interrupted
    | Diverged
    | Trained
    | Finished
)


def as_record(event: Event) -> dict[str, Any]:
    """The event as one JSON-able object, with its kind under `event`."""
    return {"event": type(event).__name__, **asdict(event)}
