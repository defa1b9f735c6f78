"""What `summary.json` of a run holds."""

from typing import NotRequired, TypedDict

__all__ = ["RUN_VERSION", "Metrics", "RunSummary", "SplitMetrics"]

RUN_VERSION = 1
"""Of the keys below; one that is taken away, or means something else, needs another one."""

Metrics = dict[str, float]


class SplitMetrics(TypedDict):
    """Metrics of each part; None where it was not measured. Of `train` it is the mean loss of the last steps."""

    train: Metrics | None
    validation: Metrics | None
    test: Metrics | None


class RunSummary(TypedDict):
    """A run of `fismo train`. Seconds leave out evaluation and checkpoints.

    `best_step` has the lowest validation loss; the final model, to which the metrics of validation and test belong, is
    that of `model_step`.

    Of one that has not ended (`status` is `running` or `unfinished`) there is what is known so far; all else is None.
    """

    version: NotRequired[int]
    run_dir: NotRequired[str]
    preset: str
    optimizer: str
    seed: int
    status: str
    reason: str | None
    signal: int | None
    device: str
    steps: int
    total_steps: int | None
    samples: int
    resumed_from_step: int | None
    world_size: int
    samples_per_rank: int
    metrics: SplitMetrics
    best_validation_loss: float | None
    best_step: NotRequired[int | None]
    model_step: NotRequired[int]
    noise_scale: float | None
    fisher_noise_scale: float | None
    final_batch_size: int
    radius_scale: float
    peak_lr: dict[str, float]
    seconds: float
    optimizer_seconds: float
    samples_per_second: float
    peak_memory_bytes: int | None
    identity: NotRequired[str]
    optimizer_state_bytes: NotRequired[int | None]
    kept_step: NotRequired[int | None]
