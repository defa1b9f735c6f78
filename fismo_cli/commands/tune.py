"""`fismo tune`: good settings for a model and its data, found by Optuna, here or on several hosts."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.options import Overrides, Quiet, Storage, refuse, shipped_names
from fismo_cli.commands.output import print_json
from fismo_cli.preset.arguments import load_arguments
from fismo_cli.preset.locate import DEFAULT_PRESET

__all__ = ["tune"]

LONGEST_NAME = 200
"""Bytes of a study's name: those of a folder's, 255 as a rule, with room for more."""


def tune(
    preset: Annotated[
        str | None,
        typer.Argument(
            metavar="PRESET",
            help=f"A preset file, or the name of a shipped one ({DEFAULT_PRESET}).",
            autocompletion=shipped_names,
        ),
    ] = None,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(help="Trials that the study has in the end, earlier ones included.")] = 50,
    workers: Annotated[
        int | None,
        typer.Option(help="Trials side by side on this host; by default one a GPU, or up to 4, by cores, on a CPU."),
    ] = None,
    storage: Storage = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the study; by default made of the preset and its space.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="tpe, gp or random.")] = "tpe",
    pruner: Annotated[
        str, typer.Option(help="none; median (from half of the budget on) or halving (earlier, at a risk).")
    ] = "none",
    nproc: Annotated[int, typer.Option(metavar="N", help="Processes that train each run together, by torchrun.")] = 1,
    repeats: Annotated[int, typer.Option(help="Runs of a trial, on seeds of their own; their mean counts.")] = 1,
    max_step_seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Trials with a slower training step are not eligible.")
    ] = None,
    max_memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Trials that take more memory are not eligible.")
    ] = None,
    directory: Annotated[
        Path, typer.Option("--studies-dir", metavar="DIR", help="Where studies are kept.", file_okay=False)
    ] = Path("studies"),
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
    omp_threads: Annotated[str | None, typer.Option(hidden=True, envvar="OMP_NUM_THREADS")] = None,
) -> None:
    """Search good settings for a preset.

    Damping, trust radius, momentum, batch size; more by tune.space in the preset.

    The same command again goes on, also on other hosts that share the storage.
    """
    loaded, by_default = load_arguments(preset, overrides or ())
    from fismo_cli.campaigns.judging import Judging
    from fismo_cli.preset.schema_base import MAX_SEED
    from fismo_cli.preset.search_checks import space_notes
    from fismo_cli.tuning.plan import PRUNERS, SAMPLERS

    last_seed = loaded.preset.train.seed + repeats - 1
    refuse(
        (trials < 1, f"--trials {trials}: must be at least 1"),
        (workers is not None and workers < 1, f"--workers {workers}: must be at least 1"),
        (nproc < 1, f"--nproc {nproc}: must be at least 1"),
        (repeats < 1, f"--repeats {repeats}: must be at least 1"),
        (
            last_seed > MAX_SEED,
            f"train.seed {loaded.preset.train.seed}: the last of {repeats} seeds would be {last_seed}, and the largest "
            f"there is is {MAX_SEED}",
        ),
        (sampler not in SAMPLERS, f"--sampler {sampler}: must be one of {', '.join(SAMPLERS)}"),
        (pruner not in PRUNERS, f"--pruner {pruner}: must be one of {', '.join(PRUNERS)}"),
        (
            max_step_seconds is not None and max_step_seconds <= 0,
            f"--max-step-seconds {max_step_seconds}: must be positive",
        ),
        (max_memory is not None and max_memory <= 0, f"--max-memory {max_memory}: must be positive"),
        (
            study is not None and not _fit_for_a_folder(study),
            f"--study {study}: must be fit for a folder's name: one line of at most {LONGEST_NAME} bytes, without /",
        ),
    )
    with contextlib.suppress(OSError, ValueError):
        chosen = " (the default preset)" if by_default else ""
        if not quiet:
            print(f"preparing {loaded.name}{chosen} ...", file=sys.stderr, flush=True)
    from fismo_cli.campaigns.pool import carry_out
    from fismo_cli.campaigns.storage import storage_errors
    from fismo_cli.reporting.console import answer_console, say, stderr_console
    from fismo_cli.reporting.tuning_progress import tuning_progress
    from fismo_cli.reporting.tuning_report import print_study, write_study
    from fismo_cli.tuning.analysis import summarise_study
    from fismo_cli.tuning.plan import default_workers
    from fismo_cli.tuning.studies import open_study, site_of, source_of

    console = stderr_console(quiet=quiet)
    judging = Judging(loaded.preset.tune.metric, repeats, pruner, max_step_seconds, max_memory, nproc)
    plan, optuna_study = open_study(
        loaded,
        judging,
        name=study,
        root=directory,
        url=storage,
        sampler=sampler,
        trials=trials,
        workers=workers,
        omp_threads=omp_threads,
        notice=lambda text: say(console, f"note: {text}"),
    )
    side_by_side = workers or default_workers(plan.environment.device, nproc)
    begun = (
        f"study {plan.name}: {side_by_side} at a time, {plan.environment.threads} threads a process, in "
        f"{plan.directory}"
    )
    for line in (*(f"note: {note}" for note in (*loaded.notes, *space_notes(loaded.preset))), begun):
        say(console, line)
    with tuning_progress(console, plan) as tell:
        carry_out(site_of(plan), [[source_of(plan, optuna_study, trials)]], workers=side_by_side, tell=tell)
    with storage_errors(plan.url, plan.directory):
        summary = write_study(plan, summarise_study(plan, optuna_study))
    print_study(answer_console(as_json=as_json, quiet=quiet), summary)
    if as_json:
        print_json(summary)


def _fit_for_a_folder(name: str) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        fits = 0 < len(name.encode()) <= LONGEST_NAME
        return fits and name.isprintable() and "/" not in name and name.strip() not in ("", ".", "..")
    return False
