"""How a model does on each class: tables for the terminal, and tables and a heat map for the page of a run."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console

from fismo_cli.reporting.console import print_rows, say
from fismo_cli.reporting.page import GREY, figure, literal, styled, table
from fismo_cli.runs.class_counts import ClassCounts, ClassRow, Confused, read_classes
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.record import RunRecord

__all__ = ["class_sections", "print_classes"]

MOST_PAIRS = 10
"""Pairs of classes that are shown as the most confused ones."""

MOST_IN_HEAT_MAP = 40
"""Of more classes the cells would be too small to be read; the most confused pairs say it then."""

CELL = 22
"""Least width and height of a cell, in pixels."""

LONGEST_TICK = 20
"""Letters of a name at an axis."""

MOST_IN_SIGHT = 40
"""Of more classes the rows are folded away on the page, but for those with the lowest recall."""

WORST = 20

HEADINGS = ("class", "samples", "recall", "precision")
CONFUSED = ("class", "taken for", "samples", "of the class")


def print_classes(console: Console, parts: Mapping[str, ClassCounts]) -> None:
    """Print each class, and what is confused most, of each part of the data."""
    for part, counts in parts.items():
        say(console, f"\n{part}")
        print_rows(console, HEADINGS, [_cells(row) for row in counts.rows])
        if confused := counts.most_confused(MOST_PAIRS):
            say(console, f"\n{part}: most confused")
            print_rows(console, CONFUSED, [_confused_cells(pair) for pair in confused])


def class_sections(runs: Mapping[str, RunRecord]) -> Iterator[str]:
    """What the page of one run says of classes; nothing where there are none, and of several runs."""
    if len(runs) != 1:
        return
    (run,) = runs.values()
    parts = read_classes(RunDirectory(run.path).classes)
    for part in [name for name in ("test", "validation") if name in parts]:
        yield from _section(part, parts[part])


def _section(part: str, counts: ClassCounts) -> Iterator[str]:
    yield f"<h2>Classes: {escape(part)}</h2>"
    many = len(counts.rows) > MOST_IN_SIGHT
    everything = _table(HEADINGS, [_cells(row) for row in counts.rows])
    if many:
        worst = sorted((row for row in counts.rows if row.recall is not None), key=lambda row: row.recall or 0.0)
        yield f'<p class="soft">The {WORST} classes with the lowest recall, of {len(counts.rows):,}:</p>'
        yield _table(HEADINGS, [_cells(row) for row in worst[:WORST]])
        yield f"<details><summary>all classes</summary>{everything}</details>"
    else:
        yield everything
    if confused := counts.most_confused(MOST_PAIRS):
        yield '<p class="soft">Most confused:</p>'
        yield _table(CONFUSED, [_confused_cells(pair) for pair in confused])
    if len(counts.classes) <= MOST_IN_HEAT_MAP:
        caption = (
            f"What the samples of each class of the {part} part were taken for: numbers of samples; the colour is "
            "their share of the class."
        )
        cells = CELL * len(counts.classes)
        drawn = figure(f"confusion-{part}", _heat_map(counts), caption, f"{max(320, 240 + cells)}px")
        yield f'<div class="wide"><div style="min-width: {240 + cells}px">{drawn}</div></div>'  # a phone scrolls


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(headings, [[escape(cell) for cell in row] for row in rows])


def _heat_map(counts: ClassCounts) -> Any:
    """Rows are classes, from the top; columns what their samples were taken for."""
    import plotly.graph_objects as go

    numbers = range(len(counts.classes))
    samples = [[counts.counts.get((own, other), 0) for other in numbers] for own in numbers]
    shares = [
        [count / row.support if row.support else 0.0 for count in line]
        for line, row in zip(samples, counts.rows, strict=True)
    ]
    names = [literal(_short(name)) for name in counts.classes]
    drawing = go.Figure(
        go.Heatmap(
            z=shares,
            text=[[str(count) if count else "" for count in line] for line in samples],
            texttemplate="%{text}",
            customdata=samples,
            hovertemplate="%{customdata} samples, %{z:.1%} of the class<extra></extra>",
            zmin=0.0,
            zmax=1.0,
            colorscale=[[0.0, "rgba(47,126,216,0.04)"], [1.0, "rgba(47,126,216,0.6)"]],
            colorbar={"tickformat": ".0%", "outlinewidth": 0, "thickness": 12, "tickfont": {"color": GREY}},
            xgap=1,
            ygap=1,
        )
    )
    styled(drawing, literal=True)
    # By number: a name such as 3 would be taken for a place on the axis.
    ticks = {"tickmode": "array", "tickvals": list(numbers), "ticktext": names, "showgrid": False}
    drawing.update_xaxes(title="taken for", **ticks)
    drawing.update_yaxes(title="class", autorange="reversed", **ticks)
    return drawing


def _cells(row: ClassRow) -> list[str]:
    return [row.name, f"{row.support:,}", _share(row.recall), _share(row.precision)]


def _confused_cells(pair: Confused) -> list[str]:
    return [pair.name, pair.taken_for, f"{pair.count:,}", _share(pair.share)]


def _short(name: str) -> str:
    """Its beginning and its end, where names that begin alike differ."""
    half = LONGEST_TICK // 2
    return name if len(name) <= LONGEST_TICK else f"{name[: half - 1]}…{name[-half:]}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
