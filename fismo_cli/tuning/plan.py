"""What a study consists of, fixed before anything runs: what is searched, how a trial is judged, where it is kept."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from fismo_cli.campaigns.executor import Failure, dry_run_elsewhere
from fismo_cli.campaigns.judging import REPORTS, Judging, why_not_judged
from fismo_cli.environment import gpu_count, run_threads, usable_cores
from fismo_cli.errors import FismoError, UsageError
from fismo_cli.preset.document import dotted
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig, TuneConfig
from fismo_cli.preset.settings import with_settings
from fismo_cli.preset.validation import validate
from fismo_cli.training.schedule import total_steps
from fismo_cli.tuning.search_space import Choice, Range, Space, tuning_space
from fismo_cli.tuning.summary import Judged, PlanSummary

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "STUDY_FILE",
    "Environment",
    "StudyPlan",
    "default_workers",
    "make_study_plan",
    "space_from_plain",
    "study_identity",
    "try_out",
]

STUDY_FILE = "study.json"
"""In a study's directory: what its report has to know, and what its runs are held to."""

SAMPLERS = ("tpe", "gp", "random")
PRUNERS = ("none", "median", "halving")

MOST_WORKERS = 4
"""Workers that are started on a CPU without being asked for."""


@dataclass(frozen=True)
class Environment:
    """What all trials of a study have in common, besides their preset: found by the first worker, kept in the study.

    `data` is the identity of the data (see `tasks.identity`); None for a study that an earlier version began.
    """

    threads: int
    device: str
    train_samples: int
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class StudyPlan:
    """A whole study.

    Attributes:
        name: of the study, in its storage too.
        directory: where everything of it on this host is.
        loaded: the preset that trials vary.
        judging: how they are judged.
        environment: what they have in common.
        space: where they are searched.
        url: of the database; None: the journal file.
    """

    name: str
    directory: Path
    loaded: LoadedPreset
    judging: Judging
    environment: Environment
    space: Space
    url: str | None

    def trial(self, settings: Mapping[str, Any], repeat: int = 0) -> LoadedPreset:
        """The preset of one run of a trial. What it does not need is left out: baselines, the search, evaluations.

        Raises:
            UsageError: if settings do not go together.
        """
        values = with_settings(self.loaded.preset.model_dump(), settings)
        values["train"] = {
            **values["train"],
            "seed": self.loaded.preset.train.seed + repeat,
            "threads": self.environment.threads,
        }
        preset, findings = validate({**values, "compare": {}, "tune": TuneConfig().model_dump()})
        if preset is None:
            raise UsageError("; ".join(f"{dotted(finding.path)}: {finding.message}" for finding in findings))
        every = None
        if self.judging.pruner != "none":
            every = max(1, total_steps(preset.train, self.environment.train_samples) // REPORTS)
        # One batch size for all evaluations: another one would give other last digits.
        train = self.loaded.preset.train
        share = max(1, train.batch_size // train.accumulate // self.judging.nproc)
        batch_size = preset.evaluate.batch_size or share
        changed = {
            "evaluate": EvaluateConfig(every=every, batch_size=batch_size),
            "checkpoint": CheckpointConfig(every=preset.checkpoint.every, keep=1),
            "logging": preset.logging.in_group(self.name),
        }
        return replace(self.loaded, preset=preset.model_copy(update=changed))

    def best_preset(self, settings: Mapping[str, Any]) -> LoadedPreset:
        """The preset of a trial with everything that the user's own has besides."""
        own, found = self.loaded.preset, self.trial(settings).preset
        kept = {"compare": own.compare, "tune": own.tune, "checkpoint": own.checkpoint, "logging": own.logging}
        evaluate = own.evaluate.model_copy(update={"batch_size": found.evaluate.batch_size})
        return replace(self.loaded, preset=found.model_copy(update={**kept, "evaluate": evaluate}))

    def steps(self, settings: Mapping[str, Any]) -> int:
        """Optimizer steps of a run of a trial."""
        return total_steps(self.trial(settings).preset.train, self.environment.train_samples)

    def as_plain(self) -> PlanSummary:
        """What a report has to know of it, as JSON can hold it."""
        return {
            "preset": self.loaded.name,
            "optimizer": self.loaded.preset.optimizer.name,
            "samples": self.loaded.preset.train.batch_size * self.steps({}),
            "judging": cast(Judged, asdict(self.judging)),
            "environment": {name: known for name, known in asdict(self.environment).items() if name != "data"},
            "space": {name: asdict(where) for name, where in self.space.items()},
        }


def space_from_plain(plain: Mapping[str, Mapping[str, Any]]) -> Space:
    """The space that `StudyPlan.as_plain` wrote."""
    return {
        name: Choice(tuple(where["values"]), where["start"]) if "values" in where else Range(**where)
        for name, where in plain.items()
    }


def study_identity(loaded: LoadedPreset, judging: Judging) -> str:
    """A hash of the preset, what is searched and how it is judged: another one is another study."""
    values = loaded.preset.model_dump(mode="json", exclude={"compare", "logging"})
    text = json.dumps([values, asdict(judging)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_workers(device: str, nproc: int) -> int:
    """Trials side by side: as many as there are GPUs for; on a CPU, as there are cores for, up to a few."""
    if device.startswith("cuda"):
        return max(1, gpu_count() // nproc)
    return max(1, min(MOST_WORKERS, (usable_cores() or 1) // nproc)) if device == "cpu" else 1


def try_out(loaded: LoadedPreset, workers: int | None, nproc: int, omp_threads: str | None = None) -> Environment:
    """Take a few steps: what is wrong with the preset shows now.

    Raises:
        UsageError: with what is wrong.
        FismoError: if an accident ended the try.
    """
    if problems := why_not_judged(loaded.preset):
        raise UsageError.of(problems)
    with tempfile.TemporaryDirectory() as folder:
        result = dry_run_elsewhere(loaded, Path(folder) / "preset.yaml", nproc)
    if isinstance(result, Failure):
        what = f"a try of a few steps: {result.message}"
        raise FismoError(what) if result.by_accident else UsageError(result.message)
    if result["validation_samples"] is None:
        raise UsageError("the data has no validation part, and trials are judged on one: see data.validation_fraction")
    device = str(result["device"])
    threads = run_threads(loaded.preset.train.threads, omp_threads, (workers or default_workers(device, nproc)) * nproc)
    return Environment(threads, device, int(result["train_samples"]), result["data"])


def make_study_plan(
    loaded: LoadedPreset,
    *,
    name: str,
    directory: Path,
    judging: Judging,
    environment: Environment,
    url: str | None,
) -> StudyPlan:
    """Fix a study.

    Raises:
        UsageError: if there is nothing to search, or what is searched does not fit the data.
    """
    try:
        space = tuning_space(loaded.preset, environment.train_samples, judging.nproc)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return StudyPlan(name, directory, loaded, judging, environment, space, url)
