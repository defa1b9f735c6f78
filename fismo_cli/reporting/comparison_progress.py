"""How far a comparison is: a live table on a terminal, a line for each finished run elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.running import Status
from fismo_cli.reporting.console import say
from fismo_cli.reporting.live import left, live_progress
from fismo_cli.words import counted

__all__ = ["comparison_progress"]


@contextmanager
def comparison_progress(console: Console, plan: Plan, workers: int) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows a status."""
    each = counted(plan.environment["threads"], "CPU thread")
    say(console, f"comparison: {plan.directory} ({workers} at a time, {each} a run)")
    with live_progress(console, _line, lambda status: _table(plan, status)) as show:
        yield show


def _line(status: Status) -> str | None:
    return None if status.finished is None else f"{status.done}/{status.total}  {status.finished}{_left(status)}"


def _left(status: Status) -> str:
    return left(status.total - status.done, status.fresh, status.seconds)


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
        total = "" if plan.environment.get("batch_grows") else f"/{plan.environment['total_steps']}"
        active = [
            f"{name.removeprefix(f'{contender.label}, ')} at step {step}{total}"
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
