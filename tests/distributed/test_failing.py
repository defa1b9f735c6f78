"""A rank that raises, or dies, in the middle of training ends the run of all, soon and with one message."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("parallel", "how"),
    [("ddp", "raise"), ("fsdp2", "raise"), ("fsdp2", "die"), ("fsdp2", "read"), ("ddp", "write")],
)
def test_a_rank_that_fails_ends_the_run(tmp_path, parallel, how):
    started = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(Path(__file__).with_name("failing.py")), how, "train", "digits-vit", "train.batch_size=64"),
            *(f"train.parallel={parallel}", "train.threads=1", "evaluate.every=4", "checkpoint.every=3"),
            *("train.log_every=1", "data.workers=1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert time.monotonic() - started < 120  # not the ten minutes after which a rank that hangs is given up
    last = max(tmp_path.glob("runs/*/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime).stat().st_mtime
    assert time.time() - last < 20  # since the last step was logged
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    if how == "read":  # noticed before a step in which others would wait: all are saved together
        assert "of the data could not be read: ValueError: this rank has had enough" in errors[0]
        (step,) = tmp_path.glob("runs/*/*/checkpoints/step-*/complete.json")
        assert f"continue from step {step.parent.name.removeprefix('step-')} with: fismo train" in done.stderr
    elif how != "die":
        assert [line for line in errors if line.startswith("unexpected error: ValueError: this rank has had enough")]
        assert len([line for line in errors if line.startswith(("error:", "unexpected error:"))]) == 1, errors
    else:
        assert "Signal 9" in done.stderr  # of torchrun; fismo train --nproc says it in its own words
    assert not list(tmp_path.glob("runs/*/*/summary.json"))
