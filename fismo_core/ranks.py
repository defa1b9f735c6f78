"""The ranks of a process group that share an optimizer's work: who owns what, and what they send each other.

Each matrix, and each parameter that AdamW treats, has one owner, which alone keeps its state and computes its step;
then every rank gets the new values from the owners, in one collective for each dtype and device. Gradients must be the
same on all ranks, as DDP makes them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from fismo_core.dtensors import full_tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Ranks", "RowExchange", "share_out"]


def share_out(costs: Sequence[float], loads: list[float]) -> list[int]:
    """A rank for each of some pieces of work: the costliest first, always to the rank with the least to do.

    The largest load exceeds the mean by less than the costliest piece (Graham, 1969).

    Args:
        costs: of each piece.
        loads: what each rank has to do already; renewed.
    """
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        owners[index] = min(range(len(loads)), key=lambda rank: (loads[rank], rank))
        loads[owners[index]] += costs[index]
    return owners


# Renamed in torch 2.14.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass
class Ranks:
    """The ranks that share the work, and how much each has been given so far.

    Attributes:
        group: the process group.
        loads: cost of what each rank owns, by rank.
    """

    group: "ProcessGroup"
    loads: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rank, self.size = distributed.get_rank(self.group), distributed.get_world_size(self.group)
        self.loads = self.loads or [0.0] * self.size
        self._published: list[tuple[Tensor, int]] = []
        self._done: list[Callable[[], None]] = []

    def assign(self, costs: Sequence[float]) -> list[int]:
        """An owner for each of some pieces of work; every rank computes the same."""
        return share_out(costs, self.loads)

    def exchange(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Overwrite each tensor by its owner's, on all ranks.

        Args:
            tensors: of the same shapes, in the same order, on all ranks; written to in place.
            owners: the owner of each.
        """
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, tensor in enumerate(tensors):
            kinds.setdefault((tensor.dtype, tensor.device), []).append(index)
        for (dtype, device), members in kinds.items():
            by_rank: list[list[int]] = [[] for _ in range(self.size)]
            for index in members:
                by_rank[owners[index]].append(index)
            length = max(sum(tensors[index].numel() for index in own) for own in by_rank)
            sent = torch.zeros(length, dtype=dtype, device=device)
            _copy([tensors[index] for index in by_rank[self.rank]], sent, into_buffer=True)
            received = torch.empty(self.size, length, dtype=dtype, device=device)
            _all_gather(received.view(-1), sent, group=self.group)
            for rank, own in enumerate(by_rank):
                if rank != self.rank:
                    _copy([tensors[index] for index in own], received[rank], into_buffer=False)

    def publish(self, owned: Sequence[tuple[Tensor, int]], done: Callable[[], None]) -> None:
        """Add tensors and their owners to what `exchange_published` sends; `done` is called after that."""
        self._published += owned
        self._done.append(done)

    def exchange_published(self) -> None:
        """Exchange all that was published since the last time, which is the same on all ranks."""
        published, done = self._published, self._done
        self._published, self._done = [], []
        if published:
            self.exchange([tensor for tensor, _ in published], [owner for _, owner in published])
        for call in done:
            call()

    def total(self, value: int, device: torch.device) -> int:
        """The sum over all ranks of a number."""
        tensor = torch.tensor(value, dtype=torch.int64, device=device)
        distributed.all_reduce(tensor, group=self.group)
        return int(tensor)

    def merged_on_first(self, state: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]] | None:
        """The entries of an optimizer's state that any rank has, whole and on the CPU; None but on the first rank."""
        own = {
            key: {name: full_tensor(v).cpu() if isinstance(v, Tensor) else v for name, v in entry.items()}
            for key, entry in state.items()
        }
        everyone: list[Any] | None = [None] * self.size if self.rank == 0 else None
        first = distributed.get_global_rank(self.group, 0)
        distributed.gather_object(own, everyone, dst=first, group=self.group)
        if everyone is None:
            return None
        merged: dict[Any, dict[str, Any]] = {}
        for part in everyone:
            for key, entry in part.items():
                merged.setdefault(key, {}).update(entry)
        return dict(sorted(merged.items()))


class RowExchange:
    """Parameters whose rows are sharded over the ranks, as FSDP2 does it: brought whole to their owners, and back.

    Args:
        ranks: that have them.
        shapes: of the whole parameters.
        owners: the rank that owns each.
    """

    def __init__(self, ranks: Ranks, shapes: Sequence[torch.Size], owners: Sequence[int]) -> None:
        self._ranks, self._shapes, self._owners = ranks, list(shapes), list(owners)

    def to_owners(self, local: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The whole tensors that this rank owns, from the rows that each rank has of them, by index of the parameter.

        Args:
            local: this rank's rows of each tensor; of the same parameters on all ranks.
        """
        me, ranks = self._ranks.rank, range(self._ranks.size)
        whole: dict[int, Tensor] = {}
        for members in _by_kind(local):
            mine = [index for index in members if self._owners[index] == me]
            ordered = sorted(members, key=lambda index: self._owners[index])
            sent = _flat([local[index] for index in ordered], local[members[0]])
            send = [sum(local[index].numel() for index in members if self._owners[index] == rank) for rank in ranks]
            receive = [sum(self._entries(index, rank) for index in mine) for rank in ranks]
            received = sent.new_empty(sum(receive))
            distributed.all_to_all_single(received, sent, receive, send, group=self._ranks.group)
            pieces: dict[int, list[Tensor]] = {index: [] for index in mine}
            start = 0
            for rank in ranks:
                for index in mine:
                    pieces[index].append(received[start : start + self._entries(index, rank)])
                    start += self._entries(index, rank)
            whole.update({index: torch.cat(parts).view(self._shapes[index]) for index, parts in pieces.items()})
        return whole

    def to_shards(
        self, whole: Mapping[int, tuple[Tensor, Tensor]], like: Mapping[int, Tensor]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """This rank's rows of tensors that their owners have whole, each with a flag that goes along.

        Args:
            whole: what this rank owns: the tensor, in float64 where the rows are so and else in float32, and its flag.
            like: this rank's rows of every parameter.
        """
        me, ranks = self._ranks.rank, range(self._ranks.size)
        shards: dict[int, tuple[Tensor, Tensor]] = {}
        for members in _by_kind(like):
            dtype = torch.float64 if like[members[0]].dtype == torch.float64 else torch.float32
            sample = torch.empty(0, dtype=dtype, device=like[members[0]].device)
            mine = [index for index in members if self._owners[index] == me]
            parts = []
            for rank in ranks:
                for index in mine:
                    tensor, flag = whole[index]
                    first, last = self._rows(index, rank)
                    parts += [tensor[first:last].flatten(), flag.to(dtype).view(1)]
            sent = _flat(parts, sample)
            send = [sum(self._entries(index, rank) + 1 for index in mine) for rank in ranks]
            ordered = sorted(members, key=lambda index: self._owners[index])
            owned_by = [[index for index in ordered if self._owners[index] == rank] for rank in ranks]
            receive = [sum(self._entries(index, me) + 1 for index in own) for own in owned_by]
            received = sample.new_empty(sum(receive))
            distributed.all_to_all_single(received, sent, receive, send, group=self._ranks.group)
            start = 0
            for index in ordered:
                end = start + self._entries(index, me)
                shards[index] = (received[start:end].view(like[index].shape), received[end] > 0)
                start = end + 1
        return shards

    def _rows(self, index: int, rank: int) -> tuple[int, int]:
        """The first row of a parameter that a rank has, and one past the last: as `torch.chunk` cuts."""
        rows = self._shapes[index][0]
        chunk = -(-rows // self._ranks.size)
        return min(rank * chunk, rows), min((rank + 1) * chunk, rows)

    def _entries(self, index: int, rank: int) -> int:
        first, last = self._rows(index, rank)
        return (last - first) * (self._shapes[index].numel() // max(1, self._shapes[index][0]))


def _by_kind(tensors: Mapping[int, Tensor]) -> list[list[int]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index in sorted(tensors):
        kinds.setdefault((tensors[index].dtype, tensors[index].device), []).append(index)
    return list(kinds.values())


def _flat(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else like.new_empty(0)


def _copy(tensors: Sequence[Tensor], buffer: Tensor, *, into_buffer: bool) -> None:
    start = 0
    for tensor in tensors:
        part = buffer[start : start + tensor.numel()].view(tensor.shape)
        if into_buffer:
            part.copy_(tensor)
        else:
            tensor.copy_(part)
        start += tensor.numel()
