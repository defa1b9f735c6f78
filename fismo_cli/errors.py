"""Errors that a user is shown in plain words, and the exit codes they end with."""

from collections.abc import Iterable
from enum import IntEnum
from pathlib import PurePath
from typing import Self

__all__ = [
    "AbortedError",
    "DataError",
    "DivergedError",
    "ExitCode",
    "FismoError",
    "PresetError",
    "QuietError",
    "StoppedError",
    "UsageError",
    "first_line",
    "place_of",
]


class ExitCode(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    TARGET_MISSED = 3
    DIVERGED = 4
    DATA = 5  # between a study or a comparison and its runs alone; a user sees 2
    HANGUP = 129
    INTERRUPTED = 130
    TERMINATED = 143


class FismoError(Exception):
    """Something went wrong while running; the message says what, where and what would be right."""

    exit_code = ExitCode.FAILED


def first_line(error: BaseException, otherwise: str | None = None) -> str:
    """The first line of what an error says that is not blank.

    Args:
        error: the error.
        otherwise: what to say of one that says nothing; None: its kind.
    """
    kind = type(error).__name__ if otherwise is None else otherwise
    return next((line.strip() for line in str(error).splitlines() if line.strip()), kind)


def place_of(error: BaseException) -> str:
    """Where an error that nobody foresaw was raised, as ` (file.py:12)`; nothing where that is unknown."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"


class UsageError(FismoError):
    """Wrong usage: an argument, a missing file, an unreachable target. Nothing has been written."""

    exit_code = ExitCode.USAGE

    @classmethod
    def of(cls, problems: Iterable[str]) -> Self:
        """One error of several problems, each on a line of its own."""
        return cls("\n       ".join(problems))


class DataError(UsageError):
    """The data cannot be read or used, or is not what a run, a study or a comparison began with."""


class PresetError(UsageError):
    """One or more problems of a preset, each a full line such as `preset error: a.yaml:3  train.steps: must be ...`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class QuietError(FismoError):
    """This process ends because another one of the same run failed, which says why."""


class AbortedError(FismoError):
    """The user left at once, by a second signal; the message says from where the run can go on."""

    def __init__(self, message: str, number: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = ExitCode.INTERRUPTED if number is None else ExitCode(128 + number)


class StoppedError(FismoError):
    """A signal ended a comparison or a study; its runs in flight were saved."""

    def __init__(self, number: int) -> None:
        super().__init__("stopped; the same command goes on from here")
        self.exit_code = ExitCode(128 + number)


class DivergedError(FismoError):
    """Training diverged: a non-finite loss, or one above the limit that was set."""

    exit_code = ExitCode.DIVERGED
