"""A picture of figures, as a PNG file: plotly's own, drawn by Kaleido in a browser that is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fismo_cli.errors import FismoError, UsageError, first_line
from fismo_cli.files import whole_file

__all__ = ["check_png", "write_png"]

WIDTH, HEIGHT, LINE, SCALE = 560, 380, 22, 2
"""Pixels of a panel and of a line of the legend, and how many dots each pixel has."""

_REMEDY = 'needs Kaleido (pip install "fismo[png]") and Chrome or Chromium'


def check_png(path: Path) -> None:
    """Make sure that a picture can be written to a file.

    Raises:
        UsageError: if its name is none of a PNG file, or what draws it is not installed.
    """
    if path.suffix != ".png":
        raise UsageError(f"--png {path}: the file's name must end in .png")
    try:
        import kaleido  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--png {_REMEDY}") from error


def write_png(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures side by side, two in a row, to a file.

    Args:
        path: the file.
        figures: plotly figures by their titles. Lines of one name are alike in all, and named once.

    Raises:
        FismoError: if there is no browser, or the file cannot be written.
    """
    from plotly.subplots import make_subplots

    columns = min(2, len(figures))
    lines = -(-len(figures) // columns)
    names = dict.fromkeys(trace.name or "" for drawing in figures.values() for trace in drawing.data)
    legend = LINE * (1 + sum(60 + 7 * len(name) for name in names) // (WIDTH * columns)) + 90
    panels = HEIGHT * lines
    whole = make_subplots(rows=lines, cols=columns, subplot_titles=list(figures), vertical_spacing=90 / panels)
    named: set[str] = set()
    for index, drawing in enumerate(figures.values()):
        row, column = index // columns + 1, index % columns + 1
        for trace in drawing.data:
            trace.update(showlegend=trace.name not in named, legendgroup=trace.name)
            named.add(trace.name)
            whole.add_trace(trace, row=row, col=column)
        for axis, update in ((drawing.layout.xaxis, whole.update_xaxes), (drawing.layout.yaxis, whole.update_yaxes)):
            update(title=axis.title.text, type=axis.type, gridcolor="#e3e6e9", zeroline=False, row=row, col=column)
            if axis.type == "log":
                update(tickformat="~g", dtick="D2", row=row, col=column)
    whole.update_layout(
        template="none",
        width=WIDTH * columns,
        height=panels + 40 + legend,
        margin={"l": 70, "r": 20, "t": 40, "b": legend},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        font={"size": 13},
    )
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(whole.to_image(format="png", scale=SCALE))
    except OSError as error:
        raise FismoError(f"--png {path}: {error.strerror or error}") from error
    except Exception as error:  # Kaleido's own, of many kinds
        raise FismoError(f"--png {_REMEDY}: {first_line(error)}") from error
