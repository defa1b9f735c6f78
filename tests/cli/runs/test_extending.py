"""A finished run made longer, and an unfinished one that goes on with other records of it."""

import json

import pytest

from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.schema import ScheduleConfig
from fismo_cli.runs.directory import RunDirectory, run_identity
from fismo_cli.runs.execution import execute
from fismo_cli.training.schedule import factor, same_until

SMALL = ["train.epochs=null", "train.log_every=2", "evaluate.every=null", "checkpoint.every=2", "checkpoint.keep=9"]
CONSTANT = "train.schedule={name: constant, warmup: 2}"
STABLE = "train.schedule={name: warmup-stable-decay, warmup: 0, decay: 3}"


def digits(steps, *overrides):
    return load_preset("digits-vit", [*SMALL, f"train.steps={steps}", *overrides])


@pytest.mark.parametrize(("schedule", "begins"), [(CONSTANT, 4), (STABLE, 4)])
def test_a_longer_run_is_the_one_that_was_longer_from_the_start(tmp_path, schedule, begins):
    whole = execute(digits(10, schedule), runs_dir=tmp_path / "whole")
    short = execute(digits(6, schedule, "checkpoint.keep=1"), runs_dir=tmp_path / "short")
    summary = execute(digits(10, schedule), runs_dir=tmp_path / "short", resume=short["run_dir"])
    run = RunDirectory(tmp_path.joinpath(short["run_dir"]))
    assert summary["run_dir"] == short["run_dir"]
    assert (summary["resumed_from_step"], summary["steps"]) == (begins, 10)
    assert summary["metrics"] == whole["metrics"]
    assert run.weights.read_bytes() == (tmp_path / whole["run_dir"] / "model.safetensors").read_bytes()
    assert load_preset(str(run.preset)).preset.train.steps == 10
    steps = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [record["step"] for record in steps if record["event"] == "StepLogged"] == [2, 4, 6, 8, 10]


def test_a_run_whose_learning_rates_would_have_been_others_cannot_be_made_longer(tmp_path):
    short = execute(digits(4), runs_dir=tmp_path)
    before = (tmp_path / short["run_dir"] / "preset.yaml").read_bytes()
    with pytest.raises(UsageError, match=r"with train\.schedule\.name=cosine all learning rates depend"):
        execute(digits(8), runs_dir=tmp_path, resume=short["run_dir"])
    share = ["train.schedule={name: constant, warmup: 0.5}", "checkpoint.every=4"]
    other = execute(digits(4, *share), runs_dir=tmp_path / "share")
    with pytest.raises(UsageError, match=r"train\.schedule\.warmup=0\.5 is a share of its steps"):
        execute(digits(8, *share), runs_dir=tmp_path / "share", resume=other["run_dir"])
    with pytest.raises(UsageError, match=r"this run has completed; .* to make it longer, say train\.steps"):
        execute(digits(4), runs_dir=tmp_path, resume=short["run_dir"])
    with pytest.raises(UsageError, match=r"a run of 4 steps can only be made longer, not 3 steps"):
        execute(digits(3), runs_dir=tmp_path, resume=short["run_dir"])
    with pytest.raises(UsageError, match=r"differs from this one in train\.batch_size"):
        execute(digits(8, "train.batch_size=32"), runs_dir=tmp_path, resume=short["run_dir"])
    assert (tmp_path / short["run_dir"] / "preset.yaml").read_bytes() == before


def test_a_longer_run_needs_a_checkpoint(tmp_path):
    short = execute(digits(3, CONSTANT, "checkpoint.every=null"), runs_dir=tmp_path)
    with pytest.raises(UsageError, match=r"needs a checkpoint"):
        execute(digits(6, CONSTANT, "checkpoint.every=null"), runs_dir=tmp_path, resume=short["run_dir"])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "warmup-stable-decay"])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 3])
def test_two_lengths_have_the_same_rates_as_long_as_their_factors_are_equal(name, warmup):
    schedule = ScheduleConfig(name=name, warmup=warmup)
    same = same_until(20, 30, schedule)
    assert all(factor(step, 20, schedule) == factor(step, 30, schedule) for step in range(same))
    assert same == 20 or factor(same, 20, schedule) != factor(same, 30, schedule)
    assert (same == 20) == (name == "constant" and warmup != 0.2)
    assert (same > 4) == (name in ("constant", "warmup-stable-decay") and warmup != 0.2)


def test_what_changes_no_result_may_change_on_the_way(tmp_path):
    other = ["train.log_every=1", "checkpoint.every=3", "checkpoint.keep=1", "logging.tensorboard=false"]
    assert run_identity(digits(6).preset) == run_identity(digits(6, *other).preset)
    whole = execute(digits(6), runs_dir=tmp_path / "whole")
    cut = execute(digits(6), runs_dir=tmp_path / "cut")
    run = RunDirectory(tmp_path / cut["run_dir"])
    for path in (run.summary, run.weights):
        path.unlink()
    (run.checkpoints / "step-6" / "complete.json").unlink()
    summary = execute(digits(6, *other), runs_dir=tmp_path / "cut", resume="auto")
    assert (summary["run_dir"], summary["resumed_from_step"]) == (cut["run_dir"], 4)
    assert run.weights.read_bytes() == (tmp_path / whole["run_dir"] / "model.safetensors").read_bytes()
    assert load_preset(str(run.preset)).preset.checkpoint.keep == 1
    assert len(list(run.checkpoints.iterdir())) == 1


def test_what_was_done_at_the_end_alone_is_not_carried_on(tmp_path):
    """The last step's evaluation and progress record, which were not due."""
    settings = [CONSTANT, "train.log_every=4", "evaluate.every=4", "train.patience=2", "optimizer.lr=1.0"]
    whole = execute(digits(14, *settings), runs_dir=tmp_path / "whole")
    short = execute(digits(6, *settings), runs_dir=tmp_path / "short")
    longer = execute(digits(14, *settings), runs_dir=tmp_path / "short", resume=short["run_dir"])
    for key in ("steps", "reason", "metrics", "best_step", "best_validation_loss"):
        assert longer[key] == whole[key], key
    records = []
    for summary in (whole, longer):
        lines = (tmp_path / summary["run_dir"] / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        kept = [event for event in events if event["event"] in ("StepLogged", "Evaluated")]
        records.append([(event["step"], event.get("loss"), event.get("metrics")) for event in kept])
    assert records[0] == records[1]
