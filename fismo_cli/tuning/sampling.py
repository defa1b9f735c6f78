"""Draws settings from a space, one trial after the other, seeded, and replayed rather than stored.

The same seed and the same values told give the same settings. So a search that was killed goes on by asking anew and
telling what the finished runs on disk say; no database is needed. (`fismo tune`, on several hosts, has one.)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from fismo_cli.tuning.search_space import Choice, Range, Space

__all__ = ["RandomSearch", "Search", "TreeSearch"]

Settings = dict[str, Any]


class Search(ABC):
    """One search: ask for settings, run them, tell the loss, until `trials` were told.

    Args:
        space: where to search.
        trials: how many in all; those that failed count.
        seed: of the sampler.
    """

    def __init__(self, space: Space, *, trials: int, seed: int) -> None:
        self.space, self.trials, self.seed = space, trials, seed
        self.told: list[tuple[Settings, float | None]] = []

    @property
    def done(self) -> bool:
        """Whether all trials were told."""
        return len(self.told) == self.trials

    @property
    def best(self) -> int | None:
        """Number of the trial with the lowest loss, the first of equals; None if all failed."""
        losses = [(loss, number) for number, (_, loss) in enumerate(self.told) if loss is not None]
        return min(losses)[1] if losses else None

    @abstractmethod
    def ask(self) -> Settings:
        """The next settings; to be told before the next ask."""

    def tell(self, settings: Mapping[str, Any], loss: float | None) -> None:
        """The loss of what was asked last; None or a number that is not finite for a trial that failed."""
        self.told.append((dict(settings), loss if loss is not None and math.isfinite(loss) else None))


class RandomSearch(Search):
    """Settings that are independent of each other and of what was told: uniform, on the scale that is searched."""

    def ask(self) -> Settings:
        """The next settings."""
        source = np.random.default_rng([self.seed, len(self.told)])
        return {name: _drawn(where, float(source.random())) for name, where in self.space.items()}


def _drawn(where: Range | Choice, position: float) -> Any:
    """The value at a position from 0 to 1."""
    if isinstance(where, Choice):
        return where.values[int(position * len(where.values))]
    if where.log:
        return float(where.low * (where.high / where.low) ** position)
    return float(where.low + (where.high - where.low) * position)


class TreeSearch(Search):
    """Optuna's TPE, which goes by what was told; the first trial is the starting point."""

    def __init__(self, space: Space, *, trials: int, seed: int) -> None:
        import optuna

        super().__init__(space, trials=trials, seed=seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, trials // 4), multivariate=False)
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._study.enqueue_trial({name: where.start for name, where in space.items()})

    def ask(self) -> Settings:
        """The next settings; to be told before the next ask."""
        self._trial = self._study.ask()
        return {name: self._draw(name, where) for name, where in self.space.items()}

    def tell(self, settings: Mapping[str, Any], loss: float | None) -> None:
        """The loss of what was asked last; None or a number that is not finite for a trial that failed."""
        import optuna

        super().tell(settings, loss)
        known = self.told[-1][1]
        state = optuna.trial.TrialState.FAIL if known is None else None
        self._study.tell(self._trial, known, state=state)

    def _draw(self, name: str, where: Range | Choice) -> Any:
        if isinstance(where, Choice):
            return self._trial.suggest_categorical(name, where.values)
        return float(self._trial.suggest_float(name, where.low, where.high, log=True))
