"""Processes that are forked from one with all imports: what they get and hold, and that nothing was touched before."""

import os
import subprocess
import sys

import pytest

from fismo_cli.campaigns import forked
from fismo_cli.preset.loading import load_preset

COUNTED = """
import importlib, os, sys, threading
import torch
counted = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    setattr(torch._C, name, lambda *_, name=name: counted.append(name) or 0)
for module in sys.argv[1:]:
    importlib.import_module(module)
assert not torch.cuda.is_initialized()
print(counted, threading.active_count(), len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize("name", ["digits-vit", "stdlib-gpt2"])
def test_what_is_imported_touches_no_device_and_starts_no_thread(name):
    modules = forked._modules(load_preset(name).preset)
    assert len(modules) >= 5
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COUNTED, *modules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[] 1 1\n"


def test_a_command_gets_its_streams_its_environment_and_what_it_is_to_hold(tmp_path):
    held, closing = os.pipe()
    environment = {**os.environ, "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", "HELD": "1"}
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("ab") as err:
        process = forked.start(
            ["validate", "no-such.yaml"],
            load_preset("digits-vit").preset,
            stdout=out.fileno(),
            stderr=err.fileno(),
            environment=environment,
            keep_open=(closing,),
        )
    os.close(closing)
    assert os.read(held, 1) == b""  # once the process has ended
    process.join()
    os.close(held)
    command = [sys.executable, "-m", "fismo_cli", "validate", "no-such.yaml"]
    alone = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert process.exitcode == alone.returncode == 2
    assert (tmp_path / "out").read_bytes() == alone.stdout
    assert (tmp_path / "err").read_bytes() == alone.stderr != b""


def test_data_workers_are_children_whatever_way_python_starts_processes(tmp_path):
    script = (
        "import multiprocessing, sys; from fismo_cli.app import main; "
        "multiprocessing.set_start_method('forkserver'); main(sys.argv[1:])"
    )
    given = ["train", "digits-vit", "train.epochs=null", "train.steps=2", "train.threads=1", "data.workers=2"]
    command = [sys.executable, "-c", script, *given]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "completed after 2 of 2 steps" in done.stdout
