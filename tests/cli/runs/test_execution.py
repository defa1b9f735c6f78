"""One run as a whole, in this process: what must not be lost, and what must not be started."""

import errno
import io
import json
import signal

import pytest
import torch
from rich.console import Console

from fismo_cli.errors import AbortedError, ExitCode, FismoError, UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.reporting.progress import PlainProgress
from fismo_cli.runs import execution, preparation
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.training.evaluation import evaluation_mode
from fismo_cli.training.events import CheckpointSaved, StepLogged
from fismo_cli.training.seeding import rng_state
from fismo_cli.training.trainer import Trainer

SMALL = ["train.epochs=null", "train.steps=6", "train.log_every=2", "evaluate.every=null", "checkpoint.every=null"]


def digits(*overrides):
    return load_preset("digits-vit", [*SMALL, *overrides])


def run_of(runs_dir):
    (path,) = runs_dir.glob("*/*")
    return RunDirectory(path)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_trained_model_that_could_not_be_saved_is_saved_on_resuming_without_training(tmp_path, monkeypatch):
    loaded = digits("train.ema_decay=0.9")
    whole = execution.execute(loaded, runs_dir=tmp_path / "whole")
    save, runs = Trainer._save, tmp_path / "runs"

    def save_without_optimizer(trainer, store, *, with_optimizer=True):
        if with_optimizer:  # this finds no room either: the weights alone must do
            raise FismoError("no room")
        return save(trainer, store, with_optimizer=False)

    with monkeypatch.context() as patch:
        patch.setattr(execution, "link_or_copy", full)
        patch.setattr(Trainer, "_save", save_without_optimizer)
        with pytest.raises(FismoError, match="No space left on device") as caught:
            execution.execute(loaded, runs_dir=runs)
    run = run_of(runs)
    assert run.resume_command in caught.value.__notes__[0]
    assert not run.model.exists()
    (run.path / ".model.1.tmp").mkdir()
    told = io.StringIO()
    sink = PlainProgress(Console(file=told))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", None)  # there is nothing left to train
        summary = execution.execute(loaded, runs_dir=runs, resume="auto", sinks=[sink])
    assert (summary["status"], summary["resumed_from_step"], summary["run_dir"]) == ("completed", 6, str(run.path))
    assert summary["metrics"] == whole["metrics"]
    assert run.weights.read_bytes() == (run_of(tmp_path / "whole").weights).read_bytes()
    assert not list(run.path.glob(".*.tmp"))


def test_the_flat_weights_take_no_room_of_their_own(tmp_path):
    execution.execute(digits(), runs_dir=tmp_path)
    run = run_of(tmp_path)
    assert run.weights.samefile(run.model / "model.safetensors")


def test_a_disk_without_room_for_the_model_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _: preparation.shutil._ntuple_diskusage(9, 9, 300_000))
    with pytest.raises(UsageError, match=r"has 0.3 MiB left, but the trained model alone needs 0.4 MiB"):
        execution.execute(digits(), runs_dir=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_take_the_data_is_refused_before_a_directory_is_made(tmp_path):
    with pytest.raises(UsageError, match=r"cannot take this preset's data.*\([12], 1, 8, 8\).*[Kk]ernel size"):
        execution.execute(digits("model.args={}"), runs_dir=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_trying_the_model_changes_nothing(monkeypatch):
    loaded = load_preset("digits-resnet", SMALL)  # has batch statistics, which a forward in training mode would move
    left = []
    for tried in (True, False):
        if not tried:
            monkeypatch.setattr(preparation, "_try_forward", lambda *_: 1)
        trainer = preparation.prepare(loaded).trainer
        state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        left.append((state, rng_state(), [module.training for module in trainer.model.modules()]))
    for name, value in left[0][0].items():
        assert torch.equal(value, left[1][0][name]), name
    assert str(left[0][1]) == str(left[1][1])
    assert torch.equal(left[0][1]["torch"], left[1][1]["torch"])
    assert left[0][2] == left[1][2]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_full_memory_while_preparing_is_a_sentence(monkeypatch):
    def build(*_, **__):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(preparation, "build_task", build)
    with pytest.raises(FismoError, match="ran out of memory while preparing") as caught:
        preparation.prepare(digits())
    assert caught.value.exit_code == ExitCode.FAILED


class Interrupting:
    """A user who presses Ctrl-C twice at some event."""

    def __init__(self, event):
        self.event = event

    def write(self, event):
        if isinstance(event, self.event):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    def close(self):
        pass


@pytest.mark.parametrize(
    ("event", "words"), [(CheckpointSaved, "nothing was saved after step 4; continue"), (StepLogged, "of this run")]
)
def test_leaving_at_once_says_what_is_lost(tmp_path, event, words):
    with pytest.raises(AbortedError, match=words) as caught:
        execution.execute(digits("checkpoint.every=4"), runs_dir=tmp_path, sinks=[Interrupting(event)])
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert (run_of(tmp_path).resume_command in str(caught.value)) == (event is CheckpointSaved)


def test_auto_tells_of_a_run_in_use_and_does_not_contradict_itself(tmp_path):
    loaded = digits("checkpoint.every=4")
    with pytest.raises(AbortedError):
        execution.execute(loaded, runs_dir=tmp_path, sinks=[Interrupting(CheckpointSaved)])
    told = io.StringIO()
    with run_of(tmp_path).lock():
        sink = PlainProgress(Console(file=told))
        summary = execution.execute(loaded, runs_dir=tmp_path, resume="auto", sinks=[sink])
    assert summary["resumed_from_step"] is None
    assert "another process is training" in told.getvalue()
    assert "starting a new run instead" in told.getvalue()
    assert "no unfinished run" not in told.getvalue()


def test_a_dry_run_names_the_noise_scale_of_the_first_steps():
    longer = ("train.epochs=null", "train.steps=20")
    assert execution.dry_run(digits(*longer))["noise_scale"] > 0
    assert execution.dry_run(digits(*longer, "train.noise_every=null"))["noise_scale"] is None


def test_a_dry_run_has_one_step_time():
    result = execution.dry_run(digits())
    assert result["samples_per_second"] == pytest.approx(64 / result["step_seconds"])
    json.dumps(result)


class Caching(torch.nn.Module):
    """Keeps what it computed of its weights for evaluation, and drops it when training begins, as LeViT does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.kept = None

    def train(self, mode=True):
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self):
        if self.training:
            return self.weight + 1
        self.kept = self.weight + 1 if self.kept is None else self.kept
        return self.kept


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_never_sees_what_a_model_cached_of_earlier_weights(training):
    model = torch.nn.Sequential(Caching(), torch.nn.Dropout().eval()).train(training)
    model[1].eval()
    for weight in (1.0, 2.0):
        with torch.no_grad():
            model[0].weight.fill_(weight)
        with evaluation_mode(model):
            assert model[0]().item() == weight + 1
        assert [module.training for module in model.modules()] == [training, training, False]
