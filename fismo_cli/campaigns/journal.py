"""A study's journal file: Optuna's, made to outlive crashes in mid-write, full disks and files that vanish.

Optuna appends to a half line, after which nobody can read the file any more, and goes on in a new file where the old
one was removed. Here what cannot be read is moved into a file beside the journal, and a file that is gone is an error.
"""

import contextlib
import io
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import TrialState

from fismo_cli.files import locked, whole_file
from fismo_cli.words import counted

__all__ = ["Journal", "JournalError", "StoredJournal", "readable_part"]

_CREATE_STUDY, _CREATE_TRIAL, _SET_PARAM, _SET_STATE = 0, 4, 5, 6
"""Operations that a journal's records name by these numbers."""

Record = dict[str, Any]


class JournalError(StorageInternalError):
    """The journal cannot be read or written; what was told to it before is safe."""


class Journal(JournalFileBackend):
    """Optuna's journal on a file.

    Args:
        file: the file, which is made where there is none; what cannot be read in it is set aside at once.
        notice: told, in a sentence, of what was set aside.

    Raises:
        OSError: if the file cannot be used.
    """

    def __init__(self, file: Path, notice: Callable[[str], None]) -> None:
        self._file, self._notice = file, notice
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            with file.open("ab"):
                pass
            kept, broken = readable_part(file.read_bytes())
            if broken:
                self._set_aside(kept, broken, in_place=file.read_bytes().startswith(kept))
            super().__init__(str(file))
            self._inode = file.stat().st_ino

    def read_logs(self, log_number_from: int) -> Generator[Record, None, None]:
        """The records from a number on."""
        with self._explained():
            self._check_same()
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[Record]) -> None:
        """Append records: all of them or none."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._explained(), self._alone():
            self._check_same()
            with self._file.open("r+b", buffering=0) as file:
                end = self._whole_end(file.fileno())
                try:
                    data = memoryview(text.encode("utf-8"))
                    file.seek(end)
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except OSError:  # the disk is full
                    file.truncate(end)
                    raise

    def _whole_end(self, descriptor: int) -> int:
        """Where the last whole line ends; a half one, of a process that was killed while it wrote, is set aside."""
        size = os.fstat(descriptor).st_size
        if size > 0 and os.pread(descriptor, 1, size - 1) != b"\n":
            data = os.pread(descriptor, size, 0)
            size = data.rfind(b"\n") + 1
            self._set_aside(data[:size], data[size:], in_place=True)
        return size

    def _set_aside(self, kept: bytes, broken: bytes, *, in_place: bool) -> None:
        aside = self._file.with_name(f"{self._file.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
        number = 2
        while aside.exists():
            aside, number = aside.with_name(f"{aside.name}-{number}"), number + 1
        with whole_file(aside) as temporary:
            temporary.write_bytes(broken)
        if in_place:  # others may be reading: nothing before the end moves
            os.truncate(self._file, len(kept))
        else:
            with whole_file(self._file) as temporary:
                temporary.write_bytes(kept)
        what = counted(len(_lines(broken)), "line that cannot be used was", "lines that cannot be used were")
        self._notice(
            f"{self._file}: {what} moved to {aside.name} (of a process that was killed while it wrote?); the "
            f"study goes on with the other {len(_lines(kept))}"
        )

    def _check_same(self) -> None:
        """Make sure that nobody has removed or replaced the file."""
        if self._file.stat().st_ino != self._inode:
            raise JournalError("another process has replaced it")

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._file.with_name(f".{self._file.name}.lock"))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError(error.strerror or str(error)) from None
        except ValueError as error:
            raise JournalError("a line in it cannot be read") from error


class StoredJournal(BaseJournalBackend):
    """What can be read of a journal file, without writing anything.

    Args:
        file: the journal.

    Raises:
        OSError: if it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._records = [json.loads(line) for line in _lines(readable_part(file.read_bytes())[0])]

    def read_logs(self, log_number_from: int) -> Sequence[Record]:
        """The records from a number on."""
        return self._records[log_number_from:]

    def append_logs(self, logs: list[Record]) -> None:
        """Nothing is ever written."""
        raise JournalError("it is only read here")


def readable_part(data: bytes) -> tuple[bytes, bytes]:
    """The lines of a journal that can be read, and the others.

    Lines after an unreadable one are kept if they make sense without it. A trial's number is its place among those that
    were created: where the record of one is lost, later records would be taken for those of other trials.
    """
    lines = _lines(data)
    records = [_record(line) for line in lines]
    if _consistent([record for record in records if record is not None]):
        kept = [record is not None for record in records]
    else:
        first = records.index(None) if None in records else len(records)
        kept = [index < first for index in range(len(records))]
    good = b"".join(line for line, keep in zip(lines, kept, strict=True) if keep)
    return good, b"".join(line for line, keep in zip(lines, kept, strict=True) if not keep)


def _lines(data: bytes) -> list[bytes]:
    return io.BytesIO(data).readlines()


def _record(line: bytes) -> Record | None:
    """The record of a line; None if it is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"op_code", "worker_id"} <= record.keys() else None


def _consistent(records: Iterable[Record]) -> bool:
    """Whether no record is of a study, a trial or a setting whose own record is missing."""
    studies: set[str] = set()
    settings: list[set[str]] = []  # by trial
    drawn: dict[str, int] = {}  # the trial that a worker has just drawn: its next record of a trial is of this one
    whole: set[str] | None = None
    for record in records:
        operation, worker = record["op_code"], record["worker_id"]
        if operation == _CREATE_STUDY:
            studies.add(record.get("study_name", ""))
        elif record.get("study_id", 0) >= len(studies):
            return False
        elif operation == _CREATE_TRIAL:
            if "state" not in record:
                drawn[worker] = len(settings)
            settings.append(set(record.get("params", ())))
        elif "trial_id" in record:
            trial = record["trial_id"]
            if trial >= len(settings) or drawn.pop(worker, trial) != trial:
                return False
            if operation == _SET_PARAM:
                settings[trial].add(record.get("param_name", ""))
            elif operation == _SET_STATE and record.get("state") == TrialState.COMPLETE:
                whole = settings[trial] if whole is None else whole
                if settings[trial] != whole:
                    return False
    return True
