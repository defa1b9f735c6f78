"""A run that is killed, stopped or damaged, and continued, ends with the very bytes of one that was left alone."""

import json
import random
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import SMALL, Cli, wait_for

pytestmark = pytest.mark.slow
SETTINGS = [*SMALL, "evaluate.every=10", "checkpoint.every=3"]


def interrupt(cli: Cli, number: int, *settings: str):
    """Start a run and send it a signal a random while after its first checkpoint."""
    process = cli.start("train", *settings, "--json")
    wait_for(lambda: list(cli.folder.glob("runs/*/*/checkpoints/step-*/complete.json")), process)
    time.sleep(random.uniform(0.0, 0.4))
    process.send_signal(number)
    done = cli.finish(process)
    (preset,) = cli.folder.glob("runs/*/*/preset.yaml")
    return done, preset.parent


def undisturbed(cli: Cli, *settings: str) -> Path:
    done = cli.run("train", *settings, "--json", "--runs-dir", "whole")
    assert done.code == 0, done.err
    return cli.folder / done.json["run_dir"]


def assert_same_result(left: Path, right: Path) -> None:
    assert (left / "model.safetensors").read_bytes() == (right / "model.safetensors").read_bytes()
    metrics = [json.loads((run / "summary.json").read_text())["metrics"] for run in (left, right)]
    assert metrics[0] == metrics[1]


def logged(run: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["event"] == "StepLogged"]


@pytest.mark.parametrize(
    "settings",
    [
        ["digits-vit", "train.steps=60"],
        ["digits-vit", "optimizer.form=paper", "train.ema_decay=0.9", "train.accumulate=2", "data.workers=2"],
        ["digits-resnet", "data.mixup_alpha=0.2", "train.clip_grad_norm=1.0"],
        ["digits-vit", "train.precision=bfloat16"],
    ],
    ids=["fismo", "paper-ema-accumulate-workers", "resnet-mixup-clip", "bfloat16"],
)
def test_kill_and_resume_gives_the_same_bytes(cli, settings):
    settings = [settings[0], *SETTINGS, *settings[1:]]
    killed, run = interrupt(cli, signal.SIGKILL, *settings)
    assert killed.code == -signal.SIGKILL
    resumed = cli.finish(cli.start("train", *settings, "--resume", "auto", "--json"))
    assert resumed.code == 0, resumed.err
    assert cli.folder / resumed.json["run_dir"] == run
    assert resumed.json["resumed_from_step"] % 3 == 0
    assert f"from step {resumed.json['resumed_from_step']}" in resumed.err
    whole = undisturbed(cli, *settings)
    assert_same_result(run, whole)
    assert logged(run) == logged(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_resuming_gives_the_same_bytes(cli, number, code):
    settings = ["digits-vit", *SETTINGS, "train.steps=60"]
    stopped, run = interrupt(cli, number, *settings)
    assert stopped.code == code, stopped.err
    assert stopped.json["status"] == "interrupted"
    advice = shlex.split(stopped.err.splitlines()[-1].removeprefix("continue with: "))
    assert advice[0] == "fismo"
    resumed = cli.finish(cli.start(*advice[1:], "--json"))
    assert resumed.code == 0, resumed.err
    assert resumed.json["resumed_from_step"] == stopped.json["steps"]
    assert_same_result(run, undisturbed(cli, *settings))


def test_damaged_checkpoint_is_passed_over_and_then_an_error(cli):
    settings = ["digits-vit", *SETTINGS, "train.steps=60"]
    _, run = interrupt(cli, signal.SIGTERM, *settings)
    steps = sorted((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    backup = {path: path.read_bytes() for step in steps for path in step.glob("*.safetensors")}
    for path in backup:
        path.write_bytes(b"")
    broken = cli.run("train", *settings, "--resume", run)
    assert broken.code == 1
    assert "No whole checkpoint" in broken.err
    for path in list(backup)[:-1]:
        path.write_bytes(backup[path])
    resumed = cli.run("train", *settings, "--resume", run, "--json")
    assert resumed.code == 0, resumed.err
    assert f"{steps[-1].name} is broken" in resumed.err
    assert resumed.json["resumed_from_step"] == int(steps[-2].name[5:])
    assert_same_result(run, undisturbed(cli, *settings))


def test_auto_starts_anew_where_nothing_is_to_be_continued(cli):
    first = cli.run("train", "digits-vit", *SMALL, "--resume", "auto", "--json")
    assert "starting a new one" in first.err
    assert first.json["resumed_from_step"] is None
    second = cli.run("train", "digits-vit", *SMALL, "--resume", "auto", "--json")
    assert second.json["run_dir"] != first.json["run_dir"]
    refused = cli.run("train", "digits-vit", *SMALL, "--resume", first.json["run_dir"])
    assert refused.code == 2
    assert "completed" in refused.err
    other = cli.run("train", "digits-vit", *SMALL, "train.seed=4", "--resume", first.json["run_dir"])
    assert other.code == 2
    assert "train.seed (0 there, 4 here)" in other.err
