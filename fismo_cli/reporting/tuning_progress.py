"""How far a study is: a live table on a terminal, a line for each trial that ended elsewhere."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from fismo_cli.campaigns.jobs import Status
from fismo_cli.campaigns.ledger import best_of
from fismo_cli.reporting.live import left, live_progress
from fismo_cli.tuning.plan import StudyPlan
from fismo_cli.tuning.search_space import short_name, short_value

__all__ = ["tuning_progress"]


def tuning_progress(console: Console, plan: StudyPlan) -> AbstractContextManager[Callable[[Status], None]]:
    """Give a function that shows a status."""
    return live_progress(console, _line, lambda status: _table(plan, status))


def _line(status: Status) -> str | None:
    done = f"{status.done}/{status.trials}"
    return None if status.finished is None else f"{done}  {status.finished}{_left(status)}"


def _left(status: Status) -> str:
    return left(status.trials - status.done, status.fresh, status.seconds)


def _table(plan: StudyPlan, status: Status) -> Table:
    (ledger,), metric = status.ledgers.values(), plan.judging.metric
    states = {"done": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}
    counts = ", ".join(f"{len(ledger.of(state))} {name}" for name, state in states.items() if ledger.of(state))
    elsewhere = f", {status.elsewhere} elsewhere" if status.elsewhere else ""
    caption = f"{len(ledger.counted)} of {status.trials} trials ({counts or 'none yet'}{elsewhere}){_left(status)}"
    table = Table(box=None, pad_edge=False, caption=caption)
    table.add_column("trial")
    table.add_column(metric, justify="right")
    for name in plan.space:
        table.add_column(short_name(name), justify="right")
    best = best_of(ledger.counted, higher_is_better=plan.judging.higher_is_better)
    if best is not None:
        settings = [short_value(best.params[name]) for name in plan.space]
        table.add_row(f"best: {best.number}", f"{best.value:.4f}", *settings)
    for active in status.active:
        settings = [short_value(active.settings[name]) for name in plan.space]
        table.add_row(active.title, f"{active.step}/{active.total}", *settings)
    return table
