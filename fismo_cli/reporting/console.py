"""The consoles for people. That nobody can read it any more never ends what is reported on."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Forgiving", "answer_console", "looking", "print_pairs", "print_rows", "say", "stderr_console"]

MIN_TEXT = 20
"""Columns of a text beside its name, however narrow the terminal is."""


def stderr_console(*, quiet: bool = False) -> Console:
    """A console on what `sys.stderr` is now; a quiet one shows nothing."""
    # Only writing and asking about it is ever done to the stream.
    stream: Any = Forgiving(sys.stderr)
    return _plain_console(stream, quiet=quiet)


def answer_console(*, as_json: bool, quiet: bool = False) -> Console:
    """A console for a command's answer: on stdout, or on stderr where stdout is for JSON alone, or then nowhere.

    Where that is no terminal, lines are as long as they have to be.
    """
    stream = sys.stderr if as_json else sys.stdout
    return _plain_console(stream, width=None if stream.isatty() else 10_000, quiet=quiet and as_json)


def _plain_console(stream: Any, width: int | None = None, *, quiet: bool = False) -> Console:
    """One on which text, also in tables, is shown as it is: a path or a name in it may look like rich's markup."""
    return _PlainConsole(file=stream, width=width, markup=False, emoji=False, highlight=False, quiet=quiet)


class _PlainConsole(Console):
    """That nobody reads the rest (`| head`) is no failure."""

    def on_broken_pipe(self) -> None:
        """Lead the rest to nowhere, where rich would leave with exit code 1."""
        self.quiet = True
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it is: on one line, however long, without markup or colours of rich's own."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def looking(console: Console, *, after: float = 3.0, every: float = 10.0) -> Callable[[int, int], None]:
    """What tells, where it takes long, how many images have been looked at before training.

    Args:
        console: where.
        after: seconds before the first line.
        every: seconds between lines.
    """
    due = time.monotonic() + after

    def show(done: int, total: int) -> None:
        nonlocal due
        if time.monotonic() >= due and done < total:
            due = time.monotonic() + every
            say(console, f"looked at {done:,} of {total:,} images")

    return show


def print_rows(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table: the first column to the left, the others to the right.

    Where the console is too narrow for it, each row is a block instead, with a line for each column.
    """
    widths = [max(cell_len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]
    if sum(widths) + 2 * (len(widths) - 1) > console.width:
        _print_blocks(console, headings, rows)
        return
    table = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def print_pairs(console: Console, rows: Mapping[str, str]) -> None:
    """Print names and texts in two columns; a long text goes on in its own column, and no word is cut."""
    longest = max(map(cell_len, rows), default=0)
    for name, text in rows.items():
        lines = wrap(text, max(MIN_TEXT, console.width - longest - 2), break_long_words=False, break_on_hyphens=False)
        for number, line in enumerate(lines or [""]):
            label = "" if number else name
            shown = Text.assemble((label, "bold"), " " * (longest + 2 - cell_len(label)), line)
            console.print(shown, soft_wrap=True)


def _print_blocks(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    longest = max(map(cell_len, headings[1:]), default=0)
    for row in rows:
        say(console, f"{headings[0]} {row[0]}".strip())
        for heading, cell in zip(headings[1:], row[1:], strict=True):
            if cell:
                say(console, f"  {heading}{' ' * (longest - cell_len(heading))}  {cell}")


class Forgiving:
    """A stream that falls silent for good once it cannot be written (a full disk, a terminal that is gone)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def write(self, text: str) -> int:
        """Write where that is still possible."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # the latter if it was closed
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush where that is still possible."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr if self._stream is None else self._stream, name)

    def _give_up(self) -> None:
        """Also lead what is buffered to nowhere: the interpreter's flush at exit would fail with its own exit code."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
            if stream is sys.stderr:
                os.dup2(nowhere.fileno(), stream.fileno())
