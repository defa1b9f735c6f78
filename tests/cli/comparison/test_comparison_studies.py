"""Tuning as the unit of a comparison: what is searched, what is drawn, and how often verdicts err, by simulation."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fismo_cli.comparison.budget import by_budget
from fismo_cli.comparison.contenders import make_contenders
from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.statistics import compare_paired, decide, holm
from fismo_cli.comparison.studies import random_settings
from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.tuning.search_space import Choice, Range
from tests.cli.comparison.test_comparison_beginning import asked

FOUR = {
    "fismo": {"optimizer.lr", "optimizer.weight_decay", "1 - optimizer.momentum", "optimizer.adamw.lr"},
    "muon": {"optimizer.lr", "optimizer.weight_decay", "1 - optimizer.momentum", "optimizer.adamw.lr"},
    "soap": {"optimizer.lr", "optimizer.weight_decay", "1 - optimizer.beta1", "optimizer.adamw.lr"},
    "adamw": {"optimizer.lr", "optimizer.weight_decay", "1 - optimizer.beta1", "1 - optimizer.beta2"},
    "lion": {"optimizer.lr", "optimizer.weight_decay", "1 - optimizer.beta1", "1 - optimizer.beta2"},
}


def test_every_optimizer_is_tuned_over_as_many_settings():
    found, problems = make_contenders(load_preset("digits-vit"), tuple(FOUR)[1:])
    assert problems == []
    assert {contender.label: set(contender.space) for contender in found} == FOUR
    for contender in found:
        for number in range(20):
            settings = random_settings(contender.space, 5, number)
            optimizer = contender.run(1, settings).preset.optimizer  # would be refused if it were not legal
            assert optimizer.lr == settings["optimizer.lr"]


def test_random_draws_are_uniform_and_depend_on_nothing_but_seed_and_number():
    space = {
        "log": Range(1e-3, 1.0, 0.1),
        "linear": Range(2.0, 4.0, 3.0, log=False),
        "choice": Choice((0.0, 0.1, 0.3, 0.5), 0.0),
    }
    drawn = [random_settings(space, seed, number) for seed in range(200) for number in range(3)]
    assert drawn == [random_settings(space, seed, number) for seed in range(200) for number in range(3)]
    positions = [math.log(settings["log"] / 1e-3) / math.log(1e3) for settings in drawn]
    assert stats.kstest(positions, "uniform").pvalue > 0.01
    assert stats.kstest([(settings["linear"] - 2) / 2 for settings in drawn], "uniform").pvalue > 0.01
    counts = [sum(settings["choice"] == value for settings in drawn) for value in space["choice"].values]
    assert stats.chisquare(counts).pvalue > 0.01
    assert abs(stats.pearsonr(positions[:-1], positions[1:]).statistic) < 0.1


def test_studies_put_together_are_longer_ones():
    found = [3.0, 1.0, 2.0, math.inf, 5.0, 4.0, 7.0]
    judged = [30.0, 10.0, 20.0, 90.0, 50.0, 40.0, 70.0]
    budgets = {budget.trials: budget for budget in by_budget(found, judged, 5)}
    assert list(budgets) == [5, 10]
    assert (budgets[5].searches, budgets[10].searches) == (7, 3)  # the last one has no partner
    assert budgets[5].mean == pytest.approx(np.mean(judged))
    assert budgets[5].standard_deviation == pytest.approx(np.std(judged, ddof=1))
    assert budgets[10].mean == pytest.approx(np.mean([10.0, 20.0, 40.0]))
    diverged = by_budget(found, [math.inf, *judged[1:]], 5)
    assert (diverged[0].mean, diverged[0].standard_deviation) == (math.inf, None)
    assert diverged[1].mean == budgets[10].mean  # its partner is better
    assert by_budget([1.0], [1.0], 5) == []


def test_seeds_and_studies_go_together(tmp_path):
    root = tmp_path
    assert (len(asked(root, "muon", seeds=None).seeds), asked(root, "muon", seeds=None).studies) == (8, 0)
    tuned = asked(root, "muon", seeds=None, tune_trials=5)
    assert (len(tuned.seeds), tuned.studies) == (8, 8)
    more = asked(root, "muon", seeds=None, tune_trials=5, studies=12)
    assert (len(more.seeds), more.studies, more.directory) == (12, 12, tuned.directory)  # goes on with it
    once = asked(root, "muon", seeds=None, tune_trials=5, studies=1)
    assert (len(once.seeds), once.studies) == (8, 1)
    assert once.directory != tuned.directory
    with pytest.raises(UsageError, match="--studies 4: must be the number of seeds, 8"):
        asked(root, "muon", seeds=8, tune_trials=5, studies=4)
    with pytest.raises(UsageError, match="--studies 8: nothing is tuned"):
        asked(root, "muon", seeds=None, studies=8)
    assert list(root.iterdir()) == []


def test_every_study_has_seeds_of_its_own(tmp_path):
    found, _ = make_contenders(load_preset("digits-vit", ["train.seed=3"]), ("muon",))
    plan = Plan(tmp_path, tuple(found), (3, 4, 5), 2, 3, 0.005, None, {}, [])
    seeds = [plan.tuning_seed(study) for study in range(3)]
    assert len({*seeds, *plan.seeds}) == 6
    assert [plan.study_of(seed) for seed in plan.seeds] == [0, 1, 2]
    places = {plan.tuning_dir(contender, study) for contender in found for study in range(3)}
    assert len(places) == 6
    assert plan.total_runs == 2 * (3 * 2 + 3)
    single = Plan(tmp_path, tuple(found), (3, 4, 5), 2, 1, 0.005, None, {}, [])
    assert [single.study_of(seed) for seed in single.seeds] == [0, 0, 0]
    assert single.tuning_dir(found[0], 0) == Path(tmp_path / "tuning" / "fismo")


# How often a verdict errs. Optimizers are bowls over four settings, with noise between seeds of deviation SPREAD, half
# of it shared by the runs of a seed (initial weights and batches), as pairs have it.

SPACE = {f"x{index}": Range(0.0, 1.0, 0.5, log=False) for index in range(4)}
FLOOR, SPREAD, STEEP = 2.0, 0.01, 0.15


def trained(settings: dict, better_by: float, *noise: np.random.Generator) -> float:
    bowl = STEEP * sum((settings[name] - 0.4) ** 2 for name in SPACE)
    return FLOOR - better_by + bowl + SPREAD * math.sqrt(0.5) * sum(source.normal() for source in noise)


def search(seed: int, trials: int, better_by: float, noise: np.random.Generator) -> dict:
    drawn = [random_settings(SPACE, seed, number) for number in range(trials)]
    return min(drawn, key=lambda settings: trained(settings, better_by, noise, noise))


def verdict(repetition: int, better_by: float = 0.0, *, studies: int, trials: int, same_draws: bool) -> str:
    """Of a comparison of eight seeds of two optimizers that are alike, but for a constant."""
    losses = []
    for number, ahead in enumerate((better_by, 0.0)):
        own = np.random.default_rng([repetition, 1 + number])
        first = 1000 * repetition + (0 if same_draws else 100 * number)
        chosen = [search(first + study, trials, ahead, own) for study in range(studies)]
        shared = [np.random.default_rng([repetition, 10 + seed]) for seed in range(8)]
        losses.append([trained(chosen[seed % studies], ahead, shared[seed], own) for seed in range(8)])
    paired = compare_paired(*losses)
    margin = 0.005 * float(np.mean(losses[1]))
    return decide(paired, p_holm=holm([paired.p_value])[0], margin=margin, seeds=8, baselines=1)


def share(verdicts: list[str], *wanted: str) -> float:
    return sum(found in wanted for found in verdicts) / len(verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("same_draws", [True, False])
def test_equal_optimizers_are_called_unlike_as_rarely_as_the_level_says(same_draws):
    """Tuning included: each is tuned apart in eight studies of five trials; 1,000 comparisons."""
    found = [verdict(number, studies=8, trials=5, same_draws=same_draws) for number in range(1000)]
    called = share(found, "better", "worse")
    print(f"\nequal, 8 studies of 5 trials, {'the same' if same_draws else 'other'} draws: {100 * called:.1f} % unlike")
    assert 0.02 <= called <= 0.08


@pytest.mark.slow
def test_one_search_for_all_seeds_errs_far_more_often():
    """What the note under such a comparison says."""
    found = [verdict(number, studies=1, trials=10, same_draws=False) for number in range(500)]
    called = share(found, "better", "worse")
    print(f"\nequal, 1 study of 10 trials: {100 * called:.1f} % called better or worse")
    assert called > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("same_draws", [True, False])
def test_a_difference_of_two_deviations_is_seen(same_draws):
    found = [verdict(number, 2 * SPREAD, studies=8, trials=5, same_draws=same_draws) for number in range(300)]
    draws = "the same" if same_draws else "other"
    print(f"\n2 deviations, 8 studies of 5 trials, {draws} draws: {100 * share(found, 'better'):.1f} % better")
    assert share(found, "worse") == 0
    assert share(found, "better") > (0.6 if same_draws else 0.3)
