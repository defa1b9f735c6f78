"""What a comparison consists of, fixed before anything runs: contenders, seeds, budgets, target, margin, directory.

Everything but the optimizer is the same for all contenders (points 1 to 4 of the protocol). Never imports torch.
"""

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fismo_cli.comparison.contenders import Contender, make_contenders
from fismo_cli.comparison.target import Target, parse_target
from fismo_cli.environment import run_threads
from fismo_cli.errors import UsageError
from fismo_cli.files import whole_file
from fismo_cli.preset.loading import LoadedPreset, load_preset, resolved_yaml
from fismo_cli.runs.directory import write_json
from fismo_cli.runs.executor import Failure, dry_run_elsewhere

__all__ = ["Plan", "make_plan", "read_plan"]

TUNING_SEED_OFFSET = 10_000
"""Tuning runs have the preset's seed plus this one: no seed is used for both choosing and judging."""

EVALUATIONS = 50
"""Evaluations a run at the least: every 2 % of the budget."""


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Attributes:
        directory: where everything of it is.
        contenders: the candidate first, then the baselines.
        seeds: of the runs that are judged.
        tune_trials: trials for each contender; 0: none is tuned.
        margin: share of a baseline's mean loss below which a difference does not matter.
        target: what was asked for; None: the median final loss of the best baseline.
        environment: threads, device, steps and how often is evaluated, the same in every run.
        declarations: every margin, target, number of seeds and of workers it was ever asked for with.
    """

    directory: Path
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    tune_trials: int
    margin: float
    target: Target | None
    environment: dict[str, Any]
    declarations: list[dict[str, Any]]

    @property
    def candidate(self) -> Contender:
        """Whose superiority is in question."""
        return self.contenders[0]

    @property
    def baselines(self) -> tuple[Contender, ...]:
        """Whom it is compared with."""
        return self.contenders[1:]

    @property
    def shared_cores(self) -> bool:
        """Whether runs were at any time made side by side, so that their seconds are not those of a run alone."""
        return any(declared["workers"] > 1 for declared in self.declarations)

    @property
    def tuning_seed(self) -> int:
        """Seed of all tuning runs."""
        return self.candidate.loaded.preset.train.seed + TUNING_SEED_OFFSET

    def order(self) -> list[tuple[Contender, int]]:
        """All runs that are judged, in an order that is random but the same every time."""
        runs = [(contender, seed) for seed in self.seeds for contender in self.contenders]
        random.Random(self.directory.name).shuffle(runs)
        return runs

    def tuning_dir(self, contender: Contender) -> Path:
        """Under which the tuning runs of a contender are."""
        return self.directory / "tuning" / contender.folder

    def runs_dir(self, contender: Contender) -> Path:
        """Under which the judged runs of a contender are."""
        return self.directory / "runs" / contender.folder


def make_plan(
    loaded: LoadedPreset,
    baselines: Sequence[str],
    *,
    root: Path,
    seeds: int,
    tune_trials: int,
    target: str | None,
    margin: float,
    workers: int,
    omp_threads: str | None = None,
) -> Plan:
    """Fix a comparison, or find the one that was begun; tries a few steps of each contender before a new one begins.

    Raises:
        UsageError: with every problem of the arguments, or of the contenders, at once. Nothing has been written then.
    """
    wanted = None if target is None else parse_target(target, loaded.preset.task)
    problems = _argument_problems(seeds=seeds, tune_trials=tune_trials, margin=margin, workers=workers)
    contenders, wrong = make_contenders(loaded, baselines)
    problems += wrong
    if tune_trials > 0:
        problems += [message for contender in contenders for message in contender.tuning_problems()]
    if problems:
        raise UsageError("\n       ".join(problems))
    directory = root / f"{loaded.name}-{_identity(contenders, tune_trials)}"
    stored = _stored(directory)
    environment = stored.get("environment") or _try(contenders, workers, omp_threads)
    declared = {"seeds": seeds, "margin": margin, "target": target, "workers": workers}
    declarations = stored.get("declarations", [])
    if not declarations or {key: declarations[-1].get(key) for key in declared} != declared:
        declarations = [*declarations, {**declared, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}]
    first = loaded.preset.train.seed
    plan = Plan(
        directory=directory,
        contenders=tuple(_fixed(contender, environment) for contender in contenders),
        seeds=tuple(range(first, first + seeds)),
        tune_trials=tune_trials,
        margin=margin,
        target=wanted,
        environment=environment,
        declarations=declarations,
    )
    _write(plan)
    return plan


def read_plan(directory: Path) -> Plan:
    """The plan that a comparison's directory holds.

    Raises:
        UsageError: if it is none.
    """
    stored = _stored(directory)
    try:
        task = str(stored["task"])
        return Plan(
            directory=directory,
            contenders=tuple(
                Contender(label, load_preset(str(directory / "presets" / f"{label.replace('/', '-')}.yaml")))
                for label in stored["contenders"]
            ),
            seeds=tuple(stored["seeds"]),
            tune_trials=stored["tune_trials"],
            margin=stored["margin"],
            target=None if stored["target"] is None else parse_target(stored["target"], task),
            environment=stored["environment"],
            declarations=stored["declarations"],
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{directory}: not a comparison's directory (it has no plan.json of this version)") from error


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


def _identity(contenders: Sequence[Contender], tune_trials: int) -> str:
    content = [[contender.label, contender.loaded.preset.model_dump(mode="json")] for contender in contenders]
    text = json.dumps([content, tune_trials], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _try(contenders: Sequence[Contender], workers: int, omp_threads: str | None) -> dict[str, Any]:
    """A few steps of each contender: what is wrong shows now, and how long a run is becomes known."""
    threads = run_threads(contenders[0].loaded.preset.train.threads, omp_threads, workers)
    problems, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        for contender in contenders:
            pinned = _with_train(contender.loaded, threads=threads)
            result = dry_run_elsewhere(pinned, Path(folder) / f"{contender.folder}.yaml")
            if isinstance(result, Failure):
                problems.append(f"{contender.label}: {result.message}")
            else:
                results.append(result)
    if problems:
        raise UsageError("\n       ".join(dict.fromkeys(problems)))
    if results[0]["validation_samples"] is None:
        raise UsageError(
            "the data has no validation part, and a comparison is judged on one: see data.validation_fraction"
        )
    steps = int(results[0]["total_steps"])
    every = max(1, steps // EVALUATIONS)
    asked = contenders[0].loaded.preset.evaluate.every
    return {
        "threads": threads,
        "device": results[0]["device"],
        "total_steps": steps,
        "total_samples": results[0]["total_samples"],
        "batch_grows": results[0]["batch_grows"],
        "evaluate_every": every if asked is None else min(every, asked),
        "parameters": results[0]["parameters"],
        "train_samples": results[0]["train_samples"],
        "validation_samples": results[0]["validation_samples"],
    }


def _fixed(contender: Contender, environment: Mapping[str, Any]) -> Contender:
    loaded = _with_train(contender.loaded, threads=environment["threads"])
    every = loaded.preset.evaluate.model_copy(update={"every": environment["evaluate_every"]})
    kept = loaded.preset.checkpoint.model_copy(update={"keep": 1})
    return replace(
        contender,
        loaded=replace(loaded, preset=loaded.preset.model_copy(update={"evaluate": every, "checkpoint": kept})),
    )


def _with_train(loaded: LoadedPreset, **changes: Any) -> LoadedPreset:
    train = loaded.preset.train.model_copy(update=changes)
    return replace(loaded, preset=loaded.preset.model_copy(update={"train": train}))


def _stored(directory: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = json.loads((directory / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored


def _write(plan: Plan) -> None:
    try:
        for contender in plan.contenders:
            with whole_file(plan.directory / "presets" / f"{contender.folder}.yaml") as file:
                file.write_text(resolved_yaml(contender.loaded), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {plan.directory}: {error.strerror}") from error
    write_json(
        plan.directory / "plan.json",
        {
            "task": plan.candidate.loaded.preset.task,
            "contenders": [contender.label for contender in plan.contenders],
            "seeds": plan.seeds,
            "tune_trials": plan.tune_trials,
            "margin": plan.margin,
            "target": None if plan.target is None else f"{plan.target.metric}={plan.target.value!r}",
            "environment": plan.environment,
            "declarations": plan.declarations,
        },
    )
