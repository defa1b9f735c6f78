"""What has been run of a comparison: from its studies' trials, or from the run directories of this host alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fismo_cli.campaigns.executor import finished_run
from fismo_cli.comparison.contenders import Contender
from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.records import Record, read_record
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.runs.directory import RunDirectory, read_json
from fismo_cli.runs.same_data import data_of_run
from fismo_cli.tasks.identity import changes
from fismo_cli.tuning.search_space import drawn_settings

__all__ = ["Results", "Tuned", "judged", "results_of_directories"]


@dataclass(frozen=True)
class Tuned:
    """A study of a contender: the settings and the record of each trial that has ended, in their order.

    Attributes:
        trials: settings and records.
        metric: by which the best is chosen.
    """

    trials: tuple[tuple[dict[str, Any], Record], ...] = ()
    metric: str = "loss"

    @property
    def best(self) -> int | None:
        """The best trial, the first of equals; None if all diverged, or none has ended."""
        costs = [(record.cost(self.metric), number) for number, (_, record) in enumerate(self.trials)]
        lowest, number = min(costs, default=(math.inf, 0))
        return number if math.isfinite(lowest) else None

    @property
    def settings(self) -> dict[str, Any] | None:
        """Those of the best trial."""
        return None if self.best is None else self.trials[self.best][0]


@dataclass
class Results:
    """Everything that has been run: tuning by (label, study), records by (label, seed)."""

    tuned: dict[tuple[str, int], Tuned] = field(default_factory=dict)
    runs: dict[tuple[str, int], Record] = field(default_factory=dict)

    def tuned_for(self, plan: Plan, contender: Contender, seed: int) -> Tuned:
        """The study whose best settings are judged with a seed."""
        return self.tuned.get((contender.label, plan.study_of(seed)), Tuned(metric=plan.metric))


def judged(contender: Contender, seed: int, tuned: Tuned) -> LoadedPreset:
    """The preset of a judged run: with what its study found; with the starting point if all of its trials failed."""
    return contender.run(seed, tuned.settings)


def results_of_directories(plan: Plan) -> Results:
    """What the run directories of this host hold; unfinished runs are left out."""
    results = Results()
    for contender in plan.contenders:
        for study in range(plan.studies):
            trials = _trials(plan, contender, study)
            ordered = tuple(trial for _, trial in sorted(trials, key=_number))
            results.tuned[contender.label, study] = Tuned(ordered, plan.metric)
        for seed in plan.seeds:
            loaded = judged(contender, seed, results.tuned_for(plan, contender, seed))
            found = finished_run(plan.runs_dir(contender), loaded, plan.data)
            if found is not None:
                results.runs[contender.label, seed] = read_record(found, contender.label)
    return results


Numbered = tuple[int, tuple[dict[str, Any], Record]]


def _number(trial: Numbered) -> int:
    return trial[0]


def _trials(plan: Plan, contender: Contender, study: int) -> Iterator[Numbered]:
    """The trials of a study that have ended, by number: of each the first run that counts."""
    for folder in plan.tuning_dir(contender, study).glob("*"):
        for file in sorted(folder.glob("*/*/summary.json")):
            run = RunDirectory(file.parent)
            other = plan.data and changes(data_of_run(run) or plan.data, plan.data)
            if folder.name.isdecimal() and not other and read_json(file).get("status") in ("completed", "diverged"):
                values = load_preset(str(run.preset)).preset.model_dump()
                yield int(folder.name), (drawn_settings(contender.space, values), read_record(run, contender.label))
                break
