"""What a study came to, as one summary that holds everything that tables and the page show. From its storage alone."""

import contextlib
import warnings
from pathlib import Path

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from fismo_cli.campaigns.ledger import FAILURE, SAME_AS, best_of, read_ledger, root
from fismo_cli.campaigns.storage import journal_file, shown_url
from fismo_cli.runs.directory import found_again
from fismo_cli.tuning.plan import StudyPlan
from fismo_cli.tuning.search_space import near_bounds
from fismo_cli.tuning.summary import STUDY_VERSION, StudySummary, TrialRecord

__all__ = ["summarise_study"]


def summarise_study(plan: StudyPlan, study: Study) -> StudySummary:
    """Summarise a study.

    Returns:
        `study`, `storage`, `trials.{finished,failed,pruned}`, `best.{value,params,trial}` (None if no trial is
        eligible), `importances` by setting, `at_bound` (settings of the best trial near a bound), `trial_list`, `plan`;
        `unfinished`: trials that somebody runs, or that are queued again.
    """
    ledger = read_ledger(study)
    best = best_of(ledger.counted, higher_is_better=plan.judging.higher_is_better)
    complete = ledger.of(TrialState.COMPLETE)
    return {
        "version": STUDY_VERSION,
        "study": plan.name,
        "directory": str(plan.directory),
        "storage": str(journal_file(plan.directory)) if plan.url is None else shown_url(plan.url),
        "plan": plan.as_plain(),
        "trials": {
            "finished": len(complete),
            "failed": len(ledger.of(TrialState.FAIL)),
            "pruned": len(ledger.of(TrialState.PRUNED)),
        },
        "unfinished": len(ledger.running) + len(ledger.waiting),
        "best": None if best is None else {"value": best.value, "params": best.params, "trial": best.number},
        "at_bound": [] if best is None else list(near_bounds(plan.space, best.params)),
        "eligible": sum(all(value <= 0 for value in trial.constraints.values()) for trial in complete),
        "importances": _importances(study),
        "trial_list": [_as_plain(trial, plan.directory) for trial in ledger.counted],
    }


def _importances(study: Study) -> dict[str, float]:
    """Share of each setting in what makes trials good, by PED-ANOVA (Watanabe et al. 2023); empty if too few ended."""
    with contextlib.suppress(ValueError, RuntimeError, ZeroDivisionError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(study)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
    return {}


def _as_plain(trial: FrozenTrial, directory: Path) -> TrialRecord:
    attributes = trial.user_attrs
    run_dirs = attributes.get("run_dirs")
    return {
        "number": trial.number,
        "original": root(trial),  # another number for a trial that repeats one that was lost
        "state": trial.state.name.lower(),
        "value": trial.value,
        "params": trial.params,
        "failure": attributes.get(FAILURE),
        "limits": dict(trial.constraints),
        "intermediate": dict(trial.intermediate_values),
        "same_as": attributes.get(SAME_AS),
        "run_dirs": None if run_dirs is None else [str(found_again(Path(run), directory)) for run in run_dirs],
        "metrics": attributes.get("metrics"),
        "host": attributes.get("host"),
        "worker": attributes.get("worker"),
        "seconds": attributes.get("seconds"),
        "step_seconds": attributes.get("step_seconds"),
        "memory_gib": attributes.get("memory_gib"),
        "noise_scale": attributes.get("noise_scale"),
        "started": None if trial.datetime_start is None else trial.datetime_start.isoformat(timespec="seconds"),
        "ended": None if trial.datetime_complete is None else trial.datetime_complete.isoformat(timespec="seconds"),
    }
