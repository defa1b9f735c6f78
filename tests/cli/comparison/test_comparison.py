"""Plan, tuning and words of a comparison, without running anything."""

import json
import math
from pathlib import Path

import pytest

from fismo_cli.comparison.analysis import _own_target, _ratio, _settings, _verdicts, check_pairing
from fismo_cli.comparison.contenders import Contender, make_contenders
from fismo_cli.comparison.plan import TUNING_SEED_OFFSET, Plan
from fismo_cli.comparison.records import Point, Record
from fismo_cli.comparison.results import Results, Tuned
from fismo_cli.comparison.studies import random_settings
from fismo_cli.errors import FismoError
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.settings import with_settings
from fismo_cli.tuning.search_space import Choice, Range, default_space, near_bounds


def contenders(*overrides: str, baselines: tuple[str, ...]) -> dict[str, Contender]:
    found, problems = make_contenders(load_preset("digits-vit", overrides), baselines)
    assert problems == []
    return {contender.label: contender for contender in found}


def test_only_the_optimizer_differs():
    found = contenders("optimizer.weight_decay=0.1", baselines=("muon", "adamw", "lion"))
    sections = []
    for contender in found.values():
        values = contender.loaded.preset.model_dump()
        optimizer = values.pop("optimizer")
        sections.append(json.dumps(values, sort_keys=True))
        assert optimizer["weight_decay"] == 0.1
        assert optimizer["adamw"] == load_preset("digits-vit").preset.optimizer.adamw.model_dump()
    assert len(set(sections)) == 1


def test_values_of_the_preset_and_built_in_ones():
    found = contenders("compare.adam={lr: 0.5}", "optimizer.rules={head: matrix}", baselines=("adam", "muon", "soap"))
    assert found["adam"].loaded.preset.optimizer.lr == 0.5
    assert found["muon"].loaded.preset.optimizer.rules == {"head": "matrix"}
    assert contenders(baselines=("lion",))["lion"].loaded.preset.optimizer.lr is None


def test_a_variant_of_the_candidate_starts_from_its_settings():
    found = contenders(
        "optimizer.lr=0.03",
        "compare.twin={name: fismo}",
        "compare.paper={name: fismo, form: paper}",
        baselines=("twin", "paper"),
    )
    assert found["twin"].loaded.preset == found["fismo"].loaded.preset
    paper = found["paper"].loaded.preset.optimizer
    assert (paper.lr, paper.form, paper.metric.power) == (0.03, "paper", 0.5)


def test_runs_differ_by_seed_and_settings_alone():
    muon = contenders(baselines=("muon",))["muon"]
    run = muon.run(7, {"optimizer.lr": 0.5, "optimizer.weight_decay": 0.1, "1 - optimizer.momentum": 0.25}).preset
    assert (run.train.seed, run.optimizer.lr, run.optimizer.momentum, run.optimizer.weight_decay) == (7, 0.5, 0.75, 0.1)
    assert run.model_copy(update={"train": muon.loaded.preset.train, "optimizer": muon.loaded.preset.optimizer}) == (
        muon.loaded.preset
    )
    assert TUNING_SEED_OFFSET > 1000


@pytest.mark.parametrize(
    "name", ["fismo", "muon", "adam", "adamw", "soap", "sgd", "shampoo", "adafactor", "sm3", "rmsprop", "timm/lamb"]
)
def test_every_space_holds_its_start_and_builds_the_optimizer(name):
    import torch

    from fismo_cli.optimizers import build_optimizer

    overrides = [] if name == "fismo" else [f"optimizer.name={name}", "optimizer.lr=0.01"]
    preset = load_preset("digits-vit", overrides).preset
    config = preset.optimizer
    space = default_space(config)
    for where in space.values():
        if isinstance(where, Range):
            assert where.low < where.start < where.high
        else:
            assert where.start in where.values
    for edge in ("low", "high"):
        settings = {
            key: getattr(where, edge) if isinstance(where, Range) else where.values[-1] for key, where in space.items()
        }
        values = with_settings(preset.model_dump(), settings)["optimizer"]
        build_optimizer(type(config).model_validate(values), torch.nn.Sequential(torch.nn.Linear(4, 4)))


def test_settings_near_a_bound_are_named():
    space = {"lr": Range(0.01, 1.0, 0.1), "decay": Choice((0.0, 1.0), 0.0), "damping": Range(0.1, 10.0, 1.0)}
    assert near_bounds(space, {"lr": 0.011, "decay": 1.0, "damping": 1.0}) == ("lr",)
    assert near_bounds(space, {"lr": 0.1, "decay": 0.0, "damping": 9.0}) == ("damping",)


def record(label: str, seed: int, final: float, losses: tuple[float, ...] = (), **hashes: str) -> Record:
    status = "completed" if math.isfinite(final) else "diverged"
    summary = {"seed": seed, "status": status, "metrics": {"validation": {"loss": final}}, "run_dir": f"{label}-{seed}"}
    points = tuple(Point(10 * (i + 1), i + 1.0, {"loss": value}) for i, value in enumerate(losses))
    given = {"initial_weights": "w", "sample_order": "o", **hashes}
    return Record(label, summary, points, given["initial_weights"], given["sample_order"], "cpu", {})


def test_pairing_is_asserted():
    check_pairing([record("a", 0, 1.0), record("b", 0, 2.0), record("a", 1, 1.0, initial_weights="other")])
    with pytest.raises(FismoError, match="initial weights differ: a-0 and b-0"):
        check_pairing([record("a", 0, 1.0), record("b", 0, 2.0, initial_weights="other")])
    with pytest.raises(FismoError, match="sample order differ"):
        check_pairing([record("a", 0, 1.0), record("b", 0, 2.0, sample_order="other")])


def test_the_target_is_the_best_baseline_s_median_and_misses_are_infinite():
    good = [record("a", seed, value) for seed, value in enumerate((1.0, 2.0, 3.0))]
    bad = [record("b", seed, value) for seed, value in enumerate((9.0, math.inf, math.inf))]
    target = _own_target("loss", [bad, good])
    assert target is not None
    assert target.value == 2.0
    assert _own_target("loss", [bad]) is None
    assert record("c", 0, 1.0, (3.0, 2.0, 1.0)).reached(target) == (20.0, 2.0)
    assert record("c", 0, 1.0, (3.0, 2.5)).reached(target) == (math.inf, math.inf)


def test_by_an_accuracy_higher_is_better():
    """Judged by top1 the numbers are those of a loss of 1 - top1, but for the signs that a reader sees."""

    def by(label, seed, hits):
        summary = {**record(label, seed, 1.0).summary, "metrics": {"validation": {"loss": 1 - hits, "top1": hits}}}
        points = tuple(Point(10 * n, float(n), {"loss": 1 - hits * n / 4, "top1": hits * n / 4}) for n in range(1, 5))
        return Record(label, summary, points, "w", "o", "cpu", {})

    above = (0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97)
    hits = {"a": above, "b": (0.89, 0.90, 0.91, 0.92, 0.93, 0.94, 0.95, 0.98)}
    records = {label: [by(label, seed, value) for seed, value in enumerate(values)] for label, values in hits.items()}
    loaded = load_preset("digits-vit")
    contenders = tuple(Contender(label, loaded, label) for label in hits)
    plans = {
        metric: Plan(Path("c"), contenders, tuple(range(8)), 0, 0, 0.005, None, {}, [], metric=metric)
        for metric in ("loss", "top1")
    }
    targets = {metric: _own_target(metric, [records["b"]]) for metric in plans}
    (loss,), (top1,) = (_verdicts(plans[metric], records, targets[metric]) for metric in plans)
    same = ("p_value", "p_holm", "t_p_value", "wins", "ties", "losses", "steps_speedup")
    assert {key: top1[key] for key in same} == {key: loss[key] for key in same}
    for key in ("difference", "effect_size"):
        assert top1[key] == pytest.approx(-loss[key])
    assert top1["ci95"] == pytest.approx([-end for end in reversed(loss["ci95"])])
    assert top1["differences"] == pytest.approx([-each for each in loss["differences"]])
    assert top1["difference"] > 0
    assert targets["top1"].value == pytest.approx(1 - targets["loss"].value)
    tuned = tuple(({}, each) for each in records["a"])
    assert (Tuned(tuned, "top1").best, Tuned(tuned, "loss").best, Tuned(tuned[:3], "top1").best) == (7, 7, 2)


def test_speed_ups_keep_misses():
    assert _ratio([(20.0, 10.0)] * 8) == {"median": 2.0, "ci95": [2.0, 2.0]}
    assert _ratio([(math.inf, 10.0)] * 8)["median"] == "inf"
    assert _ratio([(10.0, math.inf)] * 8)["median"] == 0.0
    assert _ratio([(math.inf, math.inf)] * 8) == {"median": None, "ci95": [0.0, "inf"]}
    assert _ratio([(20.0, 10.0)] * 7 + [(math.inf, math.inf)])["median"] == 2.0


@pytest.mark.parametrize("momentum", ["0", "0.2", "0.999"])
def test_every_draw_from_a_legal_fismo_section_is_legal(momentum):
    fismo = make_contenders(load_preset("digits-vit", [f"optimizer.momentum={momentum}"]), ("muon",))[0][0]
    for number in range(20):
        settings = random_settings(fismo.space, 0, number)
        assert 0 <= fismo.run(1, settings).preset.optimizer.momentum < 1


def test_what_args_fix_is_not_searched():
    found = contenders("compare.adam={args: {betas: [0.5, 0.9], lr: 0.1}}", baselines=("adam",))
    assert set(found["adam"].space) == {"optimizer.weight_decay"}


def test_tuning_needs_a_learning_rate_to_start_from():
    with pytest.raises(ValueError, match="learning rate"):
        default_space(load_preset("digits-vit", ["optimizer.name=adadelta"]).preset.optimizer)


def test_coupled_weight_decay_is_not_the_candidate_s():
    found = contenders("optimizer.weight_decay=0.1", baselines=("adam", "sgd", "adamw"))
    decays = {label: contender.loaded.preset.optimizer.weight_decay for label, contender in found.items()}
    assert decays == {"fismo": 0.1, "adam": 0.0, "sgd": 0.0, "adamw": 0.1}


def test_variance_reduction_is_in_front_of_every_momentum():
    found = contenders(
        *("optimizer.variance_reduction=mars", "optimizer.mars_gamma=0.05", "compare.muon={variance_reduction: null}"),
        baselines=("muon", "adamw"),
    )
    reductions = {label: contender.loaded.preset.optimizer.variance_reduction for label, contender in found.items()}
    assert reductions == {"fismo": "mars", "adamw": "mars", "muon": None}
    assert found["adamw"].loaded.preset.optimizer.mars_gamma == 0.05


def test_a_baseline_s_adamw_is_the_candidate_s_but_for_what_it_says():
    found = contenders("optimizer.adamw.betas=[0.8, 0.9]", "compare.muon.adamw.lr=0.5", baselines=("muon",))
    adamw = found["muon"].loaded.preset.optimizer.adamw
    assert (adamw.lr, adamw.betas) == (0.5, (0.8, 0.9))


def test_a_loss_that_is_not_finite_is_a_divergence():
    broken = record("a", 0, 1.0)
    broken.summary["metrics"]["validation"]["loss"] = None
    assert broken.diverged
    assert broken.cost("loss") == math.inf


def test_the_settings_shown_are_those_of_the_judged_runs():
    lion = contenders(baselines=("lion",))["lion"]
    plan = Plan(Path("c"), (lion,), (0,), 2, 1, 0.005, None, {}, [])
    run = record("lion", 0, 1.0)
    assert _settings(lion, plan, [run], Results())["lr"] is None  # of an earlier version, whose runs do not say
    run.summary["peak_lr"] = {"lr": 1e-4}
    assert _settings(lion, plan, [run], Results())["lr"] == 1e-4
    run.summary["peak_lr"] = {"adamw": 3e-3, "matrix": 0.02}
    assert _settings(lion, plan, [run], Results())["lr"] == 0.02
    best = {"optimizer.lr": 0.5, "optimizer.weight_decay": 0.1}
    shown = _settings(lion, plan, [run], Results({("lion", 0): Tuned(((best, run),))}))
    assert (shown["lr"], shown["weight_decay"]) == (0.5, 0.1)
