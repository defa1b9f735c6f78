"""What more tuning would have brought: pure arithmetic on the studies that were made."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Budget", "by_budget"]


@dataclass(frozen=True)
class Budget:
    """What is to be expected of a number of tuning trials.

    Attributes:
        trials: of one search.
        searches: how many were made.
        mean: of the judged losses; infinite where one diverged.
        standard_deviation: None of one search, or where one diverged.
    """

    trials: int
    searches: int
    mean: float
    standard_deviation: float | None


def by_budget(found: Sequence[float], judged: Sequence[float], trials: int) -> list[Budget]:
    """The judged loss by the number of tuning trials: of N, 2 N, 4 N, ... as far as there are two searches or more.

    Studies whose trials are independent can be put together: two of N trials are one of 2 N, whose best settings are
    those of the better one, and these have been judged. (Protocol: docs/comparing.md.)

    Args:
        found: the lowest tuning loss of each study; infinite if all of its trials failed.
        judged: the loss of each study's best settings, trained with the study's own seed of judging.
        trials: of each study.
    """
    budgets = []
    size = 1
    while len(judged) // size >= 2:
        groups = [range(start, start + size) for start in range(0, len(judged) - size + 1, size)]
        losses = [judged[min(group, key=lambda study: (found[study], study))] for group in groups]
        finite = all(map(math.isfinite, losses))
        deviation = statistics.stdev(losses) if finite else None
        mean = statistics.mean(losses) if finite else math.inf
        budgets.append(Budget(trials * size, len(groups), mean, deviation))
        size *= 2
    return budgets
