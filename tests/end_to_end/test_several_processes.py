"""`fismo train --nproc` and `fismo tune --nproc` on gloo: the same curve as one process, kill, stop, resume."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fismo_cli.runs.class_counts import read_classes
from tests.end_to_end.conftest import Cli, wait_for

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

TEXT = (
    *("stdlib-gpt2", "train.steps=30", "train.batch_size=8", "train.log_every=1", "train.threads=1"),
    *("optimizer.compute_dtype=float32", "evaluate.every=null", "checkpoint.every=null"),
    *("data.validation_fraction=0.004", "data.test_fraction=0", "evaluate.batch_size=4"),
)
# Without augmentation, dropout and batch norm, which depend on who sees which samples.
IMAGES = (
    *("digits-vit", "train.epochs=null", "train.steps=30", "train.log_every=1", "train.threads=1"),
    *("optimizer.compute_dtype=float32", "data.mixup_alpha=0", "evaluate.every=null", "checkpoint.every=null"),
)


def events_of(cli: Cli, run_dir: str) -> list[dict]:
    return [json.loads(line) for line in (cli.folder / run_dir / "metrics.jsonl").read_text().splitlines()]


def noise_of(cli: Cli, run_dir: str) -> list[dict]:
    return [event for event in events_of(cli, run_dir) if event["event"] == "NoiseMeasured"]


def losses(cli: Cli, run_dir: str) -> list[float]:
    return [event["loss"] for event in events_of(cli, run_dir) if event["event"] == "StepLogged"]


def largest_gap(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) == 30
    return max(abs(a - b) / a for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("settings", [TEXT, IMAGES], ids=["text", "images"])
def test_several_processes_train_as_one_does(cli, settings):
    """The gap of a curve by two processes is that by sums in another order, as one with accumulation has it too."""
    one = cli.run("train", *settings, "--json").json
    accumulated = cli.run("train", *settings, "train.accumulate=4", "--json").json
    gaps = []
    for nproc, more in ((2, ()), (2, ("train.accumulate=2",)), (4, ())):
        several = cli.run("train", *settings, *more, "--nproc", nproc, "--json")
        assert several.code == 0, several.err
        assert several.json["world_size"] == nproc
        assert several.json["samples_per_rank"] * nproc == several.json["samples"] == one["samples"]
        gaps.append(largest_gap(losses(cli, one["run_dir"]), losses(cli, several.json["run_dir"])))
        assert several.json["metrics"]["validation"]["loss"] == pytest.approx(
            one["metrics"]["validation"]["loss"], rel=2e-2
        )
        for part, counts in read_classes(cli.folder / several.json["run_dir"] / "classes.json").items():
            assert sum(row.support for row in counts.rows) == {"validation": 216, "test": 359}[part]
    allowed = max(10 * largest_gap(losses(cli, one["run_dir"]), losses(cli, accumulated["run_dir"])), 1e-5)
    assert max(gaps) <= allowed


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_saved_by_four_processes_and_resumed_by_two_and_by_one(cli, parallel):
    """Weights, their average, FISMO's state and AdamW's come back whole, whoever had them; the model is that of one."""
    tiny = ("model.args.n_layer=2", "model.args.n_embd=48", "model.args.n_head=2", "data.block_size=32")
    settings = (*TEXT, *tiny, f"train.parallel={parallel}", "train.ema_decay=0.9", "train.clip_grad_norm=1")
    four = cli.run("train", *settings, "checkpoint.every=15", "--nproc", 4, "--json").json
    run = cli.folder / four["run_dir"]
    assert len(list(run.glob("checkpoints/step-15/shard-*.safetensors"))) == 4
    measured = cli.run("evaluate", run, "--json").json["metrics"]["validation"]
    assert measured["loss"] == pytest.approx(four["metrics"]["validation"]["loss"], rel=1e-6)
    exported = cli.run("export", run, "weights.safetensors", "--json")
    assert exported.json["step"] == 30
    kept, weights = load_file(run / "model.safetensors"), load_file(cli.folder / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in kept.items())
    again = cli.run("train", *settings, "train.steps=1", "model.pretrained=weights.safetensors", "--json")
    assert again.json["metrics"]["train"]["loss"] < 0.7 * losses(cli, run)[0]
    shutil.rmtree(run / "checkpoints" / "step-30")
    (run / "summary.json").unlink()
    for processes in (("--nproc", 2), ()):
        copy = Path(shutil.copytree(run, cli.folder / f"copy{len(processes)}"))
        resumed = cli.run("train", copy / "preset.yaml", "--resume", copy, *processes, "--json")
        assert resumed.code == 0, resumed.err
        assert resumed.json["resumed_from_step"] == 15
        assert largest_gap(losses(cli, run), losses(cli, copy)) < 1e-5
        assert resumed.json["metrics"]["validation"]["loss"] == pytest.approx(measured["loss"], rel=1e-5)


def saved(cli: Cli) -> set[Path]:
    return set(cli.folder.glob("runs/*/*/checkpoints/step-*/complete.json"))


def started_until_it_saves(cli: Cli, *arguments: object) -> subprocess.Popen[str]:
    """`fismo train`, once it has put a checkpoint of its own on the disk."""
    before = saved(cli)
    process = cli.start("train", *arguments)
    wait_for(lambda: saved(cli) - before, process)
    return process


def test_killed_and_restarted_with_spread_weights(cli):
    """A rank that is killed is started again with the others, and the result is that of an undisturbed run."""
    settings = (*LONG, "train.parallel=fsdp2", "--nproc", 2, "--json")
    whole = cli.run("train", *settings).json["metrics"]["validation"]["loss"]
    process = started_until_it_saves(cli, *settings, "--", "--max-restarts=1")
    os.kill(ranks(cli.folder)[-1], signal.SIGKILL)
    restarted = cli.finish(process)
    assert restarted.code == 0, restarted.err
    assert restarted.json["resumed_from_step"] > 0
    assert restarted.json["metrics"]["validation"]["loss"] == whole


def test_noise_radius_and_variance_reduction_are_those_of_one_process(cli):
    """Two processes measure what one process does with two micro-batches, and do the same about it."""
    settings = (
        *(*IMAGES, "train.steps=24", "train.noise_every=6", "train.clip_grad_norm=1.0"),
        *("optimizer.adapt_radius=4", "optimizer.variance_reduction=mars", "optimizer.lr=0.002"),
    )
    one = cli.run("train", *settings, "train.accumulate=2", "--json").json
    assert one["radius_scale"] > 1
    measured = noise_of(cli, one["run_dir"])
    assert len(measured) == 4
    two = {}
    for parallel in ("ddp", "fsdp2"):
        shared = (*settings, f"train.parallel={parallel}", "checkpoint.every=10", "--nproc", 2, "--json")
        done = two[parallel] = cli.run("train", *shared).json
        (cli.folder / done["run_dir"] / "summary.json").unlink()
        shutil.rmtree(cli.folder / done["run_dir"] / "checkpoints" / "step-20")
        again = cli.run("train", *shared, "--resume", "auto").json
        assert again["resumed_from_step"] == 10
        for key in ("metrics", "radius_scale", "noise_scale"):
            assert again[key] == done[key]
        assert done["radius_scale"] == pytest.approx(one["radius_scale"], rel=1e-4)  # sums in another order
        loss = done["metrics"]["validation"]["loss"]
        assert loss == pytest.approx(one["metrics"]["validation"]["loss"], rel=1e-3)
    assert noise_of(cli, two["fsdp2"]["run_dir"]) == []  # it shows no process its own gradients
    for alone, together in zip(measured, noise_of(cli, two["ddp"]["run_dir"]), strict=True):
        assert together["signal"] == pytest.approx(alone["signal"], rel=1e-2)
        assert together["noise"] == pytest.approx(alone["noise"], rel=1e-2)
    assert cli.run("train", *shared, "--dry-run").json["world_size"] == 2


LONG = ("digits-vit", "train.epochs=null", "train.steps=60", "train.log_every=2", "checkpoint.every=5")


def ranks(folder: Path) -> list[int]:
    """The processes that train there, the one that watches them left out; the last rank last."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if (entry / "cwd").readlink() == folder:
                found += [(int(v[5:]), int(entry.name)) for v in environment if v.startswith(b"RANK=")]
        except OSError:
            continue
    return [pid for _, pid in sorted(found)]


def test_killed_stopped_and_resumed(cli):
    """A killed rank is started again as often as was asked for, then the run ends; SIGTERM saves; all of it resumes."""
    whole = cli.run("train", *LONG, "--nproc", 2, "--json").json["metrics"]["validation"]["loss"]
    process = started_until_it_saves(cli, *LONG, "--nproc", 2, "--", "--max-restarts=1")
    before, first = saved(cli), ranks(cli.folder)
    os.kill(first[-1], signal.SIGKILL)
    wait_for(lambda: saved(cli) - before and not set(first) & set(ranks(cli.folder)), process)
    os.kill(ranks(cli.folder)[-1], signal.SIGKILL)
    killed = cli.finish(process)
    assert killed.code == 137
    assert "process 1 of this run was killed by signal 9" in killed.err
    resumed = cli.run("train", *LONG, "--nproc", 2, "--resume", "auto", "--json").json
    assert resumed["resumed_from_step"] > 0
    assert resumed["metrics"]["validation"]["loss"] == whole

    process = started_until_it_saves(cli, *LONG, "--nproc", 2, "--json")
    process.send_signal(signal.SIGTERM)
    stopped = cli.finish(process)
    assert stopped.code == 143
    assert stopped.json["status"] == "interrupted"
    assert ranks(cli.folder) == []
    alone = cli.run("train", *LONG, "--resume", "auto", "--json")
    assert alone.code == 0, alone.err
    assert alone.json["resumed_from_step"] == stopped.json["steps"]
    assert alone.json["metrics"]["validation"]["loss"] == pytest.approx(whole, rel=0.5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train.batch_size=63", "--nproc", 2), 2, "cannot be shared evenly by 2 processes: make it a multiple of 2"),
        (("train.max_loss=0.1", "train.steps=2", "--nproc", 2), 4, "above train.max_loss=0.1"),
        (("train.max_loss=0.1", "train.parallel=fsdp2", "--nproc", 2), 4, "above train.max_loss=0.1"),
        (("train.parallel=none", "--nproc", 2), 2, "train.parallel=none, but there are 2 processes"),
        (("--nproc", 2, "--", "--no-such-flag"), 2, "torchrun does not take --no-such-flag"),
        (("--", "--nnodes=2"), 2, "need --nproc"),
        (("data.source=npz", "data.path=/no/such.npz", "--nproc", 2), 2, "no such file: /no/such.npz"),
        (("data.source=npz", "data.path=broken.npz", "--nproc", 2), 2, "broken.npz: not a readable .npz file"),
    ],
)
def test_errors_are_said_once_with_the_code_of_one_process(cli, arguments, code, message):
    (cli.folder / "broken.npz").write_text("no arrays")
    done = cli.finish(cli.start("train", "digits-vit", "train.epochs=null", "train.steps=5", *arguments))
    assert done.code == code, done.err
    assert done.err.count(message) == 1, done.err


def test_trials_of_several_processes_prune_and_stop_together(cli):
    short = ("digits-vit", "train.epochs=null", "train.steps=30", "train.log_every=2")
    command = ("tune", *short, "--trials", 4, "--nproc", 2, "--workers", 1, "--json")
    done = cli.run(*command, "--pruner", "halving", "--sampler", "random")
    assert done.code == 0, done.err
    assert done.json["trials"]["pruned"] >= 1
    assert sum(done.json["trials"].values()) == 4
    assert ranks(cli.folder) == []
    for trial in done.json["trial_list"]:
        for run in trial["run_dirs"] or ():
            assert json.loads((cli.folder / run / "summary.json").read_text())["world_size"] == 2
    repeated = cli.run("train", done.json["best_preset"], "--nproc", 2, "--json")
    assert repeated.json["metrics"]["validation"]["loss"] == done.json["best"]["value"]

    process = cli.start(*command, "train.steps=300", "checkpoint.every=5")
    wait_for(lambda: list(cli.folder.glob("studies/*/trials/0/*/*/checkpoints/step-*/complete.json")), process)
    process.send_signal(signal.SIGINT)
    stopped = cli.finish(process)
    assert stopped.code == 130
    assert ranks(cli.folder) == []
