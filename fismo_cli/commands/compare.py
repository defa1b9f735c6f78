"""`fismo compare`: which optimizer is better, by how much, with what certainty, at what cost."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fismo_cli.commands.options import Quiet, Storage
from fismo_cli.commands.output import print_json
from fismo_cli.errors import ExitCode, UsageError
from fismo_cli.preset.arguments import load_all
from fismo_cli.preset.locate import DEFAULT_PRESET

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from rich.console import Console

    from fismo_cli.comparison.beginning import Asked
    from fismo_cli.comparison.plan import Plan
    from fismo_cli.comparison.summary import ComparisonSummary, TasksSummary

__all__ = ["app", "spread_out"]


def spread_out(arguments: Sequence[str], option: str = "--baselines") -> list[str]:
    """Repeat an option before each of its values: `--baselines a b` and `--baselines a,b` become `--baselines a
    --baselines b`. Its values end at the next option or `KEY=VALUE`.
    """
    result: list[str] = []
    taking = False
    for argument in arguments:
        if argument == option or argument.startswith(f"{option}="):
            taking = True
            values = argument.partition("=")[2]
        elif argument.startswith("-") or "=" in argument:
            taking, values = False, ""
            result.append(argument)
            continue
        else:
            values = argument
            if not taking:
                result.append(argument)
                continue
        result += [part for name in values.split(",") if name for part in (option, name)]
    return result


class _SeveralBaselines(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return list(super().parse_args(ctx, spread_out(args)))


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("compare", cls=_SeveralBaselines)
def compare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PRESET...] [KEY=VALUE...]",
            help=f"Preset files, or names of shipped ones ({DEFAULT_PRESET}): a task each. Then overrides for all of "
            "them, such as train.epochs=5.",
        ),
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option("--baselines", metavar="NAME...", help="Optimizers, or labels under `compare` in the preset."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Paired runs of each optimizer: 8 if not given.")] = None,
    tune_trials: Annotated[int, typer.Option(help="Trials of a tuning study; 0: nothing is tuned.")] = 0,
    studies: Annotated[
        int | None,
        typer.Option(help="Tuning studies of each optimizer: one for each seed, or 1 for all of them."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Of the validation part, by which optimizers are tuned and judged, such as top1.")
    ] = "loss",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="[METRIC=]NUMBER",
            help="Steps and seconds to it are compared; else to the best baseline's median final value.",
        ),
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Share of the baseline's result below which a difference does not matter.")
    ] = 0.005,
    workers: Annotated[int, typer.Option(help="Runs side by side; more than 1 makes seconds uncertain.")] = 1,
    storage: Storage = None,
    directory: Annotated[
        Path, typer.Option("--comparisons-dir", metavar="DIR", help="Where comparisons are kept.", file_okay=False)
    ] = Path("comparisons"),
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    omp_threads: Annotated[str | None, typer.Option(hidden=True, envvar="OMP_NUM_THREADS")] = None,
) -> None:
    """Find out which optimizer is better, and by how much.

    Paired seeds, equal tuning, exact tests, time to a target. Several presets: a verdict on each, and over all of them.

    The same command again goes on, also on other hosts that share the storage.
    """
    presets, by_default = load_all(arguments or ())
    from fismo_cli.comparison.beginning import ask
    from fismo_cli.reporting.console import answer_console, say, stderr_console

    console, answer = stderr_console(quiet=quiet), answer_console(as_json=as_json, quiet=quiet)
    checked = partial(
        ask,
        baselines=baselines or (),
        root=directory,
        seeds=seeds,
        tune_trials=tune_trials,
        studies=studies,
        metric=metric,
        target=target,
        margin=margin,
        workers=workers,
        omp_threads=omp_threads,
    )
    asked, problems = [], []
    for loaded in presets:
        try:
            asked.append(checked(loaded))
        except UsageError as error:
            problems.append(str(error) if len(presets) == 1 else f"{loaded.name}: {error}")
    if problems:
        raise UsageError.of(problems)
    begun = []
    for loaded, each in zip(presets, asked, strict=True):
        say(console, f"preparing {loaded.name}{' (the default preset)' if by_default else ''} ...")
        for note in (*loaded.notes, *each.warnings()):
            say(console, f"note: {note}")
        begun.append(_begin(console, each, storage))
    summaries = [_carry_out(console, answer, *each, workers=workers, storage=storage) for each in begun]
    summary: ComparisonSummary | TasksSummary = summaries[0]
    if len(summaries) > 1:
        from fismo_cli.reporting.tasks_report import print_tasks, write_tasks

        together = summary = write_tasks(summaries, directory)
        print_tasks(answer, together)
    if as_json:
        print_json(summary)
    if target is not None and any(each["target_missed"] for each in summaries):
        raise typer.Exit(ExitCode.TARGET_MISSED)


def _begin(console: "Console", asked: "Asked", storage: str | None) -> tuple["Plan", "BaseStorage"]:
    from fismo_cli.comparison.beginning import begin
    from fismo_cli.reporting.console import say

    plan, kept = begin(
        asked,
        url=storage,
        tried=lambda line: say(console, line),
        notice=lambda text: say(console, f"note: {text}"),
    )
    threads = plan.environment["threads"]
    if threads != asked.threads:
        say(
            console,
            f"note: this comparison was begun with {threads} CPU threads a run and goes on so; train.threads="
            f"{asked.threads} begins another one",
        )
    if "data" not in plan.environment:
        earlier = "an earlier version of fismo began it, so whether the data is the same is not checked"
        say(console, f"note: {plan.directory}: {earlier}")
    return plan, kept


def _carry_out(
    console: "Console", answer: "Console", plan: "Plan", kept: "BaseStorage", *, workers: int, storage: str | None
) -> "ComparisonSummary":
    from fismo_cli.campaigns.pool import carry_out
    from fismo_cli.campaigns.storage import storage_errors
    from fismo_cli.comparison.studies import open_studies, site_of
    from fismo_cli.reporting.comparison_progress import comparison_progress
    from fismo_cli.reporting.comparison_report import write_report
    from fismo_cli.reporting.comparison_tables import print_comparison

    with storage_errors(storage, plan.directory):
        opened = open_studies(plan, kept)
    with comparison_progress(console, opened, workers) as tell:
        carry_out(site_of(plan, storage), opened.stages(), workers=workers, tell=tell)
    with storage_errors(storage, plan.directory):
        summary = write_report(plan, opened.results())
    print_comparison(answer, summary)
    return summary
