"""Runs on a GPU: precisions, a compiled model, resuming, studies whose trials are forked, one process of several."""

import pytest

from fismo_cli.errors import ExitCode
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs import execution
from fismo_cli.runs.directory import RunDirectory
from tests.end_to_end.conftest import Cli

pytestmark = pytest.mark.slow
SMALL = ["train.epochs=null", "train.steps=24", "train.log_every=4", "checkpoint.every=8", "train.batch_size=32"]
TEXT = ["train.steps=16", "data.validation_fraction=0.01", "evaluate.every=null", "train.log_every=4"]


class CutOff(BaseException):
    """The process is killed."""


class CuttingOff:
    def write(self, event):
        if type(event).__name__ == "CheckpointSaved":
            raise CutOff


def on_gpu_alone(device, where):
    if device.type == "cpu":
        pytest.skip(f"on the CPU {where} does this")


def train(preset, device, folder, *overrides, **options):
    loaded = load_preset(preset, [f"train.device={device.type}", *overrides])
    return execution.execute(loaded, runs_dir=folder, **options)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_works_in_every_precision(device, tmp_path, precision):
    steps, least = (120, 1.7) if device.type == "cuda" else (24, 2.4)  # 2.3 at first
    summary = train("digits-vit", device, tmp_path, *SMALL, f"train.steps={steps}", f"train.precision={precision}")
    assert summary["status"] == "completed"
    assert summary["metrics"]["validation"]["loss"] < least
    if device.type == "cuda":
        assert summary["peak_memory_bytes"] > 0


@pytest.mark.parametrize("extra", [(), ("train.compile=true",), ("optimizer.adapt_radius=4", "train.noise_every=3")])
def test_text_is_trained_also_compiled_and_measured(device, tmp_path, extra):
    if extra == ("train.compile=true",) and device.type == "cpu":
        pytest.skip("compiled models on the CPU have tests of their own")
    assert train("stdlib-gpt2", device, tmp_path, *TEXT, *extra)["metrics"]["validation"]["loss"] < 4.5  # 5.6 at first


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_ends_with_the_same_weights(device, tmp_path, precision):
    same = [*SMALL, "train.deterministic=true", f"train.precision={precision}"]
    whole = train("digits-vit", device, tmp_path / "whole", *same)
    with pytest.raises(CutOff):
        train("digits-vit", device, tmp_path / "cut", *same, sinks=[CuttingOff()])
    resumed = train("digits-vit", device, tmp_path / "cut", *same, resume="auto")
    assert resumed["metrics"] == whole["metrics"]
    weights = [RunDirectory(next((tmp_path / name).glob("*/*"))).weights.read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_trials_that_are_forked_side_by_side_use_the_device(device, tmp_path):
    on_gpu_alone(device, "end_to_end/test_tune.py and test_compare.py")
    cli = Cli(tmp_path)
    options = [*SMALL, f"train.device={device.type}"]
    done = cli.run("tune", "digits-vit", *options, "--trials", 3, "--workers", 2, "--json")
    assert done.code == ExitCode.DONE, done.err
    assert done.json["trials"] == {"finished": 3, "failed": 0, "pruned": 0}
    done = cli.run("compare", "digits-vit", *options, "--baselines", "muon", "--seeds", 1, "--workers", 2, "--json")
    assert done.code == ExitCode.DONE, done.err


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_one_process_of_torchrun_trains(device, tmp_path, parallel):
    on_gpu_alone(device, "end_to_end/test_several_processes.py")
    cli = Cli(tmp_path)
    done = cli.run(
        *("train", "digits-vit", *SMALL, f"train.device={device.type}", f"train.parallel={parallel}"),
        *("--nproc", 1, "--json"),
    )
    assert done.code == ExitCode.DONE, done.err
    assert done.json["status"] == "completed"
    assert cli.run("evaluate", done.json["run_dir"]).code == ExitCode.DONE
