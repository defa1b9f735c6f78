"""Starts `fismo` commands in processes that are forked from one which has imported what runs need, and nothing more.

Imports take longer than many a run. The process that has them (multiprocessing's fork server) computes nothing and
touches no device, so that what is forked from it is as good as new.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fismo_cli.errors import FismoError
from fismo_cli.preset.schema import Preset
from fismo_cli.processes import end_with_parent

__all__ = ["start"]

# Elsewhere forked processes may not use the system's own libraries; there each one imports anew.
_CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")


def start(
    arguments: Sequence[str],
    preset: Preset,
    *,
    stdout: int | None,
    stderr: int,
    environment: Mapping[str, str],
    keep_open: Sequence[int] = (),
) -> BaseProcess:
    """Start `fismo ARGUMENTS`, in a session of its own; it is sent SIGTERM if this process is killed.

    Args:
        arguments: of the command.
        preset: the one it is about; what the first one of this process needs is imported for all.
        stdout: descriptor of the file to which it prints; None: nowhere.
        stderr: the same, for what it says.
        environment: all of it.
        keep_open: descriptors that it holds as long as it lives, such as a lock's.

    Raises:
        FismoError: if it cannot be started.
    """
    streams = (None if stdout is None else _Descriptor(stdout), _Descriptor(stderr))
    held = [_Descriptor(number) for number in keep_open]
    given = (list(arguments), dict(environment), *streams, held)
    _CONTEXT.set_forkserver_preload(_modules(preset))
    process: BaseProcess = _CONTEXT.Process(target=_carry_out, args=given)
    try:
        process.start()
    except (EOFError, OSError) as error:
        why = str(error) or "the one that it is forked from has ended"
        raise FismoError(f"no process for `fismo {arguments[0]}` can be started: {why}") from error
    return process


def _modules(preset: Preset) -> list[str]:
    """What runs of a preset import; those that are not there are left out by the server."""
    name, images = preset.model.name, preset.task == "image-classification"
    modules = ["fismo_cli.commands.train", "fismo_cli.runs.execution"]
    modules += ["fismo_cli.tasks.images", "torchvision.transforms.v2"] if images else ["fismo_cli.tasks.text"]
    if preset.model.library == "timm":
        return [*modules, "fismo_cli.timm_models", "timm"]
    model = [f"transformers.models.{name}.modeling_{name}"] if name.isidentifier() else []
    return [*modules, "fismo_cli.transformers_models", "transformers.modeling_utils", *model]


class _Descriptor:
    """An open file that a process gets when it starts."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> _Descriptor:
    return _Descriptor(duplicate.detach())


def _end_with_starter() -> None:
    starter = multiprocessing.parent_process()
    assert starter is not None
    starter.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _carry_out(
    arguments: list[str],
    environment: dict[str, str],
    stdout: _Descriptor | None,
    stderr: _Descriptor,
    held: list[_Descriptor],
) -> None:
    end_with_parent()  # the server
    threading.Thread(target=_end_with_starter, daemon=True).start()
    os.setsid()  # Ctrl-C is for who started it, which asks it to stop
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"fismo {arguments[0]}", encoding="utf-8")
    multiprocessing.set_start_method(None, force=True)  # it came with the server's, for processes of its own
    os.environ.clear()
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number, stream in enumerate((nowhere, nowhere if stdout is None else stdout.number, stderr.number)):
        os.dup2(stream, number)
    sys.argv = ["fismo", *arguments]
    from fismo_cli.app import main

    main(arguments)
