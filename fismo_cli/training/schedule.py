"""How many steps a run has, and the learning-rate factor of each: pure functions of numbers."""

import math

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import ScheduleConfig, TrainConfig

__all__ = ["factor", "same_until", "steps_per_epoch", "total_steps", "warmup_steps"]


def factor(step: int, total: int, schedule: ScheduleConfig) -> float:
    """The share of the peak learning rate at a step.

    The warm-up rises linearly from `1 / (w + 1)` at step 0 to 1 at step `w`, so that no step is wasted at a rate of
    zero. The shape after it would reach `schedule.final` at step `total`, one after the last, for the same reason.

    Args:
        step: the step about to be taken, from 0.
        total: all steps of the run.
        schedule: shape, warm-up, decay and end.

    Raises:
        ValueError: if the step is outside `0..total`.
    """
    if not 0 <= step <= total:
        raise ValueError(f"step {step} is outside 0..{total}")
    warmup = warmup_steps(total, schedule)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    match schedule.name:
        case "constant":
            return 1.0
        case "linear":
            shape = 1.0 - progress
        case "cosine":
            shape = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "warmup-stable-decay":
            # A decay longer than what the warm-up leaves starts right after it.
            length = schedule.decay * total if schedule.decay <= 1.0 else schedule.decay
            decay = min(max(1, round(length)), max(1, total - warmup))
            shape = min(1.0, (total - step) / decay)
    return schedule.final + (1.0 - schedule.final) * shape


def warmup_steps(total: int, schedule: ScheduleConfig) -> int:
    """How many of all steps the learning rate rises."""
    return round(schedule.warmup * total) if schedule.warmup < 1.0 else min(int(schedule.warmup), total)


def same_until(one: int, other: int, schedule: ScheduleConfig) -> int:
    """How many steps, from the first, have the same learning rates in runs of one and of another length."""
    shorter = min(one, other)
    same = (factor(step, one, schedule) == factor(step, other, schedule) for step in range(shorter))
    return next((step for step, equal in enumerate(same) if not equal), shorter)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Whole batches in one pass over the training part; what is left over is dropped.

    Raises:
        UsageError: if the training part is smaller than one batch.
    """
    if batch_size > samples:
        raise UsageError(
            f"train.batch_size={batch_size} is more than the {samples} samples of the training part: "
            f"set train.batch_size to at most {samples}"
        )
    return samples // batch_size


def total_steps(config: TrainConfig, samples: int) -> int:
    """Optimizer steps of a run; fractions of an epoch are rounded to whole steps, at least one.

    Raises:
        UsageError: if the training part is smaller than one batch.
    """
    per_epoch = steps_per_epoch(samples, config.batch_size)
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None  # the schema asks for one of the two
    return max(1, round(config.epochs * per_epoch))
