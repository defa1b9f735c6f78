"""Every way out of training: it ends soon, in words, and what was trained is kept."""

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fismo_cli.errors import AbortedError, DataError, ExitCode, FismoError, UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig
from fismo_cli.reporting.jsonl import JsonlSink
from fismo_cli.reporting.tensorboard import TensorBoardSink
from fismo_cli.runs import execution, preparation
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.training import signals
from fismo_cli.training.data import loading
from fismo_cli.training.data.loading import fetch
from fismo_cli.training.distributed.world import World
from fismo_cli.training.events import CheckpointSaved, Finished, Noticed, StepLogged
from fismo_cli.training.instruments import NoiseInstrument
from fismo_cli.training.loss import TrainingLoss
from fismo_cli.training.signals import StopRequest
from fismo_cli.training.state import LossWindow
from fismo_core import StepProbe
from tests.cli.training.fakes import PointsPart, PointsTask, make_trainer, store_in, weights

MAIN = os.getpid()
SMALL = ["train.epochs=null", "train.steps=6", "train.log_every=2", "evaluate.every=null", "checkpoint.every=null"]


class Failing(PointsPart):
    """Does something at its sample 7."""

    def __init__(self, fail):
        super().__init__(50)
        self.fail = fail

    def __getitems__(self, keys):
        if any(index == 7 for _, index in keys):
            self.fail()
        return super().__getitems__(keys)


def throw(error):
    def fail(*_, **__):
        raise error

    return fail


def events_of(trainer, **arguments):
    events = list(trainer.fit(**arguments))
    assert isinstance(events[-1], Finished)
    return events


def assert_equal_weights(left, right):
    for name, value in weights(left).items():
        assert torch.equal(value, weights(right)[name]), name


@pytest.mark.parametrize(
    ("fail", "kind", "words"),
    [
        (throw(KeyError("pixels")), FismoError, r"^sample 7 of the data could not be read: KeyError: 'pixels' \(test_"),
        (throw(UsageError("a.png: no image")), UsageError, r"^a\.png: no image$"),
        (throw(MemoryError()), FismoError, r"^memory ran out while 5 samples were read"),
    ],
    ids=["KeyError", "UsageError", "MemoryError"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_a_part_raises_is_a_sentence(fail, kind, words, workers):
    batches = fetch(Failing(fail), [[(0, i) for i in range(b, b + 5)] for b in range(0, 50, 5)], workers=workers)
    with pytest.raises(kind, match=words):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "a data worker was killed by SIGKILL"),
        (lambda: os._exit(3), "a data worker ended with exit code 3"),
    ],
    ids=["kill", "exit"],
)
def test_a_worker_that_dies_ends_the_iteration_with_a_sentence(fail, words):
    started = time.monotonic()
    at_once = "the data workers could not go on: DataLoader worker"  # before the loader has its first batch
    with pytest.raises(FismoError, match=f"{words}|{at_once}"):
        list(fetch(Failing(fail), [[(0, i)] for i in range(50)], workers=2))
    assert time.monotonic() - started < 12
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_a_sentence_also_after_a_loader_of_somebody_elses(monkeypatch):
    """Which leaves torch's own handler of dead children behind: it would raise in the middle of whatever is done."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)  # it does so once
    list(torch.utils.data.DataLoader([1, 2], num_workers=1))
    assert signal.getsignal(signal.SIGCHLD).__module__.startswith("torch.")
    with pytest.raises(FismoError, match=r"a data worker was killed by SIGKILL|could not go on: DataLoader"):
        list(fetch(Failing(lambda: os.kill(os.getpid(), signal.SIGKILL)), [[(0, i)] for i in range(50)], workers=2))
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_workers_end_with_the_iteration_also_when_one_hangs(monkeypatch):
    monkeypatch.setattr("fismo_cli.training.data.loading.END_SECONDS", 0.3)
    batches = fetch(Failing(lambda: time.sleep(100)), [[(0, i)] for i in range(50)], workers=2)
    next(batches)
    started = time.monotonic()
    batches.close()
    assert time.monotonic() - started < 5
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_data_is_waited_for_saves_and_leaves(tmp_path, workers, number, monkeypatch):
    monkeypatch.setattr("fismo_cli.training.data.loading.END_SECONDS", 0.3)

    def slow():
        time.sleep(0.7)
        os.kill(MAIN, number)  # by now the trainer waits for this sample
        time.sleep(30)

    task = PointsTask(train=Failing(slow), validation=None, test=None)
    started = time.monotonic()
    trainer = make_trainer(task, workers=workers)
    summary = events_of(trainer, store=store_in(tmp_path))[-1].summary
    assert time.monotonic() - started < 10
    assert (summary["status"], summary["signal"]) == ("interrupted", number)
    assert store_in(tmp_path).newest() == summary["steps"] == trainer.step
    assert not multiprocessing.active_children()


def test_a_second_signal_leaves_at_once_but_one_that_is_sent_twice_is_one(monkeypatch):
    with StopRequest() as stop:
        for _ in range(3):  # to the process and to its group, as `timeout` does
            os.kill(MAIN, signal.SIGTERM)
        assert stop.requested()
        monkeypatch.setattr(signals, "TWICE_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_a_step_that_fails_half_way_is_undone_and_the_one_before_is_kept_to_the_bit(tmp_path, monkeypatch):
    """With dropout and batch norm, whose state a forward pass changes, in the second of two micro-batches."""
    whole, failing = make_trainer(accumulate=2), make_trainer(accumulate=2)
    events_of(whole)
    loss, calls = TrainingLoss.__call__, []

    def fail(own, batch, model=None):
        calls.append(1)
        result = loss(own, batch, model)
        if len(calls) == 14:
            raise RuntimeError("mat1 and mat2")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoss, "__call__", fail)
        with pytest.raises(RuntimeError, match="mat1") as caught:
            events_of(failing, store=store_in(tmp_path))
    assert failing.rescue(store_in(tmp_path), caught.value) is None
    loaded = store_in(tmp_path).load()
    assert loaded.step == 6
    resumed = make_trainer(accumulate=2)
    events_of(resumed, resume=loaded)
    assert_equal_weights(resumed, whole)


def test_weights_that_an_optimizer_left_half_changed_are_not_saved(tmp_path):
    trainer = make_trainer(checkpoint=CheckpointConfig(every=2))
    step = trainer.optimizer.step

    def fail(*arguments):
        if trainer.step == 4:
            raise ValueError("no such state")
        return step(*arguments)

    trainer.optimizer.step = fail
    with pytest.raises(ValueError, match="no such") as caught:
        events_of(trainer, store=store_in(tmp_path))
    assert trainer.rescue(store_in(tmp_path), caught.value) is None  # step 4 had been saved
    trainer._saved_step = None
    assert "while the weights were changing" in trainer.rescue(store_in(tmp_path), caught.value)


@pytest.mark.parametrize(("split", "workers"), [("validation", 0), ("test", 2)])
def test_a_part_that_cannot_be_evaluated_loses_nothing(tmp_path, monkeypatch, split, workers):
    loaded = load_preset("digits-vit", [*SMALL, f"data.workers={workers}"])
    whole = execution.execute(loaded, runs_dir=tmp_path / "whole")
    build = preparation.build_task

    def broken(preset, **options):
        task = build(preset, **options)
        part = getattr(task, split)
        object.__setattr__(task, split, _Broken(len(part)))
        return task

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "build_task", broken)
        with pytest.raises(DataError, match="not a readable image") as caught:
            execution.execute(loaded, runs_dir=tmp_path / "runs")
    assert caught.value.exit_code == ExitCode.FAILED
    (path,) = tmp_path.glob("runs/*/*")
    run = RunDirectory(path)
    assert run.resume_command in caught.value.__notes__[0]
    assert run.weights.exists() == (split == "test")
    summary = execution.execute(loaded, runs_dir=tmp_path / "runs", resume="auto")
    assert summary["metrics"] == whole["metrics"]
    assert run.weights.read_bytes() == (RunDirectory(next(tmp_path.glob("whole/*/*"))).weights).read_bytes()


class _Broken:
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitems__(self, keys):
        raise DataError("test/dog/003.png: not a readable image")


def test_a_full_disk_at_the_record_keeps_the_weights_and_at_tensorboard_the_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    loaded = load_preset("digits-vit", [*SMALL, "train.log_every=1", "logging.tensorboard=true"])
    write, told = JsonlSink.write, []

    def full_at_step_four(sink, event):
        if getattr(event, "step", 0) == 4:
            sink.close = throw(OSError(errno.ENOSPC, "No space left on device"))  # as a file that holds unwritten text
            sink.close()
        write(sink, event)

    class Told:
        def write(self, event):
            told.append(event)

        def close(self):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(JsonlSink, "write", full_at_step_four)
        patch.setattr(TensorBoardSink, "write", throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match="No space") as caught:
            execution.execute(loaded, runs_dir=tmp_path, sinks=[Told()])
    (run,) = map(RunDirectory, tmp_path.glob("*/*"))
    assert caught.value.filename == str(run.metrics)
    assert "continue from step 4 with" in caught.value.__notes__[0]
    notes = [event.message for event in told if isinstance(event, Noticed)]
    assert [note for note in notes if "TensorBoard gets no more of this run" in note] == notes[-1:]
    assert execution.execute(loaded, runs_dir=tmp_path, resume="auto")["status"] == "completed"


def test_leaving_at_once_by_sigterm_has_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "TWICE_SECONDS", 0.0)

    class Impatient:
        def write(self, event):
            if getattr(event, "step", 0) == 4:
                os.kill(MAIN, signal.SIGTERM)
                time.sleep(0.01)
                os.kill(MAIN, signal.SIGTERM)
                time.sleep(1)

        def close(self):
            pass

    with pytest.raises(AbortedError) as caught:
        execution.execute(load_preset("digits-vit", SMALL), runs_dir=tmp_path, sinks=[Impatient()])
    assert caught.value.exit_code == ExitCode.TERMINATED


@pytest.mark.parametrize("broken", ["half", "signal", "probe"])
def test_a_measurement_that_fails_is_noted_once_and_changes_nothing(monkeypatch, broken):
    settings = {"batch_size": 2, "fismo": broken == "probe"}
    plain = make_trainer(**settings)
    events_of(plain)
    if broken == "signal":  # where whole batches of two go through batch norm well, and the arithmetic fails
        monkeypatch.setattr("fismo_core.noise.signal_and_noise", throw(torch.linalg.LinAlgError("singular")))
        monkeypatch.setattr(NoiseInstrument, "_measure_half", lambda noise, batch: noise.meter.add_piece({}))
    if broken == "probe":
        monkeypatch.setattr(StepProbe, "sums", throw(torch.linalg.LinAlgError("singular")))
        measured = make_trainer(**settings, adapt_radius=2)
    else:
        measured = make_trainer(**settings, noise_every=3)
    notes = [event.message for event in events_of(measured) if isinstance(event, Noticed)]
    assert len(notes) == 1
    assert "could not be measured" in notes[0]
    assert ("value per channel" if broken == "half" else "singular") in notes[0]
    assert_equal_weights(measured, plain)


def test_a_dry_run_outlives_its_measurement(tmp_path):
    from tests.cli.runs.test_execution import digits

    trainer = make_trainer(batch_size=2)
    seconds, noise_scale = trainer.try_steps(3, measured=2)
    assert (len(seconds), noise_scale) == (3, None)
    assert "could not be measured" in trainer.take_notes()[0]
    assert execution.dry_run(digits("train.noise_every=null"))["notes"] == []


class TwoProcesses(World):
    """The first of two, which knows what the second one's losses are: this one's in reverse."""

    def mean(self, value):
        return (value + value.flip(0) if value.dim() else value * 2) / 2


def test_the_largest_loss_is_that_of_a_step_not_of_a_process():
    window = LossWindow(torch.device("cpu"), max_loss=6.0, world=TwoProcesses(0, 1))
    for loss in (1.0, 9.0):
        window.add(torch.tensor(loss))
    assert window.problem() is None  # 5 in both steps, though each process has seen a 9
    window.add(torch.tensor(7.0))
    assert "7 is above train.max_loss=6" in window.problem()


def test_a_batch_too_small_for_batch_norm_is_refused_before_training(tmp_path):
    small = ["train.batch_size=2", "train.accumulate=2"]
    with pytest.raises(UsageError, match=r"train\.accumulate=2 .* one sample at a time"):
        preparation.prepare(load_preset("digits-resnet", [*SMALL, *small, "data.image_size=8"]))
    preparation.prepare(load_preset("digits-vit", [*SMALL, *small]))


def test_divergence_names_the_checkpoint_that_is_kept(tmp_path, monkeypatch):
    loss = TrainingLoss.__call__
    calls = []

    def poisoned(own, batch, model=None):
        calls.append(1)
        return loss(own, batch, model) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(TrainingLoss, "__call__", poisoned)
    loaded = load_preset("digits-vit", [*SMALL, "checkpoint.every=2"])
    summary = execution.execute(loaded, runs_dir=tmp_path)
    assert (summary["status"], summary["kept_step"]) == ("diverged", 4)


def test_a_short_last_evaluation_batch_and_an_interrupted_evaluation(tmp_path):
    class Slow(PointsTask):
        def measure(self, model, batch):
            if self.__dict__.setdefault("calls", 0) == 2:
                os.kill(MAIN, signal.SIGTERM)
            self.__dict__["calls"] += 1
            return super().measure(model, batch)

    task = Slow(train=PointsPart(50, 0.1), validation=PointsPart(11), test=None)
    trainer = make_trainer(task, evaluate=EvaluateConfig(every=4, batch_size=2))
    summary = events_of(trainer, store=store_in(tmp_path))[-1].summary
    assert (summary["status"], summary["steps"]) == ("interrupted", 4)
    resumed, whole = make_trainer(), make_trainer()
    events_of(resumed, resume=store_in(tmp_path).load())
    events_of(whole)
    assert_equal_weights(resumed, whole)


def test_a_run_whose_directory_is_removed_meanwhile_can_still_be_continued(tmp_path):
    class Removing:
        def __init__(self):
            self.notes = []

        def write(self, event):
            if isinstance(event, StepLogged) and event.step == 4:
                shutil.rmtree(next(tmp_path.glob("*/*")))
            if isinstance(event, CheckpointSaved) and event.step == 5:
                os.kill(MAIN, signal.SIGTERM)
            if isinstance(event, Noticed):
                self.notes.append(event.message)

        def close(self):
            pass

    loaded, sink = load_preset("digits-vit", [*SMALL, "checkpoint.every=5"]), Removing()
    assert execution.execute(loaded, runs_dir=tmp_path, sinks=[sink])["status"] == "interrupted"
    assert [note for note in sink.notes if "was removed while" in note] == sink.notes[-1:]
    assert execution.execute(loaded, runs_dir=tmp_path, resume="auto")["resumed_from_step"] == 6  # the step after it


def test_a_record_that_lacks_its_last_line_alone_is_said_to_be_of_a_complete_run(tmp_path, monkeypatch):
    write = JsonlSink.write

    def full_at_the_end(sink, event):
        if isinstance(event, Finished):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(sink, event)

    monkeypatch.setattr(JsonlSink, "write", full_at_the_end)
    with pytest.raises(OSError, match="No space") as caught:
        execution.execute(load_preset("digits-vit", SMALL), runs_dir=tmp_path)
    (run,) = map(RunDirectory, tmp_path.glob("*/*"))
    assert caught.value.__notes__ == [f"The run is complete: its model and summary are in {run.path}"]
    assert run.status() == "completed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system tells processes of their parent's end on Linux alone")
def test_processes_of_a_torchrun_that_is_killed_while_they_import_end(monkeypatch):
    """They would look for it for ten minutes."""
    for name, value in {
        **{"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "LOCAL_RANK": "0"},
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    }.items():
        monkeypatch.setenv(name, value)
    torchrun = (
        "import subprocess, sys; command = [sys.executable, '-m', 'fismo_cli', 'train', 'digits-vit', '--dry-run']\n"
        "child = subprocess.Popen(command, stdout=2)\n"
        "while 'libtorch' not in open(f'/proc/{child.pid}/maps').read(): pass\n"
        "print(child.pid)"
    )
    rank = int(subprocess.run([sys.executable, "-c", torchrun], stdout=subprocess.PIPE, check=True).stdout)
    deadline = time.monotonic() + 60
    try:
        while Path(f"/proc/{rank}/maps").exists() and Path(f"/proc/{rank}/maps").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)


def test_a_worker_says_nothing_of_a_peer_that_was_killed(capsys):
    for error in (EOFError(), ConnectionResetError(104, "reset"), BrokenPipeError(32, "pipe")):
        loading._quiet_about_peers(type(error), error, None)
    assert capsys.readouterr().err == ""
    loading._quiet_about_peers(ValueError, ValueError("what"), None)
    assert "ValueError: what" in capsys.readouterr().err
