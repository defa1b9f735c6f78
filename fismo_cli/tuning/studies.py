"""Begins a study, joins the one that is in the storage already, or reads one that is there."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.storages import BaseStorage
from optuna.study import Study

from fismo_cli.campaigns.jobs import Site, Source
from fismo_cli.campaigns.judging import Judging
from fismo_cli.campaigns.storage import (
    check_same_storage,
    journal_file,
    open_storage,
    quiet_optuna,
    read_journal,
    shown_url,
    storage_errors,
)
from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.runs.directory import read_json, write_json, write_preset
from fismo_cli.tuning.plan import STUDY_FILE, Environment, StudyPlan, make_study_plan, study_identity, try_out
from fismo_cli.tuning.results import keep_the_best_model, study_of_runs
from fismo_cli.tuning.samplers import StartThenSample, distributions, make_pruner
from fismo_cli.tuning.search_space import short_settings

__all__ = ["StoredStudy", "open_study", "read_study", "site_of", "source_of"]

_IDENTITY, _ENVIRONMENT = "fismo:identity", "fismo:environment"
_PRESET = "presets/study.yaml"


def open_study(
    loaded: LoadedPreset,
    judging: Judging,
    *,
    name: str | None,
    root: Path,
    url: str | None,
    sampler: str,
    trials: int,
    workers: int | None,
    omp_threads: str | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> tuple[StudyPlan, Study]:
    """The study of a preset: joined if the storage has it, else begun after a few steps of the preset were tried.

    Args:
        loaded: the preset.
        judging: how trials are judged.
        name: of the study; None: made of the preset's name and of what is searched how.
        root: under which the study's directory is, or is made.
        url: of a database; None: a journal file in that directory.
        sampler: one of `SAMPLERS`.
        trials: how many are planned.
        workers: how many runs share this host; None: the default for the device.
        omp_threads: what OMP_NUM_THREADS says.
        notice: told of what in the journal could not be read.

    Raises:
        UsageError: if the storage cannot be used, the preset does not run, or a study of this name is another one.
        FismoError: if the storage goes away.
    """
    quiet_optuna()
    identity = study_identity(loaded, judging)
    name = name or f"{loaded.name}-{identity}"
    directory = root / name
    check_same_storage(directory, read_json(directory / STUDY_FILE), url, "another name by --study")
    storage = None if url is None and not journal_file(directory).exists() else open_storage(url, directory, notice)
    with storage_errors(url, directory):
        environment = _joined(storage, name, identity, url, directory)
        if environment is None:
            environment = try_out(loaded, workers, judging.nproc, omp_threads)
        plan = make_study_plan(
            loaded, name=name, directory=directory, judging=judging, environment=environment, url=url
        )
        storage = open_storage(url, directory, notice) if storage is None else storage
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize" if judging.higher_is_better else "minimize",
            sampler=StartThenSample(sampler, plan.space, seed=loaded.preset.train.seed, trials=trials),
            pruner=make_pruner(judging.pruner),
            load_if_exists=True,
        )
        _check_same_kinds(plan, study)
        if _IDENTITY not in study.user_attrs:
            study.set_user_attr(_ENVIRONMENT, asdict(environment))
            study.set_user_attr(_IDENTITY, identity)
        # Of workers that begin a study at the same time, all go by what the last of them wrote.
        common = _joined(storage, name, identity, url, directory) or environment
        plan = replace(plan, environment=common)
        _write(plan)
        if "data" not in study.user_attrs[_ENVIRONMENT]:
            notice(f"{directory}: an earlier version of fismo began it, so whether the data is the same is not checked")
    return plan, study


def site_of(plan: StudyPlan) -> Site:
    """Where a study is carried out."""
    environment = plan.environment
    return Site(
        plan.directory,
        plan.url,
        same_data=plan.directory / STUDY_FILE,
        data=environment.data,
        device=environment.device,
        nproc=plan.judging.nproc,
    )


def source_of(plan: StudyPlan, study: Study, trials: int) -> Source:
    """The trials of a study, for a pool.

    Args:
        plan: of the study.
        study: where its trials are kept.
        trials: how many there are in the end.
    """
    return Source(
        study,
        trials,
        distributions(plan.space),
        plan.judging,
        runs=lambda settings: [plan.trial(settings, repeat) for repeat in range(plan.judging.repeats)],
        steps=plan.steps,
        title=lambda settings, number: f"trial {number}",
        shown=lambda settings: f"  ({short_settings(settings)})",
        runs_dir=lambda root: plan.directory / "trials" / str(root),
        file=lambda settings, number: f"trial-{number}",
        counted=lambda ledger: keep_the_best_model(plan, ledger),
    )


@dataclass(frozen=True)
class StoredStudy:
    """A study as a directory has it, wherever that is now.

    Attributes:
        plan: its plan; the URL is that which was given for reading.
        database: the database that its trials are in, as it may be shown; None: a journal file.
    """

    plan: StudyPlan
    database: str | None

    def study(self) -> Study:
        """Its trials; nothing is written.

        Without its storage (the journal is gone, or no URL is given) those that completed on this host.

        Raises:
            UsageError: if the storage cannot be read or does not have it.
            FismoError: if the database goes away.
        """
        plan, directory = self.plan, self.plan.directory
        if not self.complete:
            return study_of_runs(plan)
        quiet_optuna()
        storage = read_journal(directory) if self.database is None else open_storage(plan.url, directory)
        with storage_errors(plan.url, directory):
            if plan.name not in optuna.get_all_study_names(storage):
                raise UsageError(f"{directory}: its study {plan.name} is not in {_place(plan.url, directory)}")
            return optuna.load_study(study_name=plan.name, storage=storage)

    @property
    def complete(self) -> bool:
        """Whether the storage is at hand."""
        if self.database is None:
            return journal_file(self.plan.directory).exists()
        return self.plan.url is not None


def read_study(directory: Path, url: str | None) -> StoredStudy | None:
    """The study of a directory; None if an earlier version of this tool began it, or it is none.

    Args:
        directory: of the study.
        url: of the database; not needed where the study has a journal file.

    Raises:
        UsageError: if its files cannot be read.
    """
    try:
        stored = json.loads((directory / STUDY_FILE).read_text(encoding="utf-8"))
        name, database = str(stored["study"]), stored["database"]
        judging, environment = Judging(**stored["judging"]), Environment(**stored["environment"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{directory / STUDY_FILE}: cannot be read ({error}); fismo tune writes it again") from error
    plan = make_study_plan(
        load_preset(str(directory / _PRESET)),
        name=name,
        directory=directory,
        judging=judging,
        environment=environment,
        url=None if database is None else url,
    )
    return StoredStudy(plan, database)


def _write(plan: StudyPlan) -> None:
    """Write down what a report has to know besides the trials."""
    write_preset(plan.directory / _PRESET, plan.loaded)
    what = {"study": plan.name, "database": None if plan.url is None else shown_url(plan.url)}
    how = {"judging": asdict(plan.judging), "environment": asdict(plan.environment)}
    write_json(plan.directory / STUDY_FILE, {**what, **how})


def _joined(
    storage: BaseStorage | None, name: str, identity: str, url: str | None, directory: Path
) -> Environment | None:
    """The environment of the study in a storage; None if it has no such study yet.

    Raises:
        UsageError: if a study of this name searches something else.
    """
    if storage is None or name not in optuna.get_all_study_names(storage):
        return None
    attributes = optuna.load_study(study_name=name, storage=storage).user_attrs
    if _IDENTITY not in attributes:
        return None
    if attributes[_IDENTITY] != identity:
        raise UsageError(
            f"--study {name}: {_place(url, directory)} has a study of this name with another preset, space, metric, "
            "repeats, pruner, number of processes or limits; give another name, or leave it out: a name is then made "
            "of all of these"
        )
    return Environment(**attributes[_ENVIRONMENT])


def _place(url: str | None, directory: Path) -> str:
    return str(journal_file(directory)) if url is None else shown_url(url)


def _check_same_kinds(plan: StudyPlan, study: Study) -> None:
    """Make sure that trials can be drawn beside those that the study has.

    Raises:
        UsageError: if another version of this tool searched its settings in another way.
    """
    now = distributions(plan.space)
    for trial in study.get_trials(deepcopy=False):
        for name in now.keys() & trial.distributions.keys():
            try:
                check_distribution_compatibility(trial.distributions[name], now[name])
            except ValueError:
                raise UsageError(
                    f"the study {plan.name} was begun by a version of fismo that searched {name} in another way; give "
                    "another name by --study"
                ) from None
