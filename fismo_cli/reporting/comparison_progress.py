"""How far a comparison is: a live table on a terminal, a line for each finished run elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from fismo_cli.campaigns.jobs import Status
from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.studies import Studies
from fismo_cli.metrics import called
from fismo_cli.reporting.console import say
from fismo_cli.reporting.live import left, live_progress
from fismo_cli.words import counted, duration

__all__ = ["comparison_progress"]


@contextmanager
def comparison_progress(console: Console, studies: Studies, workers: int) -> Iterator[Callable[[Status], None]]:
    """Give a function that shows a status."""
    plan = studies.plan
    each = counted(plan.environment["threads"], "CPU thread")
    say(console, f"comparison: {plan.directory} ({workers} at a time, {each} a run)")
    say(console, _amount(plan, workers))
    with live_progress(console, _line, lambda status: _table(studies, status)) as show:
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
    return None if status.finished is None else f"{status.done}/{status.trials}  {status.finished}{_left(status)}"


def _left(status: Status) -> str:
    return left(status.trials - status.done, status.fresh, status.seconds)


def _table(studies: Studies, status: Status) -> Table:
    plan, labels = studies.plan, studies.labels()
    elsewhere = f", {status.elsewhere} elsewhere" if status.elsewhere else ""
    caption = f"{status.done} of {status.trials} runs{elsewhere}{_left(status)}"
    table = Table(box=None, pad_edge=False, caption=caption)
    table.add_column("optimizer")
    if plan.studies:
        table.add_column("tuning", justify="right")
    table.add_column("runs", justify="right")
    table.add_column(f"mean validation {called(plan.metric)}", justify="right")
    table.add_column("running")
    for contender in plan.contenders:
        label = contender.label
        tuning = [status.ledgers[study.study_name] for (own, _), study in studies.tuning.items() if own == label]
        judging = [status.ledgers[study.study_name] for (own, _), study in studies.judging.items() if own == label]
        ended = [trial for ledger in judging for trial in ledger.counted[:1]]
        done = [trial.value for trial in ended if trial.value is not None]
        diverged = len(ended) - len(done)
        mean = f"{sum(done) / len(done):.4f}" if done else ""
        active = [
            f"{job.title.removeprefix(f'{label}, ').removeprefix(f'tuning {label}, ')} at step {job.step}/{job.total}"
            for job in status.active
            if labels[job.source.study.study_name] == label
        ]
        trials = sum(len(ledger.counted) for ledger in tuning)
        table.add_row(
            label,
            *([f"{trials}/{plan.studies * plan.tune_trials}"] if plan.studies else []),
            f"{len(ended)}/{len(plan.seeds)}",
            f"{mean} ({diverged} diverged)" if diverged else mean,
            ", ".join(active),
        )
    return table
