"""The figures of one run, or of several side by side, from what their files say of them."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from fismo_cli.reporting.comparison_figures import COLOURS, DASHES
from fismo_cli.reporting.page import styled
from fismo_cli.runs.record import RunRecord

__all__ = ["run_figures"]

Curve = tuple[str, Sequence[Any], Sequence[Any]]
"""Name, steps (or seconds) and values of a line."""


def run_figures(runs: Mapping[str, RunRecord]) -> dict[str, tuple[Any, str]]:
    """Name -> plotly figure and its caption, in the order of the page; what was not measured has none.

    Args:
        runs: by the label that the legend has.
    """
    metrics = dict.fromkeys(
        name
        for run in runs.values()
        for event in _validations(run)
        for name in event["metrics"]
        if name not in ("loss", "perplexity")  # the latter is the former on another scale
    )
    wanted: dict[str, tuple[dict[str, list[Curve]], str, bool, str]] = {
        "loss": (
            {label: _losses(run) for label, run in runs.items()},
            "loss",
            True,
            "Loss against steps: of training batches, as a mean over the steps since the last point and with what the "
            "preset adds to it (smoothing, mixing, a model's auxiliary losses), and of the validation part.",
        )
    }
    for metric in metrics:
        wanted[f"validation-{metric}"] = (
            {
                label: [_line("", _validations(run), lambda e, m=metric: e["metrics"].get(m))]
                for label, run in runs.items()
            },
            metric,
            False,
            f"{metric} of the validation part against steps.",
        )
    wanted |= {
        "learning-rate": (
            {label: _learning_rates(run) for label, run in runs.items()},
            "learning rate",
            False,
            "Learning rate against steps, by group of parameters; that of FISMO's matrices is the trust radius.",
        ),
        "gradient-norm": (
            {
                label: [_line("", run.of_kind("StepLogged"), lambda e: e["gradient_norm"])]
                for label, run in runs.items()
            },
            "gradient norm",
            True,
            "Norm of the gradient, before it is clipped.",
        ),
        "gradient-noise": (
            {label: _noise(run) for label, run in runs.items()},
            "samples",
            True,
            "Noise scale of the gradient: about the largest batch that is worth its samples.",
        ),
        "validation-loss-by-time": (
            {label: [_by_time(run)] for label, run in runs.items()} if len(runs) > 1 else {},
            "loss",
            True,
            "Loss of the validation part against seconds of training, without evaluation and checkpoints.",
        ),
        "seconds": (
            {label: [_seconds(run)] for label, run in runs.items()},
            "seconds of training",
            False,
            "Time against steps, without evaluation and checkpoints.",
        ),
    }
    return {
        name: (drawing, caption)
        for name, (curves, title, log, caption) in wanted.items()
        if (drawing := _drawn(curves, title, log, "seconds" if name.endswith("by-time") else "step")) is not None
    }


def _drawn(curves: Mapping[str, Sequence[Curve]], title: str, log: bool, across: str) -> Any:
    """One colour a run, one dash a kind of line; None where there is no value at all."""
    import plotly.graph_objects as go

    drawing = go.Figure()
    for index, (label, lines) in enumerate(curves.items()):
        for dash, (name, steps, values) in zip(cycle(DASHES), lines, strict=False):
            if all(value is None for value in values):
                continue
            if len(curves) == 1:
                shown, colour = name or title, COLOURS[len(drawing.data) % len(COLOURS)]
            else:
                shown, colour = f"{label} {name}".strip(), COLOURS[index % len(COLOURS)]
            drawing.add_scatter(
                x=list(steps),
                y=list(values),
                name=shown,
                mode="lines+markers" if len(steps) < 40 else "lines",
                line={"color": colour, "dash": dash if len(curves) > 1 else "solid"},
            )
    if not drawing.data:
        return None
    drawing.update_layout(showlegend=len(drawing.data) > 1)
    drawing.update_xaxes(title=across)
    drawing.update_yaxes(title=title, type="log" if log else "linear")
    return styled(drawing)


def _line(name: str, events: Sequence[Mapping[str, Any]], value: Any) -> Curve:
    return name, [event["step"] for event in events], [value(event) for event in events]


def _validations(run: RunRecord) -> list[dict[str, Any]]:
    return [event for event in run.of_kind("Evaluated") if event["split"] == "validation"]


def _by_time(run: RunRecord) -> Curve:
    evaluated = _validations(run)
    seconds = [event["training_seconds"] for event in evaluated]
    return "", seconds, [event["metrics"].get("loss") for event in evaluated]


def _losses(run: RunRecord) -> list[Curve]:
    return [
        _line("validation", _validations(run), lambda event: event["metrics"].get("loss")),
        _line("training", run.of_kind("StepLogged"), lambda event: event["loss"]),
    ]


def _learning_rates(run: RunRecord) -> list[Curve]:
    logged = run.of_kind("StepLogged")
    groups = dict.fromkeys(group for event in logged for group in event["lr"])
    return [_line(group, logged, lambda event, group=group: event["lr"].get(group)) for group in groups]


def _noise(run: RunRecord) -> list[Curve]:
    measured = run.of_kind("NoiseMeasured")
    return [
        _line("noise scale", measured, lambda event: event["noise_scale"]),
        _line("in the Fisher metric", measured, lambda event: event["fisher_noise_scale"]),
        _line("batch size", measured, lambda event: event["batch_size"]) if measured else ("", [], []),
    ]


def _seconds(run: RunRecord) -> Curve:
    """From speed and samples of every record: what was trained again after a resumption counts once."""
    steps, seconds, samples = [0], [0.0], 0
    for event in run.of_kind("StepLogged"):
        if event["samples_per_second"]:
            seconds.append(seconds[-1] + (event["samples"] - samples) / event["samples_per_second"])
            steps.append(event["step"])
        samples = event["samples"]
    return "", steps, seconds if len(steps) > 1 else [None]
