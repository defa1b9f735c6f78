"""The studies of a comparison, in which its trials and judged runs are kept: on this host, or for several.

A tuning study for each contender (and seed), and one of a single trial for each judged run. Tuning trials are queued as
soon as a study is there, with their settings: whoever runs them, they are the same. (With `--studies 1` Optuna's TPE
draws, one trial after the other.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fismo_cli.campaigns.jobs import Site, Source
from fismo_cli.campaigns.judging import Judging, RunResult
from fismo_cli.campaigns.ledger import SLOT, read_ledger, root
from fismo_cli.campaigns.storage import journal_file, open_storage, quiet_optuna, read_journal, storage_errors
from fismo_cli.comparison.contenders import Contender
from fismo_cli.comparison.plan import PLAN_FILE, Plan
from fismo_cli.comparison.records import Record, as_plain, from_plain, read_record
from fismo_cli.comparison.results import Results, Tuned, judged, results_of_directories
from fismo_cli.files import locked
from fismo_cli.metrics import higher_is_better
from fismo_cli.runs.directory import found_again, run_identity
from fismo_cli.tuning.samplers import StartThenSample, distributions
from fismo_cli.tuning.search_space import Choice, Space, short_settings

__all__ = ["Studies", "open_studies", "random_settings", "site_of", "stored_results"]

RECORD = "record"
"""User attribute of a trial that ended: the record of its run."""


def random_settings(space: Space, seed: int, number: int) -> dict[str, Any]:
    """The settings of a trial: uniform on the scale that is searched, independent of all other trials.

    Args:
        space: where to search.
        seed: of the study.
        number: of the trial, from 0.
    """
    source = np.random.default_rng([seed, number])
    drawn: dict[str, Any] = {}
    for name, where in space.items():
        position = float(source.random())
        if isinstance(where, Choice):
            drawn[name] = where.values[int(position * len(where.values))]
        elif where.log:
            drawn[name] = float(where.low * (where.high / where.low) ** position)
        else:
            drawn[name] = float(where.low + (where.high - where.low) * position)
    return drawn


@dataclass(frozen=True)
class Studies:
    """All studies of a comparison: tuning by (label, study), judged runs by (label, seed)."""

    plan: Plan
    tuning: Mapping[tuple[str, int], Study]
    judging: Mapping[tuple[str, int], Study]

    def results(self) -> Results:
        """What has ended so far."""
        return Results(
            {key: self._tuned(key) for key in self.tuning},
            {key: self._record(key[0], trial) for key, study in self.judging.items() for trial in _ended(study)},
        )

    def stages(self) -> list[list[Source]]:
        """For a pool: tuning, then what is judged."""
        by_label = {contender.label: contender for contender in self.plan.contenders}
        return [
            [_tuning(self.plan, by_label[label], number, study) for (label, number), study in self.tuning.items()],
            [self._judged(by_label[label], seed, study) for (label, seed), study in self.judging.items()],
        ]

    def labels(self) -> dict[str, str]:
        """Whose study it is, by its name."""
        return {study.study_name: label for (label, _), study in (*self.tuning.items(), *self.judging.items())}

    def _tuned(self, key: tuple[str, int]) -> Tuned:
        trials = _ended(self.tuning[key]) if key in self.tuning else ()
        return Tuned(tuple((dict(trial.params), self._record(key[0], trial)) for trial in trials), self.plan.metric)

    def _record(self, label: str, trial: FrozenTrial) -> Record:
        """What is recorded of a trial's run; its directory where it is now, if it is on this host."""
        plain = trial.user_attrs[RECORD]
        place = str(found_again(Path(plain["summary"]["run_dir"]), self.plan.directory))
        return from_plain(label, {**plain, "summary": {**plain["summary"], "run_dir": place}})

    def _judged(self, contender: Contender, seed: int, study: Study) -> Source:
        plan, label = self.plan, contender.label
        return Source(
            study,
            trials=1,
            distributions={},
            judging=Judging(plan.metric),
            runs=lambda settings: [judged(contender, seed, self._tuned((label, plan.study_of(seed))))],
            title=lambda settings, number: f"{label}, seed {seed}",
            shown=lambda settings: "",
            runs_dir=lambda number: plan.runs_dir(contender),
            file=lambda settings, number: f"runs/{contender.folder}-{seed}",
            **_common(plan, label),
        )


def open_studies(plan: Plan, storage: BaseStorage) -> Studies:
    """The studies of a comparison, with all trials that it needs: made, joined, or longer than they were."""
    tuning, judging = {}, {}
    for contender in plan.contenders:
        label = contender.label
        for number in range(plan.studies):
            seed = plan.tuning_seed(number)
            sampler = StartThenSample("tpe", contender.space, seed=seed, trials=plan.tune_trials)
            tuning[label, number] = _study(plan, _name(plan, contender, f"study {number}"), storage, sampler)
        for seed in plan.seeds:
            judging[label, seed] = _study(plan, _name(plan, contender, f"seed {seed}"), storage)
    studies = Studies(plan, tuning, judging)
    with locked(plan.directory / "workers" / ".drawing"):
        for source in studies.stages()[0]:
            source.queue()
    return studies


def stored_results(plan: Plan, url: str | None) -> Results:
    """What has been run of a comparison; nothing is written.

    Without its storage (the journal is gone, or no URL is given) what the run directories of this host hold.

    Args:
        plan: of the comparison, wherever its directory is now.
        url: of the database; not needed where there is a journal file.

    Raises:
        UsageError: if the storage cannot be read.
        FismoError: if the database goes away.
    """
    if url is None if plan.database is not None else not journal_file(plan.directory).exists():
        return results_of_directories(plan)
    quiet_optuna()
    storage = read_journal(plan.directory) if plan.database is None else open_storage(url, plan.directory)
    with storage_errors(url, plan.directory):
        there = set(optuna.get_all_study_names(storage))

        def found(contender: Contender, which: str) -> Iterator[Study]:
            if (name := _name(plan, contender, which)) in there:
                yield optuna.load_study(study_name=name, storage=storage)

        numbers = range(plan.studies)
        return Studies(
            plan,
            {(c.label, n): study for c in plan.contenders for n in numbers for study in found(c, f"study {n}")},
            {(c.label, s): study for c in plan.contenders for s in plan.seeds for study in found(c, f"seed {s}")},
        ).results()


def site_of(plan: Plan, url: str | None) -> Site:
    """Where a comparison is carried out."""
    device = str(plan.environment.get("device", "cpu"))
    return Site(plan.directory, url, same_data=plan.directory / PLAN_FILE, data=plan.data, device=device)


def _name(plan: Plan, contender: Contender, which: str) -> str:
    """A study's name: other settings of a contender are another study."""
    by = "" if plan.metric == "loss" else f" by {plan.metric}"
    return f"{plan.name}/{contender.folder}-{run_identity(contender.loaded.preset)[:8]}/{which}{by}"


def _study(plan: Plan, name: str, storage: BaseStorage, sampler: optuna.samplers.BaseSampler | None = None) -> Study:
    direction = StudyDirection.MAXIMIZE if higher_is_better(plan.metric) else StudyDirection.MINIMIZE
    return optuna.create_study(
        study_name=name, storage=storage, direction=direction, sampler=sampler, load_if_exists=True
    )


def _queue(study: Study, settings: Mapping[int, dict[str, Any]], where: dict[str, BaseDistribution]) -> None:
    """Queue the trials that a study lacks, by their slots."""
    ledger = read_ledger(study)
    known = {trial.user_attrs.get(SLOT) for trial in (*ledger.counted, *ledger.running, *ledger.waiting)}
    for slot, drawn in settings.items():
        if slot not in known:
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING, params=drawn, distributions=where, user_attrs={SLOT: slot}
                )
            )


def _ended(study: Study) -> Iterator[FrozenTrial]:
    """The trials with a result, of each slot the first, in the order of the slots."""
    trials = [trial for trial in read_ledger(study).counted if RECORD in trial.user_attrs]
    seen: set[int] = set()
    for trial in sorted(trials, key=lambda trial: (trial.user_attrs.get(SLOT, root(trial)), trial.number)):
        slot = trial.user_attrs.get(SLOT, root(trial))
        if slot not in seen:
            seen.add(slot)
            yield trial


def _tuning(plan: Plan, contender: Contender, number: int, study: Study) -> Source:
    label, several, space = contender.label, plan.studies > 1, contender.space
    where, slots = distributions(space), range(plan.tune_trials)
    drawn = {slot: random_settings(space, plan.tuning_seed(number), slot) for slot in slots if several}
    which, part = (f"study {number + 1}, ", f"{number}-") if several else ("", "")
    return Source(
        study,
        plan.tune_trials,
        where,
        Judging(plan.metric),
        runs=lambda settings: [contender.run(plan.tuning_seed(number), settings)],
        title=lambda settings, trial: f"tuning {label}, {which}trial {trial + 1}",
        shown=lambda settings: f"  ({short_settings(settings)})",
        runs_dir=lambda trial: plan.tuning_dir(contender, number) / str(trial),
        file=lambda settings, trial: f"tuning/{contender.folder}-{part}{trial}",
        **_common(plan, label),
        queued=several,
        queue=lambda: _queue(study, drawn, where),
        in_turn=not several,
    )


def _common(plan: Plan, label: str) -> dict[str, Any]:
    def records(runs: Sequence[RunResult]) -> dict[str, Any]:
        return {RECORD: as_plain(read_record(runs[0][0], label))}

    return {
        "steps": lambda settings: int(plan.environment["total_steps"]),
        "survives_errors": False,
        "records": records,
    }
