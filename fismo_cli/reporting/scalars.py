"""The numbers of a run's events, by the names that TensorBoard and the trackers have them under. Pure."""

import math

from fismo_cli.training.events import BatchGrown, Evaluated, NoiseMeasured, StepLogged
from fismo_cli.training.run_summary import RunSummary

__all__ = ["Measured", "final_scalars", "scalars"]

Measured = StepLogged | NoiseMeasured | BatchGrown | Evaluated
"""Events that have numbers, of a step."""


def scalars(event: Measured) -> dict[str, float]:
    """The numbers of an event, such as `train/loss`."""
    match event:
        case StepLogged():
            rates = {f"lr/{name}": value for name, value in event.lr.items()}
            norm = {} if event.gradient_norm is None else {"train/gradient_norm": event.gradient_norm}
            return {"train/loss": event.loss, "train/samples_per_second": event.samples_per_second, **rates, **norm}
        case NoiseMeasured():
            scales = {"noise_scale": event.noise_scale, "fisher_noise_scale": event.fisher_noise_scale}
            return {f"train/{name}": scale for name, scale in scales.items() if scale is not None}
        case BatchGrown():
            return {"train/batch_size": event.batch_size}
        case Evaluated():
            return {f"{event.split}/{name}": value for name, value in event.metrics.items()}


def final_scalars(summary: RunSummary) -> dict[str, float]:
    """The numbers that a run is judged by, such as `final/validation/loss`; those that are not finite are left out."""
    splits = {"train": summary["metrics"]["train"], "validation": summary["metrics"]["validation"]}
    splits["test"] = summary["metrics"]["test"]
    found = {
        f"final/{split}/{name}": value for split, metrics in splits.items() for name, value in (metrics or {}).items()
    }
    found |= {
        "final/seconds": summary["seconds"],
        "final/optimizer_seconds": summary["optimizer_seconds"],
        "final/samples_per_second": summary["samples_per_second"],
        "final/steps": summary["steps"],
    }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
