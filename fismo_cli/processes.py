"""What a process asks of the system about its parent. Knows nothing of what either does."""

import ctypes
import signal
import sys

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Linux: be asked to stop if the parent is killed, so that nothing trains on unseen. Elsewhere it trains on."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
