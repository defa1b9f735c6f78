"""What run directories tell of a study, and which models of it are kept."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.study import Study
from optuna.trial import TrialState

from fismo_cli.campaigns.judging import RunResult, run_value, trial_result
from fismo_cli.campaigns.ledger import Ledger, best_of
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.directory import RunDirectory, found_again
from fismo_cli.tuning.plan import StudyPlan
from fismo_cli.tuning.samplers import distributions
from fismo_cli.tuning.search_space import drawn_settings

__all__ = ["keep_the_best_model", "study_of_runs"]


def keep_the_best_model(plan: StudyPlan, ledger: Ledger) -> None:
    """Of all trials on this host, only the best one's models stay: models are large, and can be made again."""
    best = best_of(ledger.counted, higher_is_better=plan.judging.higher_is_better)
    if best is None:
        return
    kept = best.user_attrs.get("run_dirs", ())
    for place in {place for trial in ledger.counted for place in trial.user_attrs.get("run_dirs", ())}.difference(kept):
        run = RunDirectory(found_again(Path(place), plan.directory))
        shutil.rmtree(run.model, ignore_errors=True)
        run.weights.unlink(missing_ok=True)


def study_of_runs(plan: StudyPlan) -> Study:
    """The completed trials of a study, as far as the run directories on this host tell: its storage is not at hand."""
    study = optuna.create_study(direction="maximize" if plan.judging.higher_is_better else "minimize")
    where = distributions(plan.space)
    folders = (plan.directory / "trials").glob("*")
    for number, folder in sorted((int(path.name), path) for path in folders if path.name.isdecimal()):
        runs = list(_completed(folder, plan.judging.metric))
        if len(runs) != plan.judging.repeats:
            continue
        result = trial_result(plan.judging, runs)
        while len(study.get_trials(deepcopy=False)) < number:  # not known here
            study.add_trial(optuna.create_trial(state=TrialState.FAIL))
        trial = optuna.create_trial(
            value=result.value,
            params=drawn_settings(plan.space, load_preset(str(runs[0][0].preset)).preset.model_dump()),
            distributions=where,
            user_attrs=result.attributes,
        )
        for name, limit in result.limits.items():
            trial.set_constraint(name, limit)
        study.add_trial(trial)
    return study


def _completed(folder: Path, metric: str) -> Iterator[RunResult]:
    for file in sorted(folder.glob("*/*/summary.json")):
        try:
            summary = json.loads(file.read_text(encoding="utf-8"))
            if run_value(summary, metric) is not None:
                yield RunDirectory(file.parent), summary
        except (OSError, ValueError, KeyError, TypeError):
            continue
