"""Ranks as torchrun starts them, but forked from a process that has the imports, which take longer than what is tested.

torchrun itself is in the tests of launching, errors, kills and restarts.
"""

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

__all__ = ["run_ranks"]

_CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = ["fismo_cli.runs.execution", "fismo_cli.tasks.images", "torchvision.transforms.v2", "fismo_cli.timm_models"]
_MODULES += ["fismo_cli.tasks.text", "fismo_cli.transformers_models", "transformers.models.gpt2.modeling_gpt2"]
SECONDS, SECONDS_AFTER_FAILURE = 900, 60
"""How long ranks may take, and how long after one of them has failed."""


def run_ranks(
    count: int, work: str, arguments: list[str], *, folder: Path, streams: Path, environment: Mapping[str, str]
) -> list[int]:
    """Run a function in several processes that can find each other, and return their exit codes by rank.

    Args:
        count: of processes.
        work: the function, as MODULE:NAME; what it is to know is in `sys.argv`.
        arguments: the rest of `sys.argv`.
        folder: in which they work.
        streams: a folder for files `out` and `err`, of what they print.
        environment: theirs, without what torchrun adds.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
        **{"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "TORCH_CPP_LOG_LEVEL": "ERROR"},
        **{"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": "0"},
    }
    _CONTEXT.set_forkserver_preload(_MODULES)
    processes: list[BaseProcess] = []
    for rank in range(count):
        own = {**environment, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(_CONTEXT.Process(target=_rank, args=(work, arguments, own, folder, streams)))
        processes[-1].start()
    deadline, running = time.monotonic() + SECONDS, {process.sentinel: process for process in processes}
    try:
        while running and (ended := connection.wait(running, max(0.0, deadline - time.monotonic()))):
            for sentinel in ended:
                if running.pop(sentinel).exitcode:
                    deadline = min(deadline, time.monotonic() + SECONDS_AFTER_FAILURE)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _rank(work: str, arguments: list[str], environment: dict[str, str], folder: Path, streams: Path) -> None:
    multiprocessing.set_start_method(None, force=True)  # it came with the server's, for processes of its own
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = [work, *arguments]
    module, _, name = work.partition(":")
    getattr(importlib.import_module(module), name)()
