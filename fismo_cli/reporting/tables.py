"""What tables for people say, made from summaries alone."""

from collections.abc import Mapping
from typing import Any

from fismo_cli.metrics import shown
from fismo_cli.training.run_summary import RunSummary

__all__ = ["dry_run_rows", "metrics_rows", "noise_words", "summary_rows"]


def summary_rows(summary: RunSummary) -> dict[str, str]:
    """What a run was and what came out of it, but for its place; what the summary does not know (None) is left out."""
    rows = {"status": _status(summary)}
    if (step := summary.get("model_step", summary["steps"])) != summary["steps"]:
        rows["model"] = f"of step {step}, which has the best validation loss"
    parts = summary["metrics"]
    for split, metrics in (("train", parts["train"]), ("validation", parts["validation"]), ("test", parts["test"])):
        if metrics:
            rows[split] = "  ".join(f"{name} {_metric(name, value)}" for name, value in metrics.items())
    if summary["seconds"] is not None:
        share = summary["optimizer_seconds"] / summary["seconds"] if summary["seconds"] > 0 else 0.0
        rows["time"] = f"{summary['seconds']:.1f} s, of which optimizer {100 * share:.0f} %"
    if summary["samples_per_second"] is not None:
        rows["speed"] = f"{summary['samples_per_second']:,.0f} samples/s"
    if (noise := summary.get("noise_scale")) is not None:
        rows["noise scale"] = noise_words(noise, summary["fisher_noise_scale"])
    if summary.get("radius_scale", 1.0) != 1.0:
        rows["trust radius"] = f"adapted: {summary['radius_scale']:g} times the preset's at the end"
    if (peak := summary["peak_memory_bytes"]) is not None:
        rows["memory"] = f"{_bytes(peak)} at most, optimizer state {_bytes(summary['optimizer_state_bytes'] or 0)}"
    return rows


def dry_run_rows(result: Mapping[str, Any]) -> dict[str, str]:
    """What a few steps took."""
    seconds, steps = result["step_seconds"], result["total_steps"]
    amount = f"{'at most ' if result['batch_grows'] else ''}{steps} steps, {result['total_samples']:,} samples"
    trained = f"{result['trained_parameters']:,} of " * (result["trained_parameters"] != result["parameters"])
    rows = {
        "run": f"{result['preset']} with {result['optimizer']}, {trained}{result['parameters']:,} parameters"
        f"{' trained' * bool(trained)}, "
        f"on {result['device']}",
        "step": f"{1000 * seconds:.1f} ms (the first {1000 * result['first_step_seconds']:.1f} ms), "
        f"{result['samples_per_second']:,.0f} samples/s",
        "all steps": f"{amount}, about {seconds * steps:.0f} s without evaluation",
        "memory": f"{_bytes(result['peak_memory_bytes'])} at most, "
        f"optimizer state {_bytes(result['optimizer_state_bytes'])}",
    }
    if result["noise_scale"] is not None:
        rows["noise scale"] = (
            f"{result['noise_scale']:,.0f} samples: about the batch size up to which, at the start of training, a "
            "larger batch saves as many steps; it grows as the loss falls"
        )
    if result["world_size"] > 1:
        rows["each process"] = (
            f"of {result['world_size']}: sends {_bytes(result['gradient_bytes'])} of gradients a step, and receives "
            f"{_bytes(result['update_bytes'])} of new values at most; memory and state are those of the largest"
        )
    return rows


def noise_words(noise_scale: float, fisher_noise_scale: float | None) -> str:
    """What a run's noise scale means for its batch size."""
    text = f"{noise_scale:,.0f} samples"
    if fisher_noise_scale is not None:
        text += f" ({fisher_noise_scale:,.0f} in the Fisher metric)"
    return f"{text}: about the largest batch that is worth its samples"


def metrics_rows(metrics: Mapping[str, Mapping[str, float] | None]) -> tuple[list[str], list[list[str]]]:
    """Headings, and one row a part of the data, with one column a metric."""
    measured = {split: values for split, values in metrics.items() if values}
    names = list(dict.fromkeys(name for values in measured.values() for name in values))
    rows = [
        [split, *(_metric(name, values[name]) if name in values else "" for name in names)]
        for split, values in measured.items()
    ]
    return ["", *names], rows


def _status(summary: RunSummary) -> str:
    text = f"{summary['status']} after {summary['steps']} "
    text += "steps" if summary["total_steps"] is None else f"of {summary['total_steps']} steps"
    if summary["resumed_from_step"] is not None:
        text += f", resumed from step {summary['resumed_from_step']}"
    return text if summary["reason"] is None else f"{text}: {summary['reason']}"


def _metric(name: str, value: float | None) -> str:
    if value is None:  # as JSON has it
        return "not finite"
    return shown(name, value)


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
