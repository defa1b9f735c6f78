"""Search spaces, sampling, the ledger of trials and storages: all of tuning that trains nothing."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from fismo_cli.campaigns import executor, forked
from fismo_cli.campaigns import ledger as ledgers
from fismo_cli.campaigns.ledger import FAILURE, OWNER, best_of, check_hope, give_up, read_ledger, worker
from fismo_cli.campaigns.storage import open_storage, shown_url
from fismo_cli.commands.tune import tune
from fismo_cli.errors import DivergedError, ExitCode, FismoError, PresetError, UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.search_checks import space_notes
from fismo_cli.preset.settings import get_setting, with_settings
from fismo_cli.reporting.tuning_words import notes
from fismo_cli.runs.directory import run_identity
from fismo_cli.training.schedule import total_steps
from fismo_cli.tuning.analysis import summarise_study
from fismo_cli.tuning.plan import (
    Environment,
    Judging,
    StudyPlan,
    make_study_plan,
    space_from_plain,
    study_identity,
    try_out,
)
from fismo_cli.tuning.samplers import StartThenSample, distributions, make_pruner
from fismo_cli.tuning.search_space import Choice, Range, compared_space, tuning_space

ROOT = Path(__file__).parents[3]
SPACE = {"x": Range(1e-3, 1.0, 0.4), "n": Range(1, 8, 2, log=False, integer=True), "kind": Choice(("a", "b"), "b")}


def space(*overrides: str, samples: int = 1222):
    return tuning_space(load_preset("digits-vit", overrides).preset, samples)


def plan(tmp_path, *overrides: str, judging: Judging = Judging()) -> StudyPlan:
    return make_study_plan(
        load_preset("digits-vit", overrides),
        name="study",
        directory=tmp_path,
        judging=judging,
        environment=Environment(threads=1, device="cpu", train_samples=1222),
        url=None,
    )


# The space.


def test_fismo_is_searched_by_damping_rate_momentum_and_batch_size():
    found = space()
    assert found == {
        "optimizer.lr": Range(0.002, 0.2, 0.04),
        "1 - optimizer.momentum": Range(pytest.approx(0.03), pytest.approx(0.5), pytest.approx(0.15)),
        "optimizer.metric.damping": Range(0.01, 1.0, 0.1),
        "train.batch_size": Choice((32, 64, 128, 256), 64),
    }


def test_rates_are_searched_as_widely_as_the_preset_says():
    found = space("tune.range=2")
    assert found["optimizer.lr"] == Range(0.01, 0.08, 0.04)  # the default is 0.02
    assert found["optimizer.metric.damping"] == Range(0.05, 0.2, 0.1)
    preset = load_preset("digits-vit", ["optimizer.name=muon", "optimizer.lr=0.02", "tune.range=2"]).preset
    compared = compared_space(preset.optimizer, preset.tune.range)
    assert compared["optimizer.lr"] == Range(0.01, 0.04, 0.02)
    beside = compared["optimizer.adamw.lr"]
    assert beside.high == pytest.approx(4 * beside.low)


def test_a_bad_start_is_searched_from_but_not_around_alone():
    radius = space("optimizer.lr=0.6")["optimizer.lr"]
    assert (radius.low, radius.high, radius.start) == pytest.approx((0.002, 1.8, 0.6))


def test_other_optimizers_have_spaces_of_their_own():
    assert set(space("optimizer.name=adamw")) == {
        *("optimizer.lr", "optimizer.weight_decay", "1 - optimizer.beta1", "1 - optimizer.beta2", "train.batch_size")
    }
    assert set(space("optimizer.name=muon")) == {
        *("optimizer.lr", "optimizer.weight_decay", "1 - optimizer.momentum", "train.batch_size")
    }
    with pytest.raises(ValueError, match="learning rate"):
        space("optimizer.name=adadelta")
    only = space("optimizer.name=adadelta", "tune.space.optimizer.lr={low: 0.1, high: 1.0}")
    assert set(only) == {"optimizer.lr", "train.batch_size"}


def test_the_preset_adds_narrows_and_takes_out():
    found = space(
        "tune.space.optimizer.metric.damping={low: 0.05, high: 0.2, log: true}",
        "tune.space.optimizer.momentum={low: 0.9, high: 0.99, log: true}",
        "tune.space.optimizer.lr=null",
        "tune.space.optimizer.nesterov={choices: [true, false]}",
        "tune.space.optimizer.metric.refresh_every={low: 5, high: 20}",
        "tune.space.optimizer.adamw.lr={low: 1e-3, high: 1e-2, log: true}",
        "tune.space.data.label_smoothing={low: 0.0, high: 0.2}",
        "tune.space.train.batch_size={choices: [32, 64]}",
        "tune.space.model.args.drop_rate={low: 0.0, high: 0.5}",
    )
    assert found["optimizer.metric.damping"] == Range(0.05, 0.2, 0.1)
    momentum = found["1 - optimizer.momentum"]
    assert (momentum.low, momentum.high, momentum.start) == pytest.approx((0.01, 0.1, 0.1))
    assert "optimizer.lr" not in found
    assert found["optimizer.nesterov"] == Choice((True, False), True)
    assert found["optimizer.metric.refresh_every"] == Range(5, 20, 12, log=False, integer=True)
    assert found["optimizer.adamw.lr"].start == 3e-3
    assert found["data.label_smoothing"] == Range(0.0, 0.2, 0.1, log=False)
    assert found["train.batch_size"] == Choice((32, 64), 64)
    assert found["model.args.drop_rate"] == Range(0.0, 0.5, 0.25, log=False)


def test_the_type_of_a_key_decides_what_is_drawn_not_how_its_bounds_are_written():
    found = space(
        "tune.space.train.clip_grad_norm={low: 1, high: 3}",
        "tune.space.optimizer.metric.damping={low: 1, high: 2}",
        "tune.space.optimizer.metric.refresh_every={low: 5.0, high: 20.0, log: true}",
        "tune.space.train.batch_size={choices: [32.0, 64]}",
        "tune.space.train.ema_decay={choices: [null, 0.5]}",
        "tune.space.model.args.drop_rate={low: 0.0, high: 1}",
        "tune.space.model.args.depth={low: 2, high: 8}",
        "model.args.drop_path_rate=0.1",
        "tune.space.model.args.drop_path_rate={low: 0, high: 1}",
    )
    assert found["train.clip_grad_norm"] == Range(1.0, 3.0, 2.0, log=False)
    assert found["optimizer.metric.damping"] == Range(1.0, 2.0, 1.0, log=False)
    assert found["optimizer.metric.refresh_every"] == Range(5, 20, 10, integer=True)
    assert found["train.batch_size"] == Choice((32, 64), 64)
    assert {type(value) for value in found["train.batch_size"].values} == {int}
    assert found["train.ema_decay"] == Choice((None, 0.5), None)
    assert not any(found[f"model.args.{key}"].integer for key in ("drop_rate", "drop_path_rate"))
    assert found["model.args.depth"].integer
    drawn = distributions(found)["train.clip_grad_norm"]
    assert isinstance(drawn, optuna.distributions.FloatDistribution)
    for optimizer in ("adamw", "timm/adamw"):
        lr = space(f"optimizer.name={optimizer}", "tune.space.optimizer.lr={low: 1, high: 3}")["optimizer.lr"]
        assert lr == Range(1.0, 3.0, lr.start, log=False)


def test_whole_numbers_of_a_key_of_unknown_type_are_noted():
    loaded = load_preset("digits-vit", ["tune.space.model.args.drop_rate={low: 0, high: 1}"])
    (note,) = space_notes(loaded.preset)
    assert "model.args.drop_rate is searched in whole numbers" in note
    assert "write 0.0" in note
    for given in ("drop_rate={low: 0.0, high: 1}", "depth={low: 2, high: 4}"):
        assert space_notes(load_preset("digits-vit", [f"tune.space.model.args.{given}"]).preset) == []


@pytest.mark.parametrize(
    ("searched", "message"),
    [
        ("train.accumulate={low: 1.5, high: 4}", "].low: with 1.5: must be a positive integer"),
        ("train.batch_size={choices: [32, 64.5]}", "with 64.5: must be a positive integer"),
        ("train.clip_grad_norm={choices: [1, big]}", 'with "big": must be a positive number or null'),
        ("optimizer.nesterov={low: 0, high: 1}", "with 0: must be true or false"),
        ("optimizer.metric.damping={choices: [true]}", "must be a number"),
        ("optimizer.metric.damping={choices: [0.1, 0.1]}", "must hold no value twice"),
        ("optimizer.metric.damping={choices: [null]}", "with null: must be a number"),
        ("checkpoint.every={low: 1, high: 3}", "must be a key under optimizer, train"),
        ("train.seed={low: 1, high: 3}", "alike in all trials"),
        ("data.path={choices: [a, b]}", "judged by"),
    ],
)
def test_values_that_a_key_cannot_have_are_refused(searched, message):
    with pytest.raises(PresetError) as caught:
        load_preset("digits-vit", [f"tune.space.{searched}"])
    assert message in str(caught.value)


def test_batch_sizes_fit_the_data_and_the_micro_batches():
    assert space(samples=130)["train.batch_size"] == Choice((32, 64, 128), 64)
    assert space("train.accumulate=64")["train.batch_size"] == Choice((64, 128, 256), 64)
    shared = load_preset("digits-vit").preset
    assert tuning_space(shared, 1222, nproc=64)["train.batch_size"] == Choice((64, 128, 256), 64)
    grows = space("train.batch_growth={max_batch_size: 256}")  # to at least twice the batch size
    assert grows["train.batch_size"] == Choice((32, 64, 128), 64)
    with pytest.raises(ValueError, match="not a multiple of 3"):
        tuning_space(shared, 1222, nproc=3)
    with pytest.raises(ValueError, match=r"train.batch_size: 2048 is more than the 1222 samples"):
        space("tune.space.train.batch_size={choices: [64, 2048]}")
    nothing = [f"tune.space.{key}=null" for key in ("optimizer.metric.damping", "optimizer.lr")]
    nothing += ["tune.space.optimizer.momentum=null", "tune.space.train.batch_size=null"]
    with pytest.raises(ValueError, match="nothing to search"):
        space(*nothing)


def test_every_error_of_a_space_is_found_at_once_on_its_line(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(
        """task: image-classification
model: {library: timm, name: test_vit}
data: {source: digits}
optimizer: {name: fismo}
train: {epochs: 1}
tune:
  metric: perplexity
  space:
    optimizer.dampng: {low: 0.1, high: 1}
    optimizer.metric.damping: {low: 1, high: 0.5}
    optimizer.lr: {low: 0, high: 0.5, log: true}
    optimizer.momentum: {low: 0.5, high: 1.5}
    train.seed: {choices: [1, 2]}
    train.batch_size: {choices: [32, 0]}
    optimizer: {choices: [1]}
    data.split_seed: {choices: [1]}
    optimizer.polar: {choices: [exact, composit]}
    optimizer.nesterov: {choises: [true]}
    train.accumulate: {}
    optimizer.metric.power: {low: 0.1, high: 0.2, choices: [1]}
"""
    )
    with pytest.raises(PresetError) as caught:
        load_preset(str(file))
    problems = "\n".join(caught.value.problems)
    for line, text in (
        (7, "must be one of loss, top1, top5"),
        (9, "Did you mean optimizer.metric.damping?"),
        (10, "must be below high (0.5), got 1"),
        (11, "must be above 0 where log is true"),
        (12, "must be a number from 0 to below 1, got 1.5"),
        (13, "alike in all trials"),
        (14, "with 0: must be a positive integer"),
        (15, "is a section"),
        (16, "judged by"),
        (17, "Did you mean composite?"),
        (18, "Did you mean choices?"),
        (19, "missing; must be a number"),
        (20, "either choices or low and high"),
    ):
        assert [p for p in caught.value.problems if p.startswith(f"preset error: {file}:{line} ") and text in p], (
            line,
            problems,
        )


def test_settings_are_set_and_read_by_name():
    values = load_preset("digits-vit", ["optimizer.name=adamw"]).preset.model_dump()
    changed = with_settings(values, {"1 - optimizer.beta2": 0.25, "optimizer.lr": 0.5, "1 - optimizer.beta1": 0.5})
    assert changed["optimizer"]["betas"] == (0.5, 0.75)
    assert get_setting(changed, "1 - optimizer.beta2") == 0.25
    assert get_setting(values, "optimizer.beta1") == 0.9
    fismo = with_settings(load_preset("digits-vit").preset.model_dump(), {"optimizer.adamw.beta1": 0.5})
    assert fismo["optimizer"]["adamw"]["betas"] == (0.5, 0.95)


def test_another_batch_size_sees_as_many_samples(tmp_path):
    for overrides in ((), ("train.steps=400",)):
        made = plan(tmp_path, *overrides)
        seen = {
            size: total_steps(made.trial({"train.batch_size": size}).preset.train, 1222) * size
            for size in (32, 64, 128)
        }
        assert max(seen.values()) <= 1.06 * min(seen.values()), seen


def test_trials_differ_by_what_was_drawn_alone(tmp_path):
    made = plan(tmp_path, "compare.muon.lr=0.5", judging=Judging(repeats=2, pruner="median"))
    first, second = (
        made.trial({"optimizer.metric.damping": 0.5}).preset,
        made.trial({"optimizer.metric.damping": 0.5}, 1).preset,
    )
    assert (first.train.seed, second.train.seed, first.train.threads) == (0, 1, 1)
    assert first.optimizer.metric.damping == 0.5
    assert first.evaluate.every == 38
    own = made.loaded.preset
    assert first.model_copy(update={"train": own.train, "optimizer": own.optimizer}).model_dump(
        exclude={"evaluate", "checkpoint", "compare"}
    ) == own.model_dump(exclude={"evaluate", "checkpoint", "compare"})
    best = made.best_preset({"optimizer.metric.damping": 0.5}).preset
    assert best.compare == own.compare
    assert best.evaluate.every == own.evaluate.every


def test_what_is_searched_and_how_names_the_study():
    names = [
        study_identity(load_preset("digits-vit", overrides), judging)
        for overrides, judging in (
            ((), Judging()),
            (("optimizer.metric.damping=0.2",), Judging()),
            (("tune.space.optimizer.metric.damping={low: 0.1, high: 0.3}",), Judging()),
            ((), Judging(repeats=2)),
            ((), Judging(pruner="median")),
            ((), Judging(max_memory_gib=3.0)),
        )
    ]
    assert len(set(names)) == len(names)
    assert study_identity(load_preset("digits-vit", ["compare.muon.lr=1.0"]), Judging()) == names[0]
    searched = load_preset("digits-vit", ["tune.space.optimizer.metric.damping={low: 0.1, high: 0.3}"]).preset
    assert run_identity(searched) == run_identity(load_preset("digits-vit").preset)


def test_a_space_survives_json(tmp_path):
    made = plan(tmp_path, "tune.space.optimizer.nesterov={choices: [true, false]}")
    assert space_from_plain(json.loads(json.dumps(made.as_plain()))["space"]) == made.space


# Sampling.


def sampled(name: str, storage: optuna.storages.BaseStorage, count: int) -> list[dict]:
    study = optuna.create_study(
        storage=storage,
        study_name="s",
        load_if_exists=True,
        sampler=StartThenSample(name, SPACE, seed=3, trials=24),
    )
    for _ in range(count):
        trial = study.ask(distributions(SPACE))
        study.tell(trial, (math.log10(trial.params["x"]) + 1.5) ** 2 + trial.params["n"])
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", ["tpe", "gp", "random"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_that_goes_on_draws_what_it_would_have_drawn(name):
    count = 9 if name == "gp" else 20
    whole = sampled(name, optuna.storages.InMemoryStorage(), count)
    parts = optuna.storages.InMemoryStorage()
    for size in (3, 1, count - 4):
        cut = sampled(name, parts, size)
    assert cut == whole
    assert whole[0] == {"x": 0.4, "n": 2, "kind": "b"}
    assert len({params["x"] for params in whole}) == count


def test_tpe_finds_what_random_search_does_not():
    tpe, chance = (sampled(name, optuna.storages.InMemoryStorage(), 40) for name in ("tpe", "random"))
    score = [min((math.log10(p["x"]) + 1.5) ** 2 + p["n"] for p in found) for found in (tpe, chance)]
    assert score[0] < 1.02
    assert score[0] <= score[1]


def test_trials_drawn_at_the_same_time_differ():
    study = optuna.create_study(sampler=StartThenSample("tpe", SPACE, seed=0, trials=40))
    running = [study.ask(distributions(SPACE)).params["x"] for _ in range(12)]
    assert len(set(running)) == 12


def test_pruners():
    study = optuna.create_study(pruner=make_pruner("median"))
    for _ in range(6):
        done = study.ask()
        for step in range(10, 100, 10):
            done.report(1.0, step)
        study.tell(done, 1.0)
    bad = study.ask()
    decisions = []
    for step in range(10, 100, 10):
        bad.report(2.0, step)
        decisions.append(bad.should_prune())
    assert decisions == [False] * 4 + [True] * 5
    assert not optuna.create_study(pruner=make_pruner("none")).ask().should_prune()


# The ledger.


@pytest.fixture
def study(tmp_path):
    return optuna.create_study(storage=open_storage(None, tmp_path), study_name="s")


def ask(study) -> optuna.Trial:
    return study.ask(distributions(SPACE))


def test_a_lost_trial_is_queued_again_with_its_parameters_and_counted_once(study):
    done, failed, lost = ask(study), ask(study), ask(study)
    study.tell(done, 1.0)
    failed.set_user_attr(FAILURE, {"kind": "diverged", "reason": "loss nan"})
    study.tell(failed, state=TrialState.FAIL)
    give_up(study, study.trials[lost.number])
    give_up(study, study.trials[lost.number])  # another worker, a moment later
    ledger = read_ledger(study)
    assert [trial.number for trial in ledger.counted] == [0, 1]
    assert len(ledger.waiting) == 1
    again = ask(study)
    assert again.params == lost.params
    assert ledgers.root(study.trials[again.number]) == lost.number
    give_up(study, study.trials[again.number])
    third = ask(study)
    assert third.params == lost.params
    assert ledgers.root(study.trials[third.number]) == lost.number
    study.tell(third, 0.5)
    assert [trial.number for trial in read_ledger(study).counted] == [0, 1, third.number]


def test_a_trial_that_kills_its_workers_is_given_up_in_the_end(study):
    trial = ask(study)
    params = trial.params
    for _ in range(4):
        give_up(study, study.trials[trial.number])
        if read_ledger(study).waiting:
            trial = ask(study)
            assert trial.params == params
    (counted,) = read_ledger(study).counted
    assert "its worker died 4 times" in counted.user_attrs[FAILURE]["reason"]


def test_a_trial_whose_failure_was_being_told_is_not_run_again(study):
    trial = ask(study)
    trial.set_user_attr(FAILURE, {"kind": "diverged", "reason": "loss nan"})
    give_up(study, study.trials[trial.number])
    ledger = read_ledger(study)
    assert (len(ledger.counted), len(ledger.waiting)) == (1, 0)


def test_workers_know_who_is_gone(tmp_path, study, monkeypatch):
    trial = ask(study)
    with worker(tmp_path, "me") as me, worker(tmp_path, "other"):
        frozen = lambda: study.trials[trial.number]  # noqa: E731
        assert not me.lost(frozen(), others_have_heartbeats=False)  # just drawn
        trial.set_user_attr(OWNER, "me")
        assert not me.lost(frozen(), others_have_heartbeats=False)
        trial.set_user_attr(OWNER, "other")
        assert not me.lost(frozen(), others_have_heartbeats=False)
        trial.set_user_attr(OWNER, "elsewhere")
        assert not me.lost(frozen(), others_have_heartbeats=True)
        assert me.lost(frozen(), others_have_heartbeats=False)
        here = f"{socket.gethostname()}-dead"
        for name in (here, "there-dead"):
            (tmp_path / "workers" / f"{name}.lock").touch()
        trial.set_user_attr(OWNER, here)
        assert me.lost(frozen(), others_have_heartbeats=True)
        trial.set_user_attr(OWNER, "there-dead")
        assert not me.lost(frozen(), others_have_heartbeats=True)
        assert me.lost(frozen(), others_have_heartbeats=False)
        unclaimed = ask(study)
        assert not me.lost(study.trials[unclaimed.number], others_have_heartbeats=True)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 61)
        assert me.lost(study.trials[unclaimed.number], others_have_heartbeats=True)


def test_a_killed_worker_is_gone_once_its_runs_are(tmp_path, study):
    code = (
        "import sys, os, time, subprocess; from pathlib import Path; from fismo_cli.campaigns.ledger import worker\n"
        "with worker(Path(sys.argv[1]), 'other') as me:\n"
        "    run = subprocess.Popen(['sleep', '100'], pass_fds=(me.descriptor,)); print(run.pid, flush=True)\n"
        "    time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    run = int(process.stdout.readline())
    trial = ask(study)
    trial.set_user_attr(OWNER, "other")
    with worker(tmp_path, "me") as me:
        assert not me.lost(study.trials[0], others_have_heartbeats=False)
        process.kill()
        process.wait()
        assert not me.lost(study.trials[0], others_have_heartbeats=False)
        os.kill(run, 9)
        deadline = time.monotonic() + 10
        while not me.lost(study.trials[0], others_have_heartbeats=False):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    process.stdout.close()


def test_the_best_keeps_the_limits(study):
    fast, slow = ask(study), ask(study)
    slow.set_constraint("step seconds", 0.5)
    fast.set_constraint("step seconds", -0.5)
    study.tell(fast, 2.0)
    study.tell(slow, 1.0)
    counted = read_ledger(study).counted
    assert best_of(counted, higher_is_better=False).number == fast.number
    assert best_of(counted[1:], higher_is_better=False) is None


def fail(study, kind: str) -> None:
    trial = ask(study)
    trial.set_user_attr(FAILURE, {"kind": kind, "reason": "no such file"})
    study.tell(trial, state=TrialState.FAIL)


def test_a_search_in_which_everything_fails_stops(study):
    fail(study, "error")
    fail(study, "error")
    check_hope(read_ledger(study))
    with pytest.raises(FismoError, match="no such file"):
        check_hope(read_ledger(study), over=True)
    fail(study, "error")
    with pytest.raises(FismoError, match="all 3 trials failed"):
        check_hope(read_ledger(study))
    study.tell(ask(study), 1.0)
    check_hope(read_ledger(study), over=True)


def test_divergence_everywhere_takes_longer_to_give_up(study):
    for _ in range(11):
        fail(study, "diverged")
    check_hope(read_ledger(study))
    fail(study, "diverged")
    with pytest.raises(DivergedError, match="all 12"):
        check_hope(read_ledger(study))


def test_the_summary_counts_and_names_the_edge(tmp_path):
    made = plan(tmp_path)
    study = optuna.create_study(
        storage=open_storage(None, tmp_path),
        study_name="s",
        sampler=StartThenSample("random", made.space, seed=0, trials=9),
    )
    for value in (3.0, 2.0, 5.0):
        trial = study.ask(distributions(made.space))
        study.tell(trial, value)
    study.add_trial(
        optuna.create_trial(
            value=1.0,
            params={**study.trials[0].params, "optimizer.lr": 0.0021},
            distributions=distributions(made.space),
        )
    )
    fail_trial = study.ask(distributions(made.space))
    fail_trial.set_user_attr(FAILURE, {"kind": "diverged", "reason": "loss nan"})
    study.tell(fail_trial, state=TrialState.FAIL)
    lost = study.ask(distributions(made.space)).number
    give_up(study, study.trials[lost])
    summary = summarise_study(made, study)
    assert summary["trials"] == {"finished": 4, "failed": 1, "pruned": 0}
    assert (summary["best"]["trial"], summary["best"]["value"]) == (3, 1.0)
    assert summary["at_bound"] == ["optimizer.lr"]
    assert set(summary["importances"]) == set(made.space)
    assert len(summary["trial_list"]) == 5
    json.dumps(summary)


def test_trials_side_by_side_have_gpus_of_their_own(monkeypatch):
    loaded = load_preset("digits-vit", ["train.threads=3"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    assert executor._environment(loaded, [1, 2])["CUDA_VISIBLE_DEVICES"] == "7,9"
    assert executor._environment(loaded)["CUDA_VISIBLE_DEVICES"] == "4,7,9"
    assert executor._environment(loaded)["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert executor._environment(loaded, [1, 2])["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_a_dry_run_says_what_is_wrong_or_is_ended(tmp_path):
    wrong = load_preset("digits-vit", ["model.name=no_such_model"])
    failure = executor.dry_run_elsewhere(wrong, tmp_path / "preset.yaml")
    assert isinstance(failure, executor.Failure)
    assert (failure.code, failure.by_accident) == (2, False)
    assert failure.message.startswith("model.name: timm has no model no_such_model")
    begun = time.monotonic()
    endless = load_preset("digits-vit", ["train.batch_size=900", "train.accumulate=900"])
    killed = executor.dry_run_elsewhere(endless, tmp_path / "preset.yaml", leave=lambda: True)
    assert killed == executor.Failure(-9, "its process was killed by SIGKILL, as the system does when memory runs out")
    assert time.monotonic() - begun < 20


def test_a_dry_run_waits_for_nobody_that_it_left_behind(tmp_path, monkeypatch):
    def left(arguments, preset, *, stdout, stderr, **_):
        script = "sleep 60 & echo 'error: no such file: x.png' >&2; echo 'kept: nothing' >&2; exit 2"
        return _Shell(script, stdout=stdout, stderr=stderr)

    monkeypatch.setattr(forked, "start", left)
    begun = time.monotonic()
    failure = executor.dry_run_elsewhere(load_preset("digits-vit"), tmp_path / "preset.yaml")
    assert failure == executor.Failure(2, "no such file: x.png")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo preparing >&2; kill -KILL $$", "its process was killed by SIGKILL"),
        ("echo 'error: a data worker was killed' >&2; exit 1", "a data worker was killed"),
        ("echo 'error: killed by SIGKILL' >&2; exit 137", "killed by SIGKILL"),  # several processes
    ],
)
def test_a_try_that_an_accident_ends_is_not_the_presets_fault(monkeypatch, script, why):
    def shot(arguments, preset, *, stdout, stderr, **_):
        return _Shell(script, stdout=stdout, stderr=stderr)

    monkeypatch.setattr(forked, "start", shot)
    with pytest.raises(FismoError, match=f"a try of a few steps: {why}") as caught:
        try_out(load_preset("digits-vit"), 1, 1)
    assert caught.value.exit_code == ExitCode.FAILED


class _Shell(subprocess.Popen):
    """A shell script in the place of a process that `multiprocessing` started."""

    def __init__(self, script, **streams):
        super().__init__(["sh", "-c", script], **streams)

    @property
    def exitcode(self):
        return self.poll()

    def join(self, seconds=None):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(seconds)


@pytest.mark.parametrize("name", ["", ".", "..", " ", "a/b", "a\nb", "a\0b", "ü" * 101, "a\udcff"])
def test_names_that_no_folder_has_are_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="must be fit for a folder's name"):
        tune(preset="digits-vit", study=name)
    assert list(tmp_path.iterdir()) == []


def test_every_wrong_argument_is_named_at_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        tune(preset="digits-vit", trials=-3, workers=0, sampler="annealing", repeats=0, max_memory=-1.0)
    for text in ("--trials -3", "--workers 0", "--sampler annealing", "--repeats 0", "--max-memory -1.0"):
        assert text in str(caught.value)


# Storages.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql+psycopg://me:hunter2@127.0.0.1:1/db", "Connection refused"),
        ("postgresql+psycopg://me:hunter2@no-such-host.invalid/db", "no-such-host.invalid"),
        ("nonsense hunter2", "not a database's URL"),
        ("sqlite:///hunter2.db", "SQLite"),
        ("postgresql+psycopg://me:hunter2{x}@127.0.0.1:1/db", "Connection refused"),
        ("mysql+nodriver://me:hunter2@host/db", "driver"),
    ],
)
def test_a_storage_that_cannot_be_used(url, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        open_storage(url, tmp_path)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert list(tmp_path.iterdir()) == []


def test_urls_are_shown_without_secrets():
    shown = shown_url("postgresql+psycopg://me:hunter2@host:5432/db?sslpassword=hunter3")
    assert shown == "postgresql+psycopg://me:***@host:5432/db"
    assert "hunter2" not in shown_url("post gres://hunter2")


def test_the_noise_scale_of_the_best_trial_is_named():
    trials = [{"number": number, "noise_scale": scale, "failure": None} for number, scale in ((0, 10.0), (3, 1234.5))]
    summary = {
        "best": {"trial": 3},
        "trial_list": trials,
        "at_bound": [],
        "trials": {"finished": 20},
        "eligible": 20,
        "plan": {"space": {"optimizer.metric.damping": {}}},
    }
    assert "1,234 samples" in notes(summary)[0]
    trials[1]["noise_scale"] = None
    assert notes(summary) == []
