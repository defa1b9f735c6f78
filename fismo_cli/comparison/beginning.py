"""Begins a comparison, or joins one: what was asked for is checked, tried out, and only then written.

What is refused writes nothing: arguments are checked first, a few steps of each contender are taken next.
"""

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from fismo_cli.campaigns.executor import Failure, dry_run_elsewhere
from fismo_cli.campaigns.judging import why_not_judged
from fismo_cli.campaigns.storage import check_same_storage, open_storage, quiet_optuna, shown_url, storage_errors
from fismo_cli.comparison.contenders import Contender, make_contenders
from fismo_cli.comparison.plan import TUNING_SEED_OFFSET, Plan, stored_plan, write_plan
from fismo_cli.comparison.power import LEVEL, seeds_needed, underpowered
from fismo_cli.comparison.target import Target, parse_target
from fismo_cli.environment import run_threads
from fismo_cli.errors import FismoError, UsageError
from fismo_cli.files import locked
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.preset.schema_base import MAX_SEED
from fismo_cli.preset.schema_tune import METRICS, TuneConfig
from fismo_cli.runs.directory import run_identity
from fismo_cli.runs.same_data import refuse_other_data
from fismo_cli.words import counted

__all__ = ["Asked", "ask", "begin"]

_ENVIRONMENT = "fismo:environment"
"""User attribute of the study that stands for the whole comparison in its storage."""

DEFAULT_SEEDS = 8
"""Paired runs of each optimizer; fewer than 7 decide nothing for two baselines."""

EVALUATIONS = 50
"""Evaluations a run at the least: every 2 % of the budget."""


@dataclass(frozen=True)
class Asked:
    """A comparison as it was asked for; nothing has been tried or written.

    Attributes:
        directory: where everything of it is, or will be: it goes by the candidate and what all have in common, so that
            runs of baselines that were compared before are used again, whatever else is compared now.
        contenders: the candidate first, then the baselines.
        seeds: of the runs that are judged.
        tune_trials: trials of a study of a contender; 0: none is tuned.
        studies: of each contender: one for each seed, or one for all.
        metric: of the validation part, by which all is judged.
        margin: share of a baseline's mean below which a difference does not matter.
        target: what was asked for.
        workers: runs side by side.
        threads: CPU threads of a run, unless the comparison was begun with another number.
    """

    directory: Path
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    tune_trials: int
    studies: int
    metric: str
    margin: float
    target: Target | None
    workers: int
    threads: int

    def warnings(self) -> list[str]:
        """What should be known before hours are spent."""
        seeds, baselines = len(self.seeds), len(self.contenders) - 1
        if not underpowered(seeds, baselines):
            return []
        few = f"{counted(seeds, 'seed')} and {counted(baselines, 'baseline')}"
        return [
            f"underpowered from the start: with {few} no difference can be certain ({baselines} x 2^(1-{seeds}) is "
            f"above {LEVEL:g}). --seeds {seeds_needed(baselines)} would do; runs that have finished are used then"
        ]


def ask(
    loaded: LoadedPreset,
    baselines: Sequence[str],
    *,
    root: Path,
    seeds: int | None,
    tune_trials: int,
    studies: int | None,
    target: str | None,
    margin: float,
    workers: int,
    metric: str = "loss",
    omp_threads: str | None = None,
) -> Asked:
    """Check what was asked for, without trying or writing anything.

    Without `seeds` there are as many as studies; without `studies` each seed has one, if anything is tuned.

    Raises:
        UsageError: with every problem of the arguments at once.
    """
    wanted = None if target is None else parse_target(target, loaded.preset.task)
    if seeds is None:
        seeds = studies if studies is not None and studies > 1 else DEFAULT_SEEDS
    problems = []
    if metric not in METRICS[loaded.preset.task]:
        known = ", ".join(METRICS[loaded.preset.task])
        problems.append(f"--metric {metric}: the metrics of {loaded.preset.task} are {known}")
    problems += _argument_problems(seeds=seeds, tune_trials=tune_trials, margin=margin, workers=workers)
    problems += _study_problems(seeds, tune_trials, studies)
    studies = 0 if tune_trials == 0 else seeds if studies is None else studies
    first = loaded.preset.train.seed
    problems += _seed_problems(first, max(1, seeds), studies)
    contenders, wrong = make_contenders(loaded, baselines)
    problems += wrong + why_not_judged(loaded.preset)
    if tune_trials > 0:
        problems += [message for contender in contenders for message in contender.tuning_problems()]
    if problems:
        raise UsageError.of(problems)
    chosen_by: list[Any] = [metric] if tune_trials > 0 and metric != "loss" else []
    if tune_trials > 0 and loaded.preset.tune.range != TuneConfig().range:
        chosen_by.append({"range": loaded.preset.tune.range})
    what = [run_identity(contenders[0].loaded.preset), tune_trials, "one study" if studies == 1 else "", *chosen_by]
    text = json.dumps(what)
    return Asked(
        directory=root / f"{loaded.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}",
        contenders=tuple(contenders),
        seeds=tuple(range(first, first + seeds)),
        tune_trials=tune_trials,
        studies=studies,
        metric=metric,
        margin=margin,
        target=wanted,
        workers=workers,
        threads=run_threads(loaded.preset.train.threads, omp_threads, workers),
    )


def begin(
    asked: Asked,
    *,
    url: str | None = None,
    tried: Callable[[str], None],
    notice: Callable[[str], None] = lambda text: None,
) -> tuple[Plan, BaseStorage]:
    """Begin a comparison, or join one: its plan, which is written, and the storage of its studies.

    Args:
        asked: for what.
        url: of a database that several hosts share; None: a journal file in the comparison's directory.
        tried: told, as a line of text, each contender with which a few steps were taken.
        notice: told of what in the journal could not be read.

    Raises:
        UsageError: if contenders do not run, the storage cannot be used, or nothing can be written. Nothing has been
            written then.
        FismoError: if the storage goes away.
    """
    quiet_optuna()
    stored = stored_plan(asked.directory)
    check_same_storage(asked.directory, stored, url, "another --comparisons-dir")
    storage = None if url is None else open_storage(url, asked.directory)
    with storage_errors(url, asked.directory):
        common = _common(storage, asked)
        # A new one gets a directory once all contenders have shown that they run.
        known = _with_tries(asked, {**stored, **({"environment": common} if common else {})}, tried)
        try:
            with locked(asked.directory / ".lock"):
                storage = open_storage(url, asked.directory, notice) if storage is None else storage
                known["environment"] = _agreed(storage, asked, known["environment"])
                name = asked.directory.name
                plan = Plan(
                    directory=asked.directory,
                    contenders=tuple(_fixed(each, known["environment"], name) for each in asked.contenders),
                    seeds=asked.seeds,
                    tune_trials=asked.tune_trials,
                    studies=asked.studies,
                    metric=asked.metric,
                    margin=asked.margin,
                    target=asked.target,
                    environment=known["environment"],
                    declarations=_declarations(asked, stored_plan(asked.directory).get("declarations", [])),
                    tried=tuple(sorted({*known["tried"], *stored_plan(asked.directory).get("tried", ())})),
                    name=name,
                    database=None if url is None else shown_url(url),
                )
                write_plan(plan)
        except OSError as error:
            raise UsageError(f"cannot write to {asked.directory}: {error.strerror}") from error
    return plan, storage


def _common(storage: BaseStorage | None, asked: Asked) -> dict[str, Any] | None:
    """What all runs have in common, as the first host has put it into the database; None if none has."""
    if storage is None or asked.directory.name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=asked.directory.name, storage=storage).user_attrs.get(_ENVIRONMENT)


def _agreed(storage: BaseStorage, asked: Asked, environment: dict[str, Any]) -> dict[str, Any]:
    """What all runs have in common: of hosts that begin at the same time, all go by what the last of them wrote."""
    study = optuna.create_study(study_name=asked.directory.name, storage=storage, load_if_exists=True)
    if _ENVIRONMENT not in study.user_attrs:
        study.set_user_attr(_ENVIRONMENT, environment)
    found: dict[str, Any] = study.user_attrs[_ENVIRONMENT]
    return found


def _argument_problems(*, seeds: int, tune_trials: int, margin: float, workers: int) -> list[str]:
    checks = (
        (
            seeds < 1,
            f"--seeds {seeds}: must be at least 1 (8 by default; fewer than 7 decide nothing for two baselines)",
        ),
        (tune_trials < 0, f"--tune-trials {tune_trials}: must be 0 (nothing is tuned) or more"),
        (not 0 < margin < 1, f"--margin {margin:g}: must be a share of the baseline's loss between 0 and 1, as 0.005"),
        (workers < 1, f"--workers {workers}: must be at least 1"),
    )
    return [message for wrong, message in checks if wrong]


def _study_problems(seeds: int, tune_trials: int, studies: int | None) -> list[str]:
    if studies is None:
        return []
    if tune_trials < 1:
        return [f"--studies {studies}: nothing is tuned; say by how many trials: --tune-trials 5"]
    if studies not in (1, seeds):
        return [
            f"--studies {studies}: must be the number of seeds, {seeds} (what a study finds is judged with a seed of "
            "its own), or 1 (what one study finds is judged with every seed)"
        ]
    return []


def _seed_problems(first: int, seeds: int, studies: int) -> list[str]:
    """Seeds that cannot be had: past the largest one, or for judging what they were used to choose."""
    if seeds > TUNING_SEED_OFFSET:
        return [f"--seeds {seeds}: must be at most {TUNING_SEED_OFFSET:,}"]
    last = first + (max(seeds, TUNING_SEED_OFFSET + studies) if studies > 0 else seeds) - 1
    if last <= MAX_SEED:
        return []
    which = "the seed of tuning" if studies > 0 else f"the last of {seeds} seeds"
    return [f"train.seed {first}: {which} would be {last}, and the largest there is is {MAX_SEED}"]


def _declarations(asked: Asked, before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Everything that was ever asked for, with this one where it differs from the last."""
    declared = {
        "baselines": {baseline.label: run_identity(baseline.loaded.preset) for baseline in _by_label(asked)},
        "seeds": len(asked.seeds),
        **({} if asked.metric == "loss" else {"metric": asked.metric}),
        "margin": asked.margin,
        "target": None if asked.target is None else asked.target.text,
        "workers": asked.workers,
    }
    if before and {key: before[-1].get(key) for key in declared} == declared:
        return [dict(entry) for entry in before]
    return [*map(dict, before), {**declared, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}]


def _by_label(asked: Asked) -> list[Contender]:
    return sorted(asked.contenders[1:], key=lambda contender: contender.label)


def _with_tries(asked: Asked, stored: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """What is stored of a comparison, with its contenders tried out of whom it does not say that they were.

    A few steps show what is wrong with one, and of the first how long all runs are. Where runs with more seeds are to
    come than ever before, the first is tried again: its data may have changed.

    Raises:
        DataError: if the comparison was begun with other data.
        UsageError: with whatever keeps contenders from running.
    """
    threads = stored["environment"]["threads"] if stored else asked.threads
    pinned = [_with_train(contender.loaded, threads=threads) for contender in asked.contenders]
    done = set(stored.get("tried", ()))
    seeds = [declared.get("seeds", 0) for declared in stored.get("declarations", ())]
    more = bool(seeds) and len(asked.seeds) > max(seeds)
    missing = [
        (contender, loaded)
        for contender, loaded in zip(asked.contenders, pinned, strict=True)
        if run_identity(loaded.preset) not in done or (more and contender is asked.contenders[0])
    ]
    results = _try(missing, asked.workers, tell)
    environment = stored.get("environment") or _environment(asked, results[0], threads)
    for result in results:
        refuse_other_data(asked.directory, environment.get("data"), result["data"])
    identities = {run_identity(loaded.preset) for loaded in pinned}
    return {**stored, "environment": environment, "tried": sorted(done | identities)}


def _try(
    contenders: Sequence[tuple[Contender, LoadedPreset]], workers: int, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A few steps of each, as many side by side as runs will be."""
    leaving = threading.Event()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        running = {
            contender.label: pool.submit(
                dry_run_elsewhere, loaded, Path(folder) / f"{contender.folder}.yaml", leave=leaving.is_set
            )
            for contender, loaded in contenders
        }
        results: list[dict[str, Any]] = []
        problems: dict[str, list[str]] = {}
        accident = False
        try:
            for count, (label, future) in enumerate(running.items(), start=1):
                result = future.result()
                if isinstance(result, Failure):
                    problems.setdefault(result.message, []).append(label)
                    accident |= result.by_accident
                else:
                    results.append(result)
                tell(f"tried {count}/{len(running)}: {label}{' failed' if isinstance(result, Failure) else ''}")
        except BaseException:  # a signal
            leaving.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if problems:
        lines = (
            message if len(labels) == len(contenders) > 1 else f"{', '.join(labels)}: {message}"
            for message, labels in problems.items()
        )
        problem = "\n       ".join(lines)
        raise FismoError(f"a try of a few steps: {problem}") if accident else UsageError(problem)
    return results


def _environment(asked: Asked, result: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What all runs have in common, from a few steps of the candidate's."""
    if result["validation_samples"] is None:
        raise UsageError(
            "the data has no validation part, and a comparison is judged on one: see data.validation_fraction"
        )
    steps = int(result["total_steps"])
    every = max(1, steps // EVALUATIONS)
    own = asked.contenders[0].loaded.preset.evaluate.every
    kept = (
        *("device", "total_steps", "total_samples", "batch_grows"),
        *("parameters", "train_samples", "validation_samples", "data", "step_seconds"),
    )
    return {
        "threads": threads,
        "evaluate_every": every if own is None else min(every, own),
        **{key: result[key] for key in kept},
    }


def _fixed(contender: Contender, environment: Mapping[str, Any], comparison: str) -> Contender:
    loaded = _with_train(contender.loaded, threads=environment["threads"])
    every = loaded.preset.evaluate.model_copy(update={"every": environment["evaluate_every"]})
    kept = loaded.preset.checkpoint.model_copy(update={"keep": 1})
    logging = loaded.preset.logging.in_group(comparison)
    changed = {"evaluate": every, "checkpoint": kept, "logging": logging}
    return replace(contender, loaded=replace(loaded, preset=loaded.preset.model_copy(update=changed)))


def _with_train(loaded: LoadedPreset, **changes: Any) -> LoadedPreset:
    train = loaded.preset.train.model_copy(update=changes)
    return replace(loaded, preset=loaded.preset.model_copy(update={"train": train}))
