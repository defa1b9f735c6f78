"""Optuna's samplers and pruners by name, and what this tool asks of them besides.

A trial's draws depend on the study's seed, how many were drawn before, and their results alone, not on which process
draws. So workers never draw the same points, and a study that was killed and goes on draws what it would have drawn.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from fismo_cli.campaigns.ledger import root
from fismo_cli.tuning.search_space import Choice, Space

__all__ = ["StartThenSample", "distributions", "frozen", "make_pruner"]


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna has it."""
    found: dict[str, BaseDistribution] = {}
    for name, where in space.items():
        if isinstance(where, Choice):
            found[name] = CategoricalDistribution(where.values)
        elif where.integer:
            found[name] = IntDistribution(int(where.low), int(where.high), log=where.log)
        else:
            found[name] = FloatDistribution(where.low, where.high, log=where.log)
    return found


class StartThenSample(BaseSampler):
    """Proposes the starting point in trial 0, and what a sampler that is seeded by the trial's number draws after it.

    Args:
        name: tpe, gp or random.
        space: what is searched.
        seed: of the study.
        trials: how many are planned; a quarter of them, at least four, is drawn at random before tpe or gp learn.
    """

    def __init__(self, name: str, space: Space, *, seed: int, trials: int) -> None:
        self._name, self._seed, self._startup = name, seed, max(4, min(trials // 4, 20))
        self._start = {key: where.start for key, where in space.items()}
        self._distributions = distributions(space)
        self._inner: BaseSampler = RandomSampler()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of the space for the starting point, else what the sampler says."""
        self._inner = self._seeded(_turn(study, trial))
        return self._distributions if trial.number == 0 else self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the settings that are drawn together."""
        return dict(self._start) if trial.number == 0 else self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of a setting that is drawn for itself."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Pass on."""
        self._inner.after_trial(study, trial, state, values)

    def _seeded(self, number: int) -> BaseSampler:
        digest = hashlib.sha256(f"{self._seed} {number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        match self._name:
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=self._startup, multivariate=True, constant_liar=True)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=self._startup, deterministic_objective=False)
            case _:
                return RandomSampler(seed=seed)


def _turn(study: Study, trial: FrozenTrial) -> int:
    """How many settings were drawn before: a trial that was lost and is run again draws none."""
    earlier = study.get_trials(deepcopy=False)[: trial.number]
    return sum(root(other) == other.number for other in earlier)


def make_pruner(name: str) -> BasePruner:
    """none; median: from half of the budget on; halving: after 20, 40 and 80 % of it the worse half is stopped."""
    match name:
        case "median":
            return MedianPruner(n_startup_trials=5, n_warmup_steps=50)
        case "halving":
            return SuccessiveHalvingPruner(min_resource=20, reduction_factor=2)
        case _:
            return NopPruner()


def frozen(space: Space, trial: Mapping[str, Any]) -> FrozenTrial:
    """A finished trial of a summary, as Optuna has it."""
    return optuna.create_trial(
        state=TrialState[trial["state"].upper()],
        params=trial["params"],
        distributions=distributions(space),
        value=trial["value"],
        intermediate_values={int(step): value for step, value in trial["intermediate"].items()},
    )
