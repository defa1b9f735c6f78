"""What a finished run is summarised by: the part of `summary.json` that the trainer knows. Pure."""

from typing import Literal

import torch

from fismo_cli.preset.schema import TrainConfig
from fismo_cli.training.device import peak_memory_bytes
from fismo_cli.training.run_summary import RUN_VERSION, RunSummary
from fismo_cli.training.state import RunState

__all__ = ["Status", "summarise"]

Status = Literal["completed", "diverged", "interrupted"]


def summarise(
    state: RunState,
    *,
    status: Status,
    reason: str | None,
    signal: int | None,
    preset: str,
    optimizer: str,
    train: TrainConfig,
    device: torch.device,
    total_steps: int | None,
    resumed_from: int | None,
    test: dict[str, float] | None,
    best_is_final: bool,
    seconds: float,
    optimizer_seconds: float,
    world_size: int,
    radius_scale: float,
    peak_lr: dict[str, float],
) -> RunSummary:
    """The summary of a run; a metric that was not measured is None. Times leave out evaluation and checkpoints."""
    samples = state.batches * train.batch_size
    return {
        "version": RUN_VERSION,
        "preset": preset,
        "optimizer": optimizer,
        "seed": train.seed,
        "status": status,
        "reason": reason,
        "signal": signal,
        "device": str(device),
        "steps": state.step,
        "total_steps": total_steps,
        "samples": samples,
        "resumed_from_step": resumed_from,
        "world_size": world_size,
        "samples_per_rank": samples // world_size,
        "metrics": {
            "train": None if state.train_loss is None else {"loss": state.train_loss},
            "validation": state.validation,
            "test": test,
        },
        "best_validation_loss": state.best_loss,
        "best_step": state.best_step,
        "model_step": state.best_step if best_is_final and state.best_step is not None else state.step,
        "noise_scale": state.noise_scale,
        "fisher_noise_scale": state.fisher_noise_scale,
        "final_batch_size": state.growth * train.batch_size,
        "radius_scale": radius_scale,
        "peak_lr": peak_lr,
        "seconds": seconds,
        "optimizer_seconds": optimizer_seconds,
        "samples_per_second": samples / seconds if seconds > 0 else 0.0,
        "peak_memory_bytes": peak_memory_bytes(device),
    }
