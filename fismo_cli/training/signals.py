"""Turns SIGTERM, SIGHUP and the first Ctrl-C into a question that is asked between steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["LeaveError", "StopRequest"]

TWICE_SECONDS = 0.5
"""A second SIGTERM sooner than this is the first again: `timeout` and Slurm send it to a process and to its group."""


class LeaveError(BaseException):
    """A signal asked to stop while something was waited for that may take long."""


class StopRequest:
    """While entered, SIGTERM, SIGHUP and SIGINT set `signal`; a second one of the first's kind leaves at once.

    That raises KeyboardInterrupt. Handlers are put back after. Outside the main thread Python lets nobody handle
    signals; then `signal` stays None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._waiting = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # nohup has it ignored
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def requested(self) -> bool:
        """Whether a signal asked to stop."""
        return self.signal is not None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around waiting that may take long and can be given up at any point: a signal raises `LeaveError` there."""
        self._waiting = True
        try:
            if self.requested():
                raise LeaveError
            yield
        finally:
            self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            if self._waiting:
                raise LeaveError
        elif number == self.signal and (number == signal.SIGINT or time.monotonic() - self._since > TWICE_SECONDS):
            raise KeyboardInterrupt
