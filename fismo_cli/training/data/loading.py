"""Fetches batches, in place or by worker processes, whose life ends with the iteration whatever happens to either side.

Workers leave SIGINT and SIGTERM, which reach whole process groups, to the process that they work for. It asks them to
end, kills those that do not, and Linux kills them if it is killed itself.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader

from fismo_cli.errors import DataError, FismoError, UsageError, first_line, place_of
from fismo_cli.processes import end_with_parent, killed_by
from fismo_cli.tasks.base import Batch, Part
from fismo_cli.training.data.order import Keys
from fismo_cli.training.distributed.world import World
from fismo_cli.training.signals import LeaveError, StopRequest

__all__ = ["fetch", "read_batch", "take"]

END_SECONDS = 3.0
"""How long workers that were asked to end are given for the batch they are at."""

Waiting = Callable[[], AbstractContextManager[Any]]


def fetch(
    part: Part,
    keys: Iterable[Keys],
    *,
    workers: int = 0,
    at_once: int = 1,
    pin: bool = False,
    waiting: Waiting = nullcontext,
) -> Generator[Batch]:
    """The batches of these keys, in order, fetched in place or by worker processes ahead of time.

    One iteration spans a whole run, so that workers never restart between epochs. Close the iterator to end them.

    Args:
        part: the data.
        keys: the keys of each batch; picklable where there are workers that are spawned.
        workers: processes; 0 fetches in place.
        at_once: batches that are asked for at a time, which workers should have ready together.
        pin: put the tensors into page-locked memory, from which copies to a CUDA device overlap with computing.
        waiting: entered while a batch is waited for.

    Raises:
        FismoError: what the part raised, also where a worker met it, in a sentence; or if a worker died.
    """
    if workers == 0:
        for batch_keys in keys:
            with waiting():
                batch = read_batch(part, batch_keys)
            yield {name: value.pin_memory() for name, value in batch.items()} if pin else batch
        return
    loader: DataLoader[Any] = DataLoader(
        _Guarded(part),  # type: ignore[arg-type]
        batch_sampler=keys,
        num_workers=workers,
        prefetch_factor=max(2, math.ceil(at_once / workers)),
        collate_fn=_unchanged,
        worker_init_fn=_Start(os.getpid()),
        # From a server that forks, Python 3.14's way, a worker would be no child of this process, which it has to be.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        pin_memory=pin,
        # Its own generator: the loader would otherwise draw the workers' seed from the global one.
        generator=torch.Generator().manual_seed(0),
    )
    with _started(loader) as (batches, processes):
        while True:
            try:
                with waiting():
                    fetched = next(batches, None)
            except Exception as error:  # of the loader itself: what the part raises comes as a failure
                raise _lost(processes, error) from error
            if fetched is None:
                return
            if isinstance(fetched, _Failure):
                raise fetched.error()
            yield fetched


def take(
    batches: Iterator[Batch], count: int, *, stop: StopRequest, world: World, failure: Exception | None = None
) -> Iterator[Batch] | None:
    """The next batches of this process, from `fetch`; None if a signal asked any process to leave.

    All of them are here before the first is given, and none is held any longer than it is used.

    Args:
        batches: what is fetched.
        count: how many; fewer if there are no more.
        stop: whether this process was asked.
        world: the processes, all of which call this together.
        failure: what else has failed in this process meanwhile.

    Raises:
        Exception: what failed in the first process where something has; `QuietError` in all others.
    """
    taken: deque[Batch] = deque()
    try:
        taken += islice(batches, count)
    except LeaveError:
        pass
    except Exception as error:
        failure = failure or error
    news = world.highest(2 if failure is not None else int(stop.requested()))
    if news == 2:
        world.agree(failure)
    return None if news == 1 else _popped(taken)


def _popped(batches: deque[Batch]) -> Iterator[Batch]:
    while batches:
        yield batches.popleft()


def read_batch(part: Part, keys: Keys) -> Batch:
    """A batch.

    Raises:
        FismoError: with a sentence about whatever the part raised.
    """
    try:
        return part.__getitems__(keys)
    except FismoError:
        raise
    except MemoryError as error:
        raise FismoError(
            f"memory ran out while {len(keys)} samples were read: make the samples or the batch smaller, or set "
            "data.workers to fewer"
        ) from error
    except Exception as error:
        reason = first_line(error, "")
        cause = f"{type(error).__name__}: {reason}{place_of(error)}"
        raise FismoError(f"{_which(part, keys)} could not be read: {cause}") from error


def _which(part: Part, keys: Sequence[tuple[int, int]]) -> str:
    """The first sample that cannot be read alone."""
    for key in keys:
        try:
            part.__getitems__([key])
        except Exception:
            return f"sample {key[1]} of the data"
    return f"a batch of {len(keys)} samples of the data"


@dataclass(frozen=True)
class _Failure:
    """An error's way out of a worker: `DataLoader` would put the worker's whole traceback into its message."""

    message: str
    kind: type[FismoError]
    trace: str

    def error(self) -> FismoError:
        error = self.kind(self.message)
        error.__cause__ = _InWorkerError(self.trace)
        return error


class _InWorkerError(Exception):
    """What `--debug` shows of an error in a worker: the traceback there."""


@dataclass(frozen=True)
class _Guarded:
    part: Part

    def __len__(self) -> int:
        return len(self.part)

    def __getitems__(self, keys: Keys) -> Batch | _Failure:
        try:
            return read_batch(self.part, keys)
        except FismoError as error:
            kind = next(kind for kind in (DataError, UsageError, FismoError) if isinstance(error, kind))
            return _Failure(str(error), kind, traceback.format_exc())


def _unchanged(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class _Start:
    """The first that a worker does.

    A worker that died of a signal to the whole process group could not let the step finish.
    """

    parent: int

    def __call__(self, worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_with_parent(signal.SIGKILL, self.parent)
        sys.excepthook = _quiet_about_peers


def _quiet_about_peers(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In a worker: of a process that was killed while a file descriptor was handed over, there is nothing to say."""
    if not isinstance(error, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def _started(loader: "DataLoader[Any]") -> Iterator[tuple[Iterator[Any], list[BaseProcess]]]:
    """The loader's batches and its processes, which have ended afterwards."""
    before = set(multiprocessing.active_children())
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if in_main else None
    if getattr(handler, "__module__", "").startswith("torch."):  # left by a loader of somebody else's
        handler = None
    batches: Any = None
    processes: list[BaseProcess] = []
    try:
        try:
            batches = iter(loader)
        except RuntimeError as error:  # torch's own handler, of a worker that died at once
            raise _lost([*set(multiprocessing.active_children()) - before], error) from error
        if in_main:  # torch's own would raise in the middle of a step, whatever is done there, when a worker dies
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        processes += set(multiprocessing.active_children()) - before
        yield batches, processes
    finally:
        _end(batches, processes or [*set(multiprocessing.active_children()) - before])


def _end(batches: Any, processes: Sequence[BaseProcess]) -> None:
    def kill() -> None:
        for process in processes:
            process.kill()

    patience = threading.Timer(END_SECONDS, kill)
    patience.daemon = True
    patience.start()
    try:
        if batches is not None:
            batches._shutdown_workers()  # what the iterator's destructor does, whenever that may run
    finally:
        patience.cancel()
        kill()
        for process in processes:
            process.join()


def _lost(processes: Sequence[BaseProcess], error: Exception) -> FismoError:
    """What to say of a loader that failed: mostly a worker has died."""
    # Its pipes break a little before a process has ended, that of its sentinel too.
    ending = connection.wait([process.sentinel for process in processes], timeout=1.0)
    for process in processes:
        if process.sentinel in ending:
            process.join(timeout=5.0)
    dead = next((process for process in processes if process.exitcode is not None), None)
    if dead is None or dead.exitcode is None:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return FismoError(f"the data workers could not go on: {reason}. With data.workers=0 there are none")
    if dead.exitcode >= 0:
        return FismoError(f"a data worker ended with exit code {dead.exitcode}. data.workers=0 shows why")
    less = ": fewer data.workers need less" * (-dead.exitcode == signal.SIGKILL)
    return FismoError(f"a data worker was {killed_by(dead.exitcode)}{less}. With data.workers=0 there are none")
