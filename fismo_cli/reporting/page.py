"""What all report pages share: one self-contained page without any network, light and dark, also on a phone."""

import gzip
import math
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fismo_cli.files import encodable

__all__ = ["GREY", "document", "figure", "link", "literal", "pairs", "styled", "table"]

GREY = "#8a929a"

LEAST_DECADE = 2.5
"""Values on a logarithmic axis are at least so many times apart."""

STYLE = """
:root { color-scheme: light dark; --text: #1c1f23; --back: #ffffff; --soft: #5d6670; --line: #d9dee3; --panel: #f5f7f9;
  --better: #1a7f4b; --worse: #b3261e; --other: #8a6100; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --back: #14171a; --soft: #a0a8b0; --line: #343a40;
  --panel: #1d2125; --better: #5fd39a; --worse: #ff8a80; --other: #ffcf66; } }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { border-left: .3rem solid var(--other); background: var(--panel); padding: .6rem .9rem; margin: .6rem 0; }
.better { border-color: var(--better); } .worse { border-color: var(--worse); }
.soft, figcaption { color: var(--soft); font-size: .9rem; } figure { margin: 0 0 1.5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.text, .pairs td { text-align: left; } .pairs td {
  white-space: normal; vertical-align: top; }
.pairs td:first-child { white-space: nowrap; } a { color: inherit; }
.js-plotly-plot .main-svg text { fill: var(--soft) !important; }
pre { overflow-x: auto; background: var(--panel); padding: .7rem; font-size: .85rem; } summary { cursor: pointer; }
"""


UNPACK = """
(async () => {
  const run = text => {
    const script = document.createElement("script");
    script.textContent = text;
    document.body.append(script);
  };
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), letter => letter.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  run(await new Response(plain).text());
  document.querySelectorAll("script.drawing").forEach(drawing => run(drawing.textContent));
})();
"""
"""Plotly takes five megabytes, two of them as packed as browsers unpack it: what draws has to wait for that."""


@cache
def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def document(title: str, body: Iterable[str]) -> str:
    """A whole page, with plotly in it, packed.

    Args:
        title: plain text.
        body: its parts, as HTML.
    """
    page = "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            '<link rel="icon" href="data:,">',
            f"<style>{STYLE}</style></head><body>",
            *body,
            f'<script type="text/plain" id="plotly">{_packed_plotly()}</script><script>{UNPACK}</script>',
            "</body></html>\n",
        )
    )
    return encodable(page)


def figure(name: str, drawing: Any, caption: str, height: str = "420px") -> str:
    """A plotly figure with its caption."""
    drawn = drawing.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_height=height,
        # Nothing of a report is sent anywhere.
        config={"responsive": True, "displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""},
    )
    drawn = re.sub("<script[^>]*>", '<script type="text/plain" class="drawing">', drawn)
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells."""
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and texts, as HTML, that may be long."""
    body = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>" for name, text in rows)
    return f'<table class="pairs"><tbody>{body}</tbody></table>'


def link(target: Path, directory: Path, text: str | None = None) -> str:
    """A link from a page in a directory, which stays right when all of it is moved; plain text if nothing is there.

    Args:
        target: what it leads to.
        directory: where the page is.
        text: what is shown; None: the path from the page.
    """
    place = os.path.relpath(target, directory)
    shown = escape(place if text is None else text)
    return f'<a href="{escape(quote(place))}">{shown}</a>' if target.exists() else shown


def styled(drawing: Any, *, literal: bool = False) -> Any:
    """Make a plotly figure readable on light and dark ground, and show names in it as they are.

    Args:
        drawing: the figure.
        literal: whether its names went through `literal` before it was drawn.
    """
    clear = "rgba(0,0,0,0)"
    drawing.update_layout(
        template="none",
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"color": GREY, "size": 13},
        margin={"l": 60, "r": 10, "t": 20, "b": 50},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},  # below, however many lines
        modebar={"bgcolor": clear, "color": GREY},
    )
    if drawing.layout.yaxis.type == "log" and _spread(drawing) < LEAST_DECADE:
        drawing.update_yaxes(type="linear")  # a logarithmic one would have no number on it
    axis = {"gridcolor": "rgba(138,146,154,0.25)", "zeroline": False, "automargin": True}
    drawing.update_xaxes(**axis)
    drawing.update_yaxes(**axis)
    for update, logarithmic in ((drawing.update_xaxes, {"type": "log"}), (drawing.update_yaxes, {"type": "log"})):
        # 0.1, 0.2, 0.5, 1, ...: in full, where plotly would write a first digit alone.
        update(tickformat="~g", dtick="D2", selector=logarithmic)
    if not literal:
        drawing.for_each_trace(_literal_trace)
    return drawing


def _spread(drawing: Any) -> float:
    """The largest positive value of a figure by the smallest."""
    values = [value for trace in drawing.data for value in trace.y or () if isinstance(value, int | float)]
    values = [value for value in values if value > 0]
    return max(values) / min(values) if values else math.inf


def literal(text: Any) -> Any:
    """A user's text as plotly shows it as it is: it would take `<b>` for markup. What is no text stays."""
    return escape(text, quote=False) if isinstance(text, str) else text


def _literal_trace(trace: Any) -> None:
    changed = {"name": literal(trace.name)} if trace.name else {}
    for axis in ("x", "y"):
        values = getattr(trace, axis, None)
        if values is not None and any(isinstance(value, str) for value in values):
            changed[axis] = [literal(value) for value in values]
    trace.update(**changed)
