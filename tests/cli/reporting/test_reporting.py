import io
import os
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.reporting.console import Forgiving
from fismo_cli.reporting.progress import LiveProgress, PlainProgress, progress_sink
from fismo_cli.reporting.tables import summary_rows
from fismo_cli.reporting.tensorboard import TensorBoardSink
from fismo_cli.training.events import Diverged, Evaluated, Noticed, RunStarted, StepLogged

STARTED = RunStarted("digits-vit", "fismo", 0, "cpu", 100, None, 1234, 50, 800)


def step(number: int) -> StepLogged:
    return StepLogged(number, 1.5, {"matrix": 0.02, "adamw": 0.003}, None, number * 8, 1000.0)


def printed(sink_of, *events) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=sink_of is LiveProgress)
    sink = sink_of(console)
    for event in events:
        sink.write(event)
    sink.close()
    return console.file.getvalue()


def test_plain_lines_of_steps_are_rare_but_the_last_is_there():
    times = iter(range(1000))
    sink_of = lambda console: PlainProgress(console, interval=20, clock=lambda: next(times) / 2)  # noqa: E731
    lines = printed(sink_of, STARTED, *(step(number) for number in range(1, 101))).splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert steps[0].startswith("step 1/100")
    assert steps[-1].startswith("step 100/100")
    assert 3 <= len(steps) <= 7


def test_everything_but_steps_is_always_said():
    text = printed(
        PlainProgress,
        STARTED,
        step(1),
        Evaluated(1, "validation", {"loss": 0.25, "top1": 0.925}, 0.1, 1.0, best=True),
        Noticed("runs/[bold]x is broken"),
        Diverged(2, "the training loss became nan"),
    )
    assert "validation: loss 0.2500  top1 92.50 %  (best)" in text
    assert "runs/[bold]x is broken" in text
    assert "became nan" in text


def test_terminal_shows_loss_metric_rate_speed():
    text = printed(LiveProgress, STARTED, Evaluated(10, "validation", {"loss": 0.2, "top1": 0.925}, 0.1, 1.0), step(10))
    for word in ("10/100", "loss 1.5000", "lr 0.02", "1,000 samples/s", "top1 92.50 %"):
        assert word in text


def test_sink_fits_the_console():
    assert isinstance(progress_sink(Console(file=io.StringIO())), PlainProgress)
    assert isinstance(progress_sink(Console(file=io.StringIO(), force_terminal=True)), LiveProgress)


def test_summary_rows_of_a_diverged_run_says_why():
    summary = {
        "run_dir": "runs/a", "status": "diverged", "reason": "the training loss became nan", "steps": 3,
        "total_steps": 9, "resumed_from_step": 2, "metrics": {"train": None, "validation": {"loss": 2.0}, "test": None},
        "seconds": 0.0, "optimizer_seconds": 0.0, "samples_per_second": 0.0, "peak_memory_bytes": 2**31,
        "optimizer_state_bytes": 2**20,
    }  # fmt: skip
    rows = summary_rows(summary)
    assert rows["status"] == "diverged after 3 of 9 steps, resumed from step 2: the training loss became nan"
    assert "2.00 GiB" in rows["memory"]


def test_tensorboard_missing_is_said_before_training(monkeypatch):
    from fismo_cli.runs.preparation import prepare

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'fismo\[tensorboard\]'"):
        prepare(load_preset("digits-vit", ["logging.tensorboard=true"]))


def test_tensorboard_files_hold_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = TensorBoardSink(tmp_path)
    sink.write(step(10))
    sink.write(Evaluated(10, "validation", {"loss": 0.25}, 0.1, 1.0))
    sink.close()
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [(point.step, point.value) for point in read.Scalars("validation/loss")] == [(10, 0.25)]
    assert read.Scalars("lr/adamw")[0].value == pytest.approx(0.003)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_time_left_is_always_visible(width):
    # 40 % done: 40 seconds ago this began, so a minute is left.
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    sink = LiveProgress(console)
    sink.write(RunStarted("digits-vit", "fismo", 0, "cpu", 10000, None, 1234, 50, 80000))
    sink.write(Evaluated(10, "validation", {"loss": 0.2, "top1": 0.925}, 0.1, 1.0))
    sink.write(step(4000))
    sink.close()
    drawn = io.StringIO()
    Console(file=drawn, width=width).print(sink._progress.get_renderable())
    (line,) = drawn.getvalue().splitlines()
    assert re.search(r"4000/10000 .*loss.* 0:00:0\d left \S+$", line.strip()), line
    assert "…" not in line
    assert ("1,000 samples/s" in line) == (width == 200)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_console_that_cannot_be_written_falls_silent():
    with open("/dev/full", "w") as full:
        stream = Forgiving(full)
        sink = PlainProgress(Console(file=stream), interval=0)
        for event in (STARTED, step(1), step(2)):
            sink.write(event)
        assert stream.write("x") == 1
        stream.flush()
        # What the failed attempts left in the buffer would fail again here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
