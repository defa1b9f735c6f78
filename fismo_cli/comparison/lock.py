"""One process at a time works on a comparison."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fismo_cli.errors import FismoError, UsageError

__all__ = ["alone"]

POLL_SECONDS = 0.1
LEAVE_SECONDS = 30.0
"""How long the runs of a comparison that was killed are given to save and leave."""


@contextmanager
def alone(directory: Path, wait: Callable[[float], None] = lambda seconds: None) -> Iterator[int]:
    """Let one process at a time work on a comparison: a descriptor that its runs hold too, until they have left.

    Args:
        directory: of the comparison; made where it is not there yet.
        wait: told once, where others hold the lock, for how many seconds it will be tried.

    Raises:
        UsageError: if nothing can be written there.
        FismoError: if others still work on it after a while.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UsageError(f"cannot write to {directory}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + LEAVE_SECONDS
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FismoError(f"another process works on {directory}; wait for it or stop it") from None
                if not waiting:
                    wait(LEAVE_SECONDS)
                waiting = True
                time.sleep(POLL_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)
