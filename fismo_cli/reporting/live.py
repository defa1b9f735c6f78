"""What the progress of comparisons and studies has in common: a live table on a terminal, lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fismo_cli.reporting.console import say

__all__ = ["left", "live_progress"]

Status = TypeVar("Status")


@contextmanager
def live_progress(
    console: Console, line: Callable[[Status], str | None], table: Callable[[Status], Table]
) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows a status.

    Args:
        console: where.
        line: what has just finished, as a line that stays; None if nothing has.
        table: how far everything is, shown on a terminal until the next status.
    """

    def say_line(where: Console, status: Status) -> None:
        text = line(status)
        if text is not None:
            say(where, text)

    if not console.is_terminal:
        yield lambda status: say_line(console, status)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(status: Status) -> None:
            say_line(live.console, status)
            live.update(table(status))

        yield show


def left(missing: int, fresh: int, seconds: float) -> str:
    """About how long what is missing takes, going by what was done since the beginning; nothing if that is unknown."""
    if fresh == 0 or missing <= 0:
        return ""
    return f"  (about {time.strftime('%H:%M:%S', time.gmtime(seconds / fresh * missing))} left)"
