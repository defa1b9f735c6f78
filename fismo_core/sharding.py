"""Shares an optimizer's work out between the ranks of a process group: who owns what, and what they send each other.

Each matrix, and each parameter that AdamW treats, has one owner, which alone keeps its state and computes its step;
then every rank gets the new values from the owners, in one collective for each dtype and device. Gradients must be the
same on all ranks, as DDP makes them. Knows tensors, shapes and process groups only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed

__all__ = ["Sharding", "elementwise_cost", "matrix_cost", "share_out"]

POLAR_PRODUCTS = 9.0
"""Products of an m x m by an m x n matrix that a step costs in all, m the shorter side; fitted to the default form."""

PRODUCTS_PER_ENTRY = 30.0
"""What an entry that is only read and written costs, in multiplications."""


def matrix_cost(m: int, n: int, *, dense_sides: int, refresh_interval: int) -> float:
    """About how many multiplications a FISMO step of an m x n matrix takes: polar factor, whitening, statistics, roots.

    Args:
        m: rows.
        n: columns.
        dense_sides: how many of the two sides keep a dense factor; the shorter one first.
        refresh_interval: steps between new roots.
    """
    short, long = min(m, n), max(m, n)
    cost = POLAR_PRODUCTS * short * short * long + PRODUCTS_PER_ENTRY * m * n
    for side in (short, long)[:dense_sides]:
        cost += 3.0 * m * n * side + 12.0 * side**3 / refresh_interval
    return cost


def elementwise_cost(entries: int) -> float:
    """The same of a parameter that AdamW treats."""
    return PRODUCTS_PER_ENTRY * entries


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
class Sharding:
    """The ranks that share the work, and how much each has been given so far.

    Attributes:
        group: the process group.
        loads: cost of what each rank owns, by rank.
    """

    group: Any
    loads: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rank, self.size = distributed.get_rank(self.group), distributed.get_world_size(self.group)
        self.loads = self.loads or [0.0] * self.size

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

    def total(self, value: int, device: torch.device) -> int:
        """The sum over all ranks of a number."""
        tensor = torch.tensor(value, dtype=torch.int64, device=device)
        distributed.all_reduce(tensor, group=self.group)
        return int(tensor)

    def gather_to_first(self, value: Any) -> list[Any] | None:
        """Every rank's value, on the first rank; None on the others."""
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        first = distributed.get_global_rank(self.group, 0)
        distributed.gather_object(value, values, dst=first, group=self.group)
        return values


def _copy(tensors: Sequence[Tensor], buffer: Tensor, *, into_buffer: bool) -> None:
    start = 0
    for tensor in tensors:
        part = buffer[start : start + tensor.numel()].view(tensor.shape)
        if into_buffer:
            part.copy_(tensor)
        else:
            tensor.copy_(part)
        start += tensor.numel()
