"""The statistics against worked examples, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from fismo_cli.comparison.statistics import (
    compare_paired,
    decide,
    effect_size,
    holm,
    median_interval,
    sign_flip_interval,
    sign_flip_p,
    underpowered,
)

# Darwin's maize, the differences in height (eighths of an inch) that Fisher (1935) used: p = 1726 / 32768.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_sign_flip_is_fisher_s_worked_example():
    assert sign_flip_p(DARWIN) == pytest.approx(1726 / 32768, abs=1e-12)


def test_sign_flip_p_by_hand():
    assert sign_flip_p([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert sign_flip_p([0.0] * 8) == 1.0
    assert sign_flip_p([-1.0] * 8) == pytest.approx(2 / 256)


def test_interval_holds_exactly_the_shifts_that_the_test_accepts():
    differences = np.random.default_rng(3).normal(0.2, 1.0, size=8)
    low, high = sign_flip_interval(differences)
    for shift, accepted in ((low + 1e-9, True), (low - 1e-9, False), (high - 1e-9, True), (high + 1e-9, False)):
        assert (sign_flip_p(differences - shift) > 0.05) is accepted


def test_interval_of_identical_runs_and_of_too_few():
    assert sign_flip_interval([0.0] * 8) == (0.0, 0.0)
    assert sign_flip_interval([0.0] * 3) == (0.0, 0.0)
    assert sign_flip_interval([1.0, 2.0, 3.0]) == (-math.inf, math.inf)


def test_many_seeds_are_sampled_and_agree_with_student():
    differences = np.random.default_rng(0).normal(0.5, 1.0, size=40)
    student = stats.ttest_1samp(differences, 0.0)
    low, high = sign_flip_interval(differences)
    assert sign_flip_p(differences) == pytest.approx(student.pvalue, abs=2e-3)
    assert (low, high) == pytest.approx(student.confidence_interval(0.95), abs=0.03)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_underpowered_as_the_protocol_says():
    assert underpowered(6, 2)
    assert not underpowered(7, 2)
    assert not underpowered(8, 3)
    assert underpowered(5, 1)
    assert not underpowered(6, 1)


def test_median_interval():
    assert median_interval([1.0, 2.0, 3.0]) == (2.0, 0.0, math.inf)
    values = list(range(1, 9))  # of 8 values the extremes hold the median with probability 0.992
    assert median_interval(values) == (pytest.approx(math.sqrt(20)), 1, 8)
    assert math.isnan(median_interval([0.0] * 4 + [math.inf] * 4)[0])
    assert median_interval([1.0] * 5 + [math.inf] * 3) == (1.0, 1.0, math.inf)
    expected = stats.quantile_test(np.arange(20.0)).confidence_interval(0.95)
    assert median_interval(np.arange(20.0))[1:] == tuple(expected)


def test_effect_size():
    assert effect_size([1.0, 3.0]) == pytest.approx(2 / math.sqrt(2))
    assert effect_size([1.0, 1.0]) is None
    assert effect_size([1.0, math.inf]) is None


def verdict(candidate, baseline, margin=0.005, baselines=1):
    paired = compare_paired(candidate, baseline, baselines=baselines)
    return decide(
        paired, p_holm=min(1.0, baselines * paired.p_value), margin=margin, seeds=len(candidate), baselines=baselines
    )


def test_verdicts():
    losses = np.random.default_rng(1).normal(1.0, 0.01, size=8)
    assert verdict(losses, losses) == "equivalent"
    assert verdict(losses, losses + 0.1) == "better"
    assert verdict(losses + 0.1, losses) == "worse"
    assert verdict(losses, losses + 0.001) == "equivalent"
    assert verdict(losses, losses[::-1], margin=1e-4) == "inconclusive"
    assert verdict(losses[:5], losses[:5] + 0.1) == "underpowered"


def test_divergence_is_the_worst_rank_and_enters_no_mean():
    candidate, baseline = [1.0 + index / 100 for index in range(8)], [1.1] * 6 + [math.inf] * 2
    paired = compare_paired(candidate, baseline)
    assert (paired.wins, paired.losses, paired.diverged) == (8, 0, 2)
    assert paired.p_value == pytest.approx(2 / 256)
    assert paired.difference is not None
    assert math.isfinite(paired.difference)
    assert paired.ci95 is None
    assert verdict(candidate, baseline) == "better"
    assert verdict([math.inf] * 8, candidate) == "worse"
    assert verdict(candidate, [math.inf] * 8) == "better"


def test_the_direction_is_that_of_the_test():
    """Both diverge on most seeds, the baseline alone on the others: the median difference is 0, yet it is better."""
    candidate, baseline = [math.inf] * 7 + [1.0] * 6, [math.inf] * 13
    assert compare_paired(candidate, baseline).difference == 0.0
    assert verdict(candidate, baseline) == "better"
    assert verdict(baseline, candidate) == "worse"


def test_both_diverged_is_a_tie_and_no_equivalence():
    paired = compare_paired([math.inf] * 8, [math.inf] * 8)
    assert (paired.ties, paired.p_value) == (8, 1.0)
    assert verdict([math.inf] * 8, [math.inf] * 8) == "inconclusive"


def test_false_positives_stay_at_the_level_for_two_baselines():
    """Under no difference, also with skewed noise, the family of verdicts is wrong in at most 5 %."""
    generator = np.random.default_rng(7)
    wrong, repetitions = 0, 1000
    for _ in range(repetitions):
        draws = generator.exponential(1.0, size=(3, 8))
        p_values = [sign_flip_p(draws[0] - draws[index]) for index in (1, 2)]
        wrong += min(holm(p_values)) <= 0.05
    assert wrong / repetitions <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)
    assert wrong > 0


def test_false_equivalence_stays_at_the_level():
    """With a true difference of exactly the margin, equivalence is claimed in at most 5 %."""
    generator = np.random.default_rng(8)
    repetitions, claimed = 1000, 0
    for _ in range(repetitions):
        differences = generator.normal(0.5, 0.3, size=8)
        claimed += compare_paired(differences, np.zeros(8)).within <= 0.5
    assert claimed / repetitions <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)
    assert claimed > 0


def test_power_is_what_theory_says():
    """With normal differences of effect size 1.5 and 8 seeds the paired t test's power, less what ranks cost."""
    generator = np.random.default_rng(9)
    repetitions, effect, seeds = 600, 1.5, 8
    found = sum(sign_flip_p(generator.normal(effect, 1.0, size=seeds)) <= 0.05 for _ in range(repetitions))
    critical = stats.t.ppf(0.975, seeds - 1)
    theory = 1 - stats.nct.cdf(critical, seeds - 1, effect * math.sqrt(seeds))
    assert found / repetitions == pytest.approx(theory, abs=0.06)


def test_interval_covers():
    generator = np.random.default_rng(10)
    repetitions, covered = 600, 0
    for _ in range(repetitions):
        low, high = sign_flip_interval(generator.normal(0.3, 1.0, size=8))
        covered += low <= 0.3 <= high
    assert covered / repetitions >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / repetitions)
