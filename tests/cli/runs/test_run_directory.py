import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from fismo_cli.errors import FismoError, UsageError
from fismo_cli.preset.loading import identity, load_preset
from fismo_cli.reporting.jsonl import JsonlSink, truncate_after
from fismo_cli.runs.directory import RunDirectory, check_same_preset, unfinished_runs, write_json
from fismo_cli.training.events import Evaluated, Finished, RunStarted, StepLogged


@pytest.fixture
def loaded():
    return load_preset("digits-vit")


def test_two_runs_of_one_second_get_directories_of_their_own(tmp_path, loaded):
    runs = [RunDirectory.create(tmp_path, loaded) for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    assert all(run.path.parent == tmp_path / "digits-vit" for run in runs)
    assert all("-fismo-s0" in run.path.name for run in runs)


def test_resolved_preset_is_the_same_preset(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    again = load_preset(str(run.preset))
    assert identity(again.preset) == identity(loaded.preset)
    assert again.name == "digits-vit"


def test_unfinished_runs_are_those_of_the_same_preset_newest_first(tmp_path, loaded):
    first, done, broken, second = (RunDirectory.create(tmp_path, loaded) for _ in range(4))
    other = RunDirectory.create(tmp_path, load_preset("digits-vit", ["train.seed=1"]))
    write_json(done.summary, {"status": "completed"})
    write_json(broken.summary, {"status": "diverged"})
    write_json(second.summary, {"status": "interrupted"})
    assert [run.path for run in unfinished_runs(tmp_path, loaded)] == [second.path, first.path]
    assert other.path not in [run.path for run in unfinished_runs(tmp_path, loaded)]


def test_another_preset_is_refused_with_the_keys_that_differ(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    check_same_preset(run, loaded)
    other = load_preset("digits-vit", ["train.seed=1", "optimizer.metric.damping=0.3"])
    with pytest.raises(UsageError) as caught:
        check_same_preset(run, other)
    assert "train.seed (0 there, 1 here)" in str(caught.value)
    assert "optimizer.metric.damping" in str(caught.value)
    assert "momentum" not in str(caught.value)


def test_a_folder_without_preset_is_no_run(tmp_path, loaded):
    with pytest.raises(UsageError, match="not a run directory"):
        check_same_preset(RunDirectory(tmp_path), loaded)


def test_only_one_process_may_train_in_a_run(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    code = (
        "import sys; from pathlib import Path; from fismo_cli.runs.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).lock(): print('held')"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with run.lock():
        with pytest.raises(FismoError), run.lock():
            pass
        refused = subprocess.run(command, capture_output=True, text=True)
        assert "another process" in refused.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == "held\n"


def test_lock_error_is_a_plain_failure(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    with run.lock(), pytest.raises(FismoError), run.lock():
        pass


def test_runs_directory_that_cannot_be_made_is_a_usage_error(tmp_path, loaded):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make a run directory"):
        RunDirectory.create(tmp_path / "file", loaded)


def step(number, loss=1.0):
    return StepLogged(number, loss, {"lr": 0.1}, None, number, 1.0)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_truncation_keeps_what_a_resumed_run_will_not_say_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    for event in (
        RunStarted("p", "o", 0, "cpu", 9, None, 1, 1, 9),
        step(2),
        Evaluated(4, "validation", {"loss": 1.0}, 0.1, 1.0),
        step(4),
        step(6),
        Evaluated(4, "test", {"loss": 1.0}, 0.1, 1.0),
        Finished({}),
    ):
        sink.write(event)
    sink.close()
    with path.open("a") as file:
        file.write('{"event": "StepLogged", "st')  # a crash in the middle of a line
    truncate_after(path, 4)
    assert [(r["event"], r.get("step")) for r in read(path)] == [
        ("RunStarted", None),
        ("StepLogged", 2),
        ("Evaluated", 4),
        ("StepLogged", 4),
    ]
    sink = JsonlSink(path)
    sink.write(step(6))
    sink.close()
    assert [record["step"] for record in read(path)[1:]] == [2, 4, 4, 6]


def test_numbers_that_json_has_not_become_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.write(step(1, loss=float("nan")))
    sink.close()
    assert read(path)[0]["loss"] is None


def test_the_lock_ends_with_the_process_also_where_its_children_live_on(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    code = (
        "import os, sys, time; from pathlib import Path; from fismo_cli.runs.directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).lock():\n"
        "    if os.fork() == 0: print(os.getpid(), flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(FismoError), run.lock():
                pass
            parent.kill()
            parent.wait()
            os.kill(child, 0)  # it is alive
            with run.lock():
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_run_that_cannot_be_written_to_is_refused(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    (run.path / ".lock").mkdir()  # root may write anywhere but onto a folder
    with pytest.raises(UsageError, match=f"cannot write to {run.path}: Is a directory"), run.lock():
        pass


def test_a_fork_does_not_take_the_lock_from_its_parent(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    with run.lock():
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(FismoError), run.lock():
            pass


def test_where_measurements_go_does_not_make_another_run(tmp_path, loaded):
    run = RunDirectory.create(tmp_path, loaded)
    elsewhere = load_preset("digits-vit", ["logging.tensorboard=true"])
    check_same_preset(run, elsewhere)
    assert [found.path for found in unfinished_runs(tmp_path, elsewhere)] == [run.path]
    threads = load_preset("digits-vit", ["train.threads=1", "logging.tensorboard=true", "train.deterministic=true"])
    assert unfinished_runs(tmp_path, threads) == []
    with pytest.raises(UsageError) as caught:
        check_same_preset(run, threads)
    assert "train.threads (null there, 1 here)" in str(caught.value)
    assert "train.deterministic (false there, true here)" in str(caught.value)
    assert "tensorboard" not in str(caught.value)


def test_the_command_that_continues_a_run_can_be_typed(tmp_path):
    folder = tmp_path / "my runs" / "a"
    assert shlex.split(RunDirectory(folder).resume_command) == [
        "fismo", "train", f"{folder}/preset.yaml", "--resume", f"{folder}",
    ]  # fmt: skip
