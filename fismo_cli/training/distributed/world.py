"""The processes that train one model together, by `torch.distributed`: who is who, and what they tell each other.

A run in one process is a world of size one, in which nothing is ever sent.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fismo_cli.errors import ExitCode, QuietError

__all__ = ["World", "failed_everywhere", "join_world", "launched_by_torchrun"]

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others: one that died is noticed at once, one that hangs after this."""


@dataclass(frozen=True)
class World:
    """One process among those of a run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number among those on its host, which is also that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def group(self) -> Any:
        """The process group of all of them; None where there is one process."""
        return None if self.size == 1 else distributed.group.WORLD

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    def apart(self) -> tuple[int, ...]:
        """What sets the seeds of this process apart from those of the others; nothing for the first one."""
        return () if self.main else (self.rank,)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: the same answer in all of them."""
        return bool(self.highest(int(flag)))

    def highest(self, value: int) -> int:
        """The highest of all processes' values."""
        return int(self.maximum(torch.tensor(value, dtype=torch.int64)))

    def maximum(self, values: Tensor) -> Tensor:
        """The elementwise maximum over all processes of a tensor on the CPU."""
        if self.size == 1:
            return values
        result = values.clone()
        distributed.all_reduce(result, op=distributed.ReduceOp.MAX)
        return result

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a tensor on any device; NaN if it is so anywhere."""
        if self.size == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.size

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def from_main(self, value: Value) -> Value:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[no-any-return]

    def same_as_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, on any device, by the main process's."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until all processes are here; on the CPU, since a barrier of NCCL's would take a GPU for each."""
        self.any(False)

    def together(self, work: Callable[[], Value]) -> Value:
        """Do something that may fail in some processes only: then it fails in all, and one of them says why.

        Raises:
            Exception: what the first process that failed raised; `QuietError` in all others.
        """
        if self.size == 1:
            return work()
        result: Value | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        self.agree(failure)
        return result  # type: ignore[return-value]

    def agree(self, failure: Exception | None) -> None:
        """Fail in all processes if something has failed in any; one of them says why. See `failed_everywhere`.

        Raises:
            Exception: what failed in the first process where something has; `QuietError` in all others.
        """
        if self.size > 1:
            code = getattr(failure, "exit_code", ExitCode.FAILED)
            codes = self.gather(None if failure is None else code)
            failed = [rank for rank, code in enumerate(codes) if code is not None]
            if failed and self.rank != failed[0]:
                failure = QuietError("another process of this run failed")
                failure.exit_code = codes[failed[0]] or failure.exit_code
            if failure is not None:
                failure.everywhere = True  # type: ignore[attr-defined]
        if failure is not None:
            raise failure


def failed_everywhere(error: BaseException) -> bool:
    """Whether all processes have failed at the same point, so that they can still do something together."""
    return getattr(error, "everywhere", False)


def launched_by_torchrun() -> bool:
    """Whether this process was started by torchrun, as one of several or alone."""
    return bool(distributed.is_available() and distributed.is_torchelastic_launched())


@contextmanager
def join_world(attempt: int = 0) -> Iterator[World]:
    """Join the other processes, if torchrun started this one; else be alone.

    Args:
        attempt: how often torchrun has started the processes again. They meet in a store that may outlive them: what
            those of an earlier attempt left in it must not be taken for news.

    Raises:
        FismoError: if another process went away meanwhile.
    """
    if not launched_by_torchrun():
        yield World()
        return
    cuda = torch.cuda.is_available()
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    try:
        world = World(rank, size, distributed.get_node_local_rank(0))
        yield world
        world.wait()  # a process that leaves while others are busy would look like one that died
    except RuntimeError as error:
        if any(
            word in str(error) for word in ("Connection closed by peer", "Connection reset by peer", "[c10d]", "NCCL")
        ):
            raise QuietError("another process of this run went away") from error
        raise
    finally:
        distributed.destroy_process_group()
