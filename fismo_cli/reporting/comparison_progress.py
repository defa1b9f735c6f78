"""How far a comparison is: a live table on a terminal, a line for each finished run elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.running import Status

__all__ = ["comparison_progress"]


@contextmanager
def comparison_progress(console: Console, plan: Plan) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows a status."""
    console.print(f"comparison: {plan.directory}", markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield lambda status: _print_line(console, status)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(status: Status) -> None:
            _print_line(live.console, status)
            live.update(_table(plan, status))

        yield show


def _print_line(console: Console, status: Status) -> None:
    if status.finished is not None:
        text = f"{status.done}/{status.total}  {status.finished}{_left(status)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _left(status: Status) -> str:
    if status.fresh == 0 or status.done >= status.total:
        return ""
    seconds = status.seconds / status.fresh * (status.total - status.done)
    return f"  (about {time.strftime('%H:%M:%S', time.gmtime(seconds))} left)"


def _table(plan: Plan, status: Status) -> Table:
    table = Table(box=None, pad_edge=False, caption=f"{status.done} of {status.total} runs{_left(status)}")
    table.add_column("optimizer")
    if plan.tune_trials:
        table.add_column("tuning", justify="right")
    table.add_column("runs", justify="right")
    table.add_column("mean validation loss", justify="right")
    table.add_column("running")
    for contender in plan.contenders:
        records = [record for (label, _), record in status.runs.items() if label == contender.label]
        done = [record.loss for record in records if not record.diverged]
        diverged = len(records) - len(done)
        mean = f"{sum(done) / len(done):.4f}" if done else ""
        active = [
            f"{name.removeprefix(f'{contender.label}, ')} at step {step}/{plan.environment['total_steps']}"
            for name, step in status.active
            if name.startswith((f"{contender.label}, ", f"tuning {contender.label}, "))
        ]
        table.add_row(
            contender.label,
            *([f"{status.tuning[contender.label]}/{plan.tune_trials}"] if plan.tune_trials else []),
            f"{len(records)}/{len(plan.seeds)}",
            f"{mean} ({diverged} diverged)" if diverged else mean,
            ", ".join(active),
        )
    return table
