"""What a process asks of the system about its parent, and what its exit code says."""

import ctypes
import os
import signal
import sys

__all__ = ["end_with_parent", "killed_by"]


def end_with_parent(number: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Linux: be sent a signal if the parent is killed, so that nothing goes on unseen. Elsewhere it goes on.

    Args:
        number: the signal.
        parent: the parent's process id: it may have gone before it could be asked for.
    """
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, int(number))
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), number)


def killed_by(exit_code: int) -> str:
    """How a process ended that a signal ended, from its negative exit code: `killed by SIGKILL, as ...`."""
    name = signal.Signals(-exit_code).name
    return f"killed by {name}" + ", as the system does when memory runs out" * (name == "SIGKILL")
