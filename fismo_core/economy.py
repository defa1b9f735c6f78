"""Economies of the Fisher metric: what a step costs against what it earns. Pure arithmetic of shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from fismo_core.config import Economy, FisherMetric

__all__ = [
    "ASSUMED_ROWS",
    "LEVELS",
    "Level",
    "chosen_economy",
    "elementwise_cost",
    "matrix_cost",
    "metric_of",
    "settled",
    "share_of_step",
]

ASSUMED_ROWS = 16_384
"""Rows a step where nobody has said how many there are."""

POLAR_PRODUCTS = 9.0
"""Products of an m x m by an m x n matrix that a step costs in all, m the shorter side; fitted to measured times."""

PRODUCTS_PER_ENTRY = 30.0
"""What an entry that is only read and written costs, in multiplications."""

MODEL_SLOWNESS = 4.0
"""A model multiplies so much slower than the optimizer, whose step is all products: by the measured shares of a step
(docs/performance.md) three times at GPT-2 124M on an H100, five times at width 96 on a CPU."""

Shapes = Iterable[tuple[int, int]]


@dataclass(frozen=True)
class Level:
    """What an economy makes of the options that are left to it, and what it earns.

    Attributes:
        statistics: as in `FisherMetric`.
        refresh_every: likewise.
        max_ratio: likewise; None: however long.
        steps: how many steps training takes to the same loss, in those of the dearest level: the mean of two text
            tasks at two batch sizes (docs/results.md).
        words: what it is.
    """

    statistics: Literal["alternating", "both"]
    refresh_every: int
    max_ratio: float | None
    steps: float
    words: str


LEVELS: Mapping[Economy, Level] = {
    "none": Level("both", 5, None, 1.0, "dense factors of all sides, both renewed in each step"),
    "some": Level("both", 5, 1.5, 1.04, "long sides diagonal, both factors renewed in each step"),
    "most": Level("alternating", 10, 1.5, 1.07, "long sides diagonal, one factor renewed in each step, in turn"),
}
"""From the dearest to the cheapest."""


def metric_of(group: Mapping[str, Any]) -> FisherMetric:
    """The metric of a parameter group, with nothing left open."""
    return settled(group["metric"], group["economy"])


@lru_cache(maxsize=256)
def settled(metric: FisherMetric, economy: Economy) -> FisherMetric:
    """The metric with what it leaves open decided by an economy.

    Raises:
        ValueError: if the economy is `auto`, which depends on the matrices: see `chosen_economy`.
    """
    if economy not in LEVELS:
        raise ValueError(f"economy={economy!r} of a parameter group: set one of {', '.join(LEVELS)}")
    level = LEVELS[economy]
    return replace(
        metric,
        statistics=metric.statistics or level.statistics,
        refresh_every=metric.refresh_every or level.refresh_every,
        max_ratio=metric.max_ratio or level.max_ratio,
    )


def chosen_economy(shapes: Shapes, metric: FisherMetric, rows: float) -> Economy:
    """The economy with which training takes the least time: the time of a step times the number of steps.

    Args:
        shapes: of the matrices.
        metric: what it says itself is the same in all of them.
        rows: a step; see `share_of_step`.
    """
    matrices = list(shapes)
    times = {
        name: level.steps / (1 - share_of_step(matrices, settled(metric, name), rows)) for name, level in LEVELS.items()
    }
    return min(times, key=lambda name: times[name])


def share_of_step(shapes: Shapes, metric: FisherMetric, rows: float) -> float:
    """About which part of a training step's time the optimizer takes for its matrices.

    Args:
        shapes: of the matrices.
        metric: settled.
        rows: how many rows a step multiplies by each matrix, forward and twice backward: the tokens of a text batch,
            the patches of all images of a batch.
    """
    matrices = list(shapes)
    model = sum(3.0 * m * n for m, n in matrices) * rows * MODEL_SLOWNESS
    own = sum(matrix_cost(m, n, metric) for m, n in matrices)
    return own / (own + model) if own else 0.0


def matrix_cost(m: int, n: int, metric: FisherMetric) -> float:
    """About how many multiplications a FISMO step of an m x n matrix takes: polar factor, whitening, statistics, roots.

    Args:
        m: rows.
        n: columns.
        metric: settled.
    """
    short, long = min(m, n), max(m, n)
    cost = POLAR_PRODUCTS * short * short * long + PRODUCTS_PER_ENTRY * m * n
    if metric.power == 0:
        return cost
    statistics = 0.5 if metric.statistics == "alternating" else 1.0
    for side, other in ((m, n), (n, m)):
        if not metric.is_diagonal(side, other):
            cost += (2.0 + statistics) * m * n * side + 12.0 * side**3 / (metric.refresh_every or 1)
    return cost


def elementwise_cost(entries: int) -> float:
    """The same of a parameter that AdamW treats."""
    return PRODUCTS_PER_ENTRY * entries
