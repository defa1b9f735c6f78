"""The figures of a comparison, from its summary alone, readable on light and dark ground."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from fismo_cli.comparison.summary import ComparisonSummary
from fismo_cli.metrics import called, cost, higher_is_better
from fismo_cli.reporting.comparison_words import MANY
from fismo_cli.reporting.page import GREY, styled

__all__ = ["figures", "style_of"]

COLOURS = ("#2f7ed8", "#e07b00", "#1f9d63", "#c2378f", "#8a6fd1", "#a08a2c", "#3aa6b9", "#7d848c")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,8px", "14px,4px,2px,4px,2px,4px")
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")

ROW = 22
"""Pixels a row, where each contender has one."""


@dataclass(frozen=True)
class Style:
    """How a contender is drawn: after all colours come the same ones with another line and another marker."""

    label: str
    colour: str
    dash: str
    symbol: str


def figures(summary: ComparisonSummary) -> dict[str, tuple[Any, str]]:
    """Name -> plotly figure and its caption, in the order of the page."""
    metric = summary["metric"]
    made = {
        "loss-by-steps": (
            _curves(summary, "step", "step"),
            f"Validation {called(metric)} against steps: mean and range over seeds.",
        ),
        "loss-by-seconds": (
            _curves(summary, "seconds", "seconds of training"),
            "The same against seconds of training (means over the seeds), without evaluation and checkpoints.",
        ),
        "differences": (
            _differences(summary),
            f"Final validation {called(metric)} of the candidate less the baseline's, seed by seed, with the mean and "
            f"its 95 % interval; {'above' if higher_is_better(metric) else 'below'} zero the candidate is ahead. "
            "Within the shaded margin a difference does not matter.",
        ),
    }
    if summary["target"] is not None:
        made["to-target"] = (
            _to_target(summary),
            "Steps to the target, one point a seed; runs that missed it are not shown.",
        )
    if summary["tuning"]:
        made["tuning"] = (
            _tuning(summary),
            f"Tuning: the best validation {called(metric)} so far against trials (of several studies the mean); points "
            "are trials.",
        )
    made["cost"] = (_cost(summary), "Time of a training step: the optimizer's part, and the rest.")
    return made


def _curves(summary: ComparisonSummary, axis: Literal["step", "seconds"], title: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for style in _styles(summary):
        label = style.label
        curves = [curve for curve in summary["curves"] if curve["label"] == label and curve["step"]]
        length = min((len(curve["step"]) for curve in curves), default=0)
        columns = [
            [value for curve in curves if (value := curve["value"][index]) is not None] for index in range(length)
        ]
        kept = [index for index, column in enumerate(columns) if len(column) == len(curves)]
        if not kept:
            continue
        x = [sum(curve[axis][index] for curve in curves) / len(curves) for index in kept]
        low, high = [min(columns[index]) for index in kept], [max(columns[index]) for index in kept]
        mean = [sum(columns[index]) / len(columns[index]) for index in kept]
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=_faint(style.colour),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=label,
        )
        line = {"color": style.colour, "dash": style.dash}
        figure.add_scatter(x=x, y=mean, name=label, mode="lines", line=line, legendgroup=label)
    target = summary["target"]
    if target is not None and target["metric"] == summary["metric"] and figure.data:
        ends = [min(min(trace.x) for trace in figure.data), max(max(trace.x) for trace in figure.data)]
        line = {"color": GREY, "dash": "dot"}
        figure.add_scatter(x=ends, y=[target["value"]] * 2, name="target", mode="lines", line=line)
    return _by_metric(figure, title, summary["metric"])


def _differences(summary: ComparisonSummary) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    styles = {style.label: style for style in _styles(summary)}
    for verdict in summary["verdicts"]:
        label, interval = verdict["baseline"], verdict["ci95"]
        pairs = [pair for pair in zip(summary["seeds"], verdict["differences"], strict=True) if pair[1] is not None]
        figure.add_scatter(
            x=[f"against {label}"] * len(pairs),
            y=[difference for _, difference in pairs],
            text=[f"seed {seed}" for seed, _ in pairs],
            mode="markers",
            name=label,
            marker={"color": styles[label].colour, "symbol": styles[label].symbol, "opacity": 0.55, "size": 9},
        )
        low, high = interval or (None, None)
        mean = verdict["difference"]
        if low is not None and high is not None and mean is not None:
            figure.add_scatter(
                x=[f"against {label}"],
                y=[mean],
                error_y={"array": [high - mean], "arrayminus": [mean - low], "thickness": 2, "width": 9},
                mode="markers",
                name=f"{label}: mean, 95 %",
                marker={"color": styles[label].colour, "symbol": "line-ew-open", "size": 16},
            )
    margin = min((verdict["margin"] for verdict in summary["verdicts"] if verdict["margin"]), default=0.0)
    figure.add_hrect(y0=-margin, y1=margin, fillcolor=GREY, opacity=0.15, line_width=0)
    figure.add_hline(y=0, line={"color": GREY})
    figure.update_layout(showlegend=len(summary["verdicts"]) <= MANY)  # the axis names them
    return _styled(figure, "", f"difference in validation {called(summary['metric'])}")


def _to_target(summary: ComparisonSummary) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    styles = _styles(summary)
    for style in styles:
        label = style.label
        contender = next(entry for entry in summary["contenders"] if entry["label"] == label)
        steps = [
            (seed, step)
            for seed, step in zip(summary["seeds"], contender["target_steps"], strict=True)
            if step != "inf"
        ]
        missed = len(summary["seeds"]) - len(steps)
        figure.add_box(
            x=[step for _, step in steps],
            text=[f"seed {seed}" for seed, _ in steps],
            name=f"{label}, {missed} missed" if missed else label,
            boxpoints="all",
            pointpos=0,
            jitter=0.5,
            marker={"color": style.colour, "symbol": style.symbol},
        )
    return _rows(_styled(figure, "steps to the target", ""), len(styles))


def _tuning(summary: ComparisonSummary) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    styles = {style.label: style for style in _styles(summary)}
    for tuning in summary["tuning"]:
        studies = [[trial["value"] for trial in study["trial_list"]] for study in tuning["studies"]]
        numbers = list(range(1, summary["tune_trials"] + 1))
        metric, infinite = summary["metric"], float("inf")
        costs = [[infinite if x is None else cost(metric, x) for x in values] for values in studies]
        lowest = [list(accumulate(own, min)) for own in costs]
        means = [sum(column) / len(column) for column in zip(*lowest, strict=True)]
        best = [None if mean == infinite else cost(metric, mean) for mean in means]
        name: dict[str, Any] = {"name": tuning["label"], "legendgroup": tuning["label"]}
        style = styles[tuning["label"]]
        line = {"color": style.colour, "dash": style.dash, "shape": "hv"}
        marker = {"color": style.colour, "symbol": style.symbol}
        figure.add_scatter(x=numbers, y=best, mode="lines", line=line, **name)
        points = {"x": numbers * len(studies), "y": [value for values in studies for value in values]}
        figure.add_scatter(**points, mode="markers", marker=marker, showlegend=False, **name)
    return _by_metric(figure, "trial", summary["metric"])


def _cost(summary: ComparisonSummary) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    measured = [
        (entry["label"], whole, whole * share)
        for entry in summary["contenders"]
        if (whole := entry["step_milliseconds"]) is not None and (share := entry["optimizer_share"]) is not None
    ]
    labels = [label for label, _, _ in measured]
    optimizer = [part for _, _, part in measured]
    rest = [whole - part for _, whole, part in measured]
    figure.add_bar(y=labels, x=rest, name="forward, backward, data", orientation="h", marker={"color": COLOURS[0]})
    figure.add_bar(y=labels, x=optimizer, name="optimizer", orientation="h", marker={"color": COLOURS[1]})
    figure.update_layout(barmode="stack")
    return _rows(_styled(figure, "ms a step", ""), len(labels), legend=True)


def _by_metric(figure: Any, x_title: str, metric: str) -> Any:
    """With the metric upwards: a logarithmic axis, but for accuracies."""
    if not higher_is_better(metric):
        figure.update_yaxes(type="log")
    return _styled(figure, x_title, f"validation {called(metric)}")


def _styles(summary: ComparisonSummary) -> list[Style]:
    return [style_of(index, entry["label"]) for index, entry in enumerate(summary["contenders"])]


def style_of(index: int, label: str) -> Style:
    """How the contender of a place is drawn; the candidate is the first."""
    count = len(COLOURS)
    return Style(label, COLOURS[index % count], DASHES[index // count % 8], SYMBOLS[index // count % 8])


def _rows(figure: Any, rows: int, legend: bool = False) -> Any:
    """Room for each row and its name, of many; their legend would only repeat the names."""
    if rows > MANY + 1:
        figure.update_layout(height=ROW * rows + 120, showlegend=legend)
        figure.update_yaxes(dtick=1)  # every name, not every other
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def _styled(figure: Any, x_title: str, y_title: str) -> Any:
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    figure = styled(figure)
    if sum(trace.showlegend is not False for trace in figure.data) > MANY + 2:  # above the curves there is no room
        figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1})
    return figure
