"""Tables and `report.html` of one training run, or of several side by side, from their files alone."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from fismo_cli.errors import UsageError
from fismo_cli.files import whole_file
from fismo_cli.reporting.class_report import class_sections
from fismo_cli.reporting.console import print_pairs, print_rows, say
from fismo_cli.reporting.page import document, figure, pairs, table
from fismo_cli.reporting.picture import write_png
from fismo_cli.reporting.run_figures import run_figures
from fismo_cli.reporting.tables import summary_rows
from fismo_cli.runs.record import RunRecord, read_run
from fismo_cli.runs.results_csv import write_results

__all__ = ["print_runs", "write_run_report"]


def write_run_report(directories: Sequence[Path], picture: Path | None = None) -> tuple[dict[str, RunRecord], Path]:
    """Write the page of runs and return what was read of them, by label, and where the page is.

    That of one run is `report.html` in its directory; that of several is `side-by-side.html` in the first one's.

    Args:
        directories: of the runs.
        picture: a PNG file for the main figures, too.

    Raises:
        UsageError: if there is nothing for the picture yet.
        FismoError: if it cannot be drawn or written; then there is no page either.
    """
    runs = dict(zip(_labels(directories), map(read_run, directories), strict=True))
    if picture is not None:
        _write_picture(picture, runs)
    for run in runs.values():
        write_results(run)
    page = directories[0] / ("report.html" if len(runs) == 1 else "side-by-side.html")
    with whole_file(page) as file:
        file.write_text(_page(runs), encoding="utf-8")
    return runs, page


def print_runs(console: Console, runs: Mapping[str, RunRecord], page: Path) -> None:
    """What the runs were and what came out of them: in two columns, or in a column a run."""
    headings, rows = _rows(runs)
    if len(runs) == 1:
        print_pairs(console, {name: value for name, value, *_ in rows})
    else:
        print_rows(console, headings, rows)
    say(console, f"report: {page}")


def _write_picture(path: Path, runs: Mapping[str, RunRecord]) -> None:
    figures = {name.replace("-", " "): drawing for name, (drawing, _) in run_figures(runs).items()}
    if not figures:
        raise UsageError("--png: no step has been logged yet (train.log_every)")
    write_png(path, figures)


def _labels(directories: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [directory.absolute().parts for directory in dict.fromkeys(directories)]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts) and length < max(map(len, parts)):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _rows(runs: Mapping[str, RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each name of `summary_rows` that any of the runs has."""
    described: dict[str, dict[str, str]] = {}
    for label, run in runs.items():
        summary = run.summary
        what = f"{summary['preset']} with {summary['optimizer'] or '?'}, seed {summary['seed']}"
        place = {"run": str(run.path)} if len(runs) == 1 else {}
        described[label] = {**place, "what": what, **summary_rows(summary)}
    names = dict.fromkeys(name for rows in described.values() for name in rows)
    return ["", *described], [[name, *(rows.get(name, "") for rows in described.values())] for name in names]


def _page(runs: Mapping[str, RunRecord]) -> str:
    title = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    return document(f"fismo train: {title}", _body(title, runs))


def _body(title: str, runs: Mapping[str, RunRecord]) -> Iterator[str]:
    headings, rows = _rows(runs)
    yield f"<h1>{escape(title)}</h1>"
    cells = [[escape(cell) for cell in row] for row in rows]
    if len(runs) == 1:
        yield pairs([(name, text) for name, text in cells])
    else:
        yield table([escape(heading) for heading in headings], cells)
    figures: Mapping[str, tuple[Any, str]] = run_figures(runs)
    if not figures:
        yield '<p class="soft">No step has been logged yet (train.log_every).</p>'
    for name, (drawing, caption) in figures.items():
        yield figure(name, drawing, caption)
    yield from class_sections(runs)
    for label, run in runs.items():
        for file in ("preset.yaml", "environment.json"):
            if (run.path / file).is_file():
                text = (run.path / file).read_text(encoding="utf-8", errors="replace")
                of = "" if len(runs) == 1 else f" of {label}"
                yield f"<details><summary>{escape(file + of)}</summary><pre>{escape(text)}</pre></details>"
