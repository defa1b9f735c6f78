"""Draws settings from a space, one trial after the other: Optuna's TPE, seeded, and replayed rather than stored.

The same seed and the same values told give the same settings. So a search that was killed goes on by asking anew and
telling what the finished runs on disk say; no database is needed. (`fismo tune`, on several hosts, has one.)
"""

import math
from typing import Any

from fismo_cli.tuning.search_space import Choice, Range, Space

__all__ = ["Sampling"]


class Sampling:
    """One search: ask for settings, run them, tell the loss, until `trials` were told.

    Args:
        space: where to search; its starting point is the first trial.
        trials: how many in all; those that failed count.
        seed: of the sampler.
    """

    def __init__(self, space: Space, *, trials: int, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.trials = space, trials
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, trials // 4), multivariate=False)
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._study.enqueue_trial({name: where.start for name, where in space.items()})
        self.told: list[tuple[dict[str, float], float | None]] = []

    @property
    def done(self) -> bool:
        """Whether all trials were told."""
        return len(self.told) == self.trials

    def ask(self) -> dict[str, float]:
        """The next settings; to be told before the next ask."""
        self._trial = self._study.ask()
        return {name: self._draw(name, where) for name, where in self.space.items()}

    def tell(self, settings: dict[str, float], loss: float | None) -> None:
        """The loss of what was asked last; None or a number that is not finite for a trial that failed."""
        import optuna

        if loss is None or not math.isfinite(loss):
            self._study.tell(self._trial, state=optuna.trial.TrialState.FAIL)
            self.told.append((settings, None))
        else:
            self._study.tell(self._trial, loss)
            self.told.append((settings, loss))

    @property
    def best(self) -> int | None:
        """Number of the trial with the lowest loss, the first of equals; None if all failed."""
        losses = [(loss, number) for number, (_, loss) in enumerate(self.told) if loss is not None]
        return min(losses)[1] if losses else None

    def _draw(self, name: str, where: Range | Choice) -> float:
        if isinstance(where, Choice):
            drawn: Any = self._trial.suggest_categorical(name, where.values)
            return float(drawn)
        return float(self._trial.suggest_float(name, where.low, where.high, log=True))
