"""How far a comparison is: a live table on a terminal, a line for each finished run elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.running import Status
from fismo_cli.reporting.console import say
from fismo_cli.reporting.live import left, live_progress
from fismo_cli.words import counted, duration

__all__ = ["comparison_progress"]


@contextmanager
def comparison_progress(console: Console, plan: Plan, workers: int) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows a status."""
    each = counted(plan.environment["threads"], "CPU thread")
    say(console, f"comparison: {plan.directory} ({workers} at a time, {each} a run)")
    say(console, _amount(plan, workers))
    with live_progress(console, _line, lambda status: _table(plan, status)) as show:
        yield show


def _amount(plan: Plan, workers: int) -> str:
    """How many runs there are, and about how long they take."""
    seconds = plan.environment.get("step_seconds")
    own = (
        [f"{counted(plan.studies, 'study', 'studies')} of {counted(plan.tune_trials, 'trial')}"] if plan.studies else []
    )
    parts = " and ".join([*own, f"{counted(len(plan.seeds), 'judged run')}"])
    runs = f"{counted(plan.total_runs, 'run')}: {parts} for each of {len(plan.contenders)} optimizers"
    if seconds is None or plan.environment.get("batch_grows"):
        return runs
    whole = plan.total_runs * plan.environment["total_steps"] * seconds / workers
    return f"{runs}; about {duration(whole)} of training, going by the first steps of {plan.candidate.label}"


def _line(status: Status) -> str | None:
    return None if status.finished is None else f"{status.done}/{status.total}  {status.finished}{_left(status)}"


def _left(status: Status) -> str:
    return left(status.total - status.done, status.fresh, status.seconds)


def _table(plan: Plan, status: Status) -> Table:
    table = Table(box=None, pad_edge=False, caption=f"{status.done} of {status.total} runs{_left(status)}")
    table.add_column("optimizer")
    if plan.studies:
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
        trials = sum(status.tuning[contender.label, study] for study in range(plan.studies))
        table.add_row(
            contender.label,
            *([f"{trials}/{plan.studies * plan.tune_trials}"] if plan.studies else []),
            f"{len(records)}/{len(plan.seeds)}",
            f"{mean} ({diverged} diverged)" if diverged else mean,
            ", ".join(active),
        )
    return table
