"""The statistics of a comparison over paired seeds: pure functions of numbers, on top of scipy and numpy.

A difference is the candidate's loss less the baseline's for one seed, so that a negative one is in the candidate's
favour. A run that diverged has an infinite loss: it is the worst of its seed, and enters tests by rank alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from fismo_cli.comparison.power import LEVEL, underpowered

__all__ = [
    "Paired",
    "Verdict",
    "compare_paired",
    "decide",
    "effect_size",
    "holm",
    "median_interval",
    "paired_differences",
    "sign_flip_interval",
    "sign_flip_p",
]

EXACT_UP_TO = 16
"""Seeds up to which all sign flips are enumerated (2^16); beyond it, as many are drawn at random, with a fixed seed."""

Numbers = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

Verdict = Literal["better", "worse", "equivalent", "inconclusive", "underpowered"]


@dataclass(frozen=True)
class Paired:
    """One baseline against the candidate, over paired seeds, before the correction for the number of baselines.

    Attributes:
        difference: mean of the differences; their median where a run diverged; None where that is infinite.
        ci95: interval that inverts the sign-flip test; its ends may be infinite; None where a run diverged.
        p_value: of the sign-flip test, two-sided.
        t_p_value: of Student's paired test, for comparison; None where it has no meaning.
        effect_size: mean difference by its standard deviation (Cohen's d_z); None where it has no meaning.
        wins: seeds that the candidate won.
        ties: seeds without a difference.
        losses: seeds that the baseline won.
        diverged: seeds on which one of the two diverged.
        direction: sign of what the test looks at: -1 in favour of the candidate, 1 of the baseline, 0 of none.
        within: half-width of the narrowest symmetric margin that the test of equivalence would accept.
    """

    difference: float | None
    ci95: tuple[float, float] | None
    p_value: float
    t_p_value: float | None
    effect_size: float | None
    wins: int
    ties: int
    losses: int
    diverged: int
    direction: int
    within: float


def paired_differences(candidate: Sequence[float], baseline: Sequence[float]) -> Numbers:
    """Differences, shape (seeds,): infinite where one of the two diverged, 0 where both did."""
    left, right = np.asarray(candidate, dtype=float), np.asarray(baseline, dtype=float)
    both = ~np.isfinite(left) & ~np.isfinite(right)
    with np.errstate(invalid="ignore"):
        return np.where(both, 0.0, left - right)


def sign_flip_p(differences: Sequence[float] | Numbers) -> float:
    """Two-sided p of the sign-flip permutation test on the mean (Fisher 1935), exact up to `EXACT_UP_TO` seeds.

    Under the hypothesis that candidate and baseline are exchangeable within a seed, each difference has either sign
    with equal probability. Infinite differences are replaced, with all others, by their signed ranks.
    """
    values = _ranked(np.asarray(differences, dtype=float))
    if not values.any():
        return 1.0
    if len(values) == 1:
        return 1.0  # both signs are equally extreme
    result = stats.permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_UP_TO,
        alternative="two-sided",
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def sign_flip_interval(
    differences: Sequence[float] | Numbers, level: float = LEVEL, sides: int = 2
) -> tuple[float, float]:
    """The shifts that the sign-flip test does not reject: an exact interval for the mean difference.

    The one-sided test of a shift counts the sets of seeds whose mean difference does not exceed it, so that the ends
    are order statistics of the means over all 2^n - 1 sets of seeds (Tritchler 1984). Identical differences of zero
    give [0, 0]; too few seeds for the level give infinite ends.

    Args:
        differences: finite, shape (n,).
        level: probability of missing the mean, split between both ends.
        sides: 2; or 1 for the level at each end (the interval of two one-sided tests).
    """
    values = np.asarray(differences, dtype=float)
    means = np.sort(_subset_means(values))
    rank = math.floor(level / sides * (len(means) + 1))
    if rank < 1:
        return (0.0, 0.0) if not values.any() else (-math.inf, math.inf)
    return float(means[rank - 1]), float(means[-rank])


def effect_size(differences: Sequence[float] | Numbers) -> float | None:
    """Mean by standard deviation (Cohen's d_z); None for fewer than two, without spread, or with infinite ones."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    spread = float(np.std(values, ddof=1))
    return None if spread == 0.0 else float(np.mean(values)) / spread


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number by Holm's step-down method (1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Median of ratios and its interval by order statistics (the sign test inverted); ratios may be 0 or infinite.

    Of two middle values it is the geometric mean, undefined (NaN) for 0 and infinity.

    Returns:
        median, lower end, upper end; the ends are 0 and infinity where there are too few values for the level.
    """
    ordered = sorted(values)
    count = len(ordered)
    rank = int(stats.binom.ppf(level / 2, count, 0.5))  # P(B <= rank - 1) <= level / 2
    middle = (ordered[(count - 1) // 2], ordered[count // 2])
    median = middle[0] if middle[0] == middle[1] else math.sqrt(middle[0] * middle[1])
    if rank < 1:
        return median, 0.0, math.inf
    return median, ordered[rank - 1], ordered[count - rank]


def compare_paired(candidate: Sequence[float], baseline: Sequence[float], *, baselines: int = 1) -> Paired:
    """Compare final losses over paired seeds; an infinite or undefined loss is a run that diverged.

    Args:
        candidate: losses, in the order of the seeds.
        baseline: losses of the same seeds.
        baselines: how many baselines there are: the level of the test of equivalence is divided by it.
    """
    differences = paired_differences(candidate, baseline)
    finite = bool(np.isfinite(differences).all() and np.isfinite(np.asarray(candidate, dtype=float)).all())
    diverged = sum(not (math.isfinite(a) and math.isfinite(b)) for a, b in zip(candidate, baseline, strict=True))
    center = float(np.mean(differences)) if finite else float(np.median(differences))
    spread = finite and len(differences) > 1 and bool(np.std(differences) > 1e-9 * np.abs(differences).max())
    low, high = sign_flip_interval(differences, LEVEL / baselines, sides=1) if finite else (-math.inf, math.inf)
    return Paired(
        difference=center if math.isfinite(center) else None,
        ci95=sign_flip_interval(differences) if finite else None,
        p_value=sign_flip_p(differences),
        t_p_value=float(stats.ttest_1samp(differences, 0.0).pvalue) if spread else None,
        effect_size=effect_size(differences),
        wins=int((differences < 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences > 0).sum()),
        diverged=diverged,
        direction=int(np.sign(_ranked(differences).mean())),
        within=max(abs(low), abs(high)),
    )


def decide(paired: Paired, *, p_holm: float, margin: float, seeds: int, baselines: int) -> Verdict:
    """The verdict in one word.

    Equivalence (two one-sided sign-flip tests within the margin that was declared) goes first: a difference that is
    certain but smaller than what was declared to matter is none.

    Args:
        paired: the comparison.
        p_holm: its p, adjusted for the number of baselines.
        margin: largest difference that does not matter, in the loss's own unit.
        seeds: how many.
        baselines: how many.
    """
    if underpowered(seeds, baselines):
        return "underpowered"
    if paired.within <= margin:
        return "equivalent"
    if p_holm > LEVEL:
        return "inconclusive"
    return "better" if paired.direction < 0 else "worse"


def _ranked(differences: Numbers) -> Numbers:
    if np.isfinite(differences).all():
        return differences
    ranks = stats.rankdata(np.abs(differences))
    ranked: Numbers = np.sign(differences) * ranks
    return ranked


def _subset_means(values: Numbers) -> Numbers:
    """Means over the non-empty sets of values; all of them up to `EXACT_UP_TO`, else as many at random."""
    count = len(values)
    if count <= EXACT_UP_TO:
        members = (np.arange(1, 2**count)[:, None] >> np.arange(count)) & 1
    else:
        members = np.random.default_rng(0).integers(0, 2, size=(2**EXACT_UP_TO - 1, count))
        members = members[members.any(axis=1)]
    means: Numbers = (members @ values) / members.sum(axis=1)
    return means
