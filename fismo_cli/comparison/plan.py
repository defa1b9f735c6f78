"""What a comparison consists of, fixed before anything runs: contenders, seeds, budgets, target, margin, directory.

Everything but the optimizer is the same for all contenders (points 1 to 4 of the protocol).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fismo_cli.comparison.contenders import Contender
from fismo_cli.comparison.target import Target, parse_target
from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.directory import read_json, write_json, write_preset

__all__ = ["PLAN_FILE", "TUNING_SEED_OFFSET", "Plan", "read_plan", "stored_plan", "write_plan"]

TUNING_SEED_OFFSET = 10_000
"""Tuning runs have the preset's seed plus this one or more: no seed is used for both choosing and judging."""


PLAN_FILE = "plan.json"
"""In a comparison's directory: all of its plan, and what its runs are held to."""


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    Attributes:
        directory: where everything of it is.
        contenders: the candidate first, then the baselines.
        seeds: of the runs that are judged.
        tune_trials: trials of a study of a contender; 0: none is tuned.
        studies: of each contender. As many as seeds: each seed judges what its own study found. 1: all judge the same.
        metric: of the validation part, by which trials are chosen and optimizers judged.
        margin: share of a baseline's mean below which a difference does not matter.
        target: what was asked for; None: the median final value of the best baseline.
        environment: threads, device, steps, how often is evaluated, the identity of the data: the same in every run.
        declarations: every set of baselines, margin, target, number of seeds and of workers it was ever asked for with.
        tried: identities of the presets with which a few steps were taken before any run.
        name: of the comparison, in its storage too: its directory's when it began.
        database: the one that has its studies, as it may be shown; None: a journal file in the directory.
    """

    directory: Path
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    tune_trials: int
    studies: int
    margin: float
    target: Target | None
    environment: dict[str, Any]
    declarations: list[dict[str, Any]]
    tried: tuple[str, ...] = ()
    name: str = ""
    database: str | None = None
    metric: str = "loss"

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
    def data(self) -> dict[str, Any] | None:
        """The identity of the data; None for a comparison that an earlier version began."""
        return self.environment.get("data")

    def tuning_seed(self, study: int) -> int:
        """Seed of the tuning runs of a study, and of its sampler: the same for every contender."""
        return self.candidate.loaded.preset.train.seed + TUNING_SEED_OFFSET + study

    def study_of(self, seed: int) -> int:
        """The study whose best settings are judged with a seed."""
        return self.seeds.index(seed) if self.studies > 1 else 0

    @property
    def total_runs(self) -> int:
        """Tuning trials and judged runs of all contenders."""
        return len(self.contenders) * (self.studies * self.tune_trials + len(self.seeds))

    def tuning_dir(self, contender: Contender, study: int) -> Path:
        """Under which the tuning runs of a study of a contender are."""
        folder = self.directory / "tuning" / contender.folder
        return folder / str(study) if self.studies > 1 else folder

    def runs_dir(self, contender: Contender) -> Path:
        """Under which the judged runs of a contender are."""
        return self.directory / "runs" / contender.folder


def read_plan(directory: Path) -> Plan:
    """The plan that a comparison's directory holds.

    Raises:
        UsageError: if it is none.
    """
    stored = stored_plan(directory)
    try:
        task = str(stored["task"])
        # Earlier versions did not say which folders they had.
        folders = stored.get("folders") or {label: label.replace("/", "-") for label in stored["contenders"]}
        return Plan(
            directory=directory,
            contenders=tuple(
                Contender(label, load_preset(str(_preset_file(directory, folders[label]))), folders[label])
                for label in stored["contenders"]
            ),
            seeds=tuple(stored["seeds"]),
            tune_trials=stored["tune_trials"],
            studies=stored.get("studies", min(1, stored["tune_trials"])),
            metric=stored.get("metric", "loss"),
            margin=stored["margin"],
            target=None if stored["target"] is None else parse_target(stored["target"], task),
            environment=stored["environment"],
            declarations=stored["declarations"],
            tried=tuple(stored.get("tried", ())),
            name=stored.get("name", ""),
            database=stored.get("database"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{directory}: not a comparison's directory (it has no plan.json of this version)") from error


def stored_plan(directory: Path) -> dict[str, Any]:
    """What `write_plan` wrote, as it is; empty where there is nothing that can be read."""
    stored = read_json(directory / PLAN_FILE)
    return stored if "environment" in stored else {}


def write_plan(plan: Plan) -> None:
    """Write a plan and the presets of its contenders.

    Raises:
        UsageError: if it cannot be written.
    """
    content = {
        "task": plan.candidate.loaded.preset.task,
        "contenders": [contender.label for contender in plan.contenders],
        "folders": {contender.label: contender.folder for contender in plan.contenders},
        "seeds": list(plan.seeds),
        "tune_trials": plan.tune_trials,
        "studies": plan.studies,
        "metric": plan.metric,
        "margin": plan.margin,
        "target": None if plan.target is None else plan.target.text,
        "environment": plan.environment,
        "declarations": plan.declarations,
        "tried": list(plan.tried),
        "name": plan.name,
        "database": plan.database,
    }
    try:
        for contender in plan.contenders:
            write_preset(_preset_file(plan.directory, contender.folder), contender.loaded)
        write_json(plan.directory / PLAN_FILE, content)
    except OSError as error:
        raise UsageError(f"cannot write to {plan.directory}: {error.strerror}") from error


def _preset_file(directory: Path, folder: str) -> Path:
    return directory / "presets" / f"{folder}.yaml"
