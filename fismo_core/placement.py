"""Where the matrices, or AdamW's parameters, of a group are stepped, and how gradients get there and new values back.

Three ways with one interface: all in this process, each by the rank that owns it, and each by an owner to which the
rows that FSDP2 has sharded are brought.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fismo_core.dtensors import is_dtensor, local_part, process_group_of
from fismo_core.economy import elementwise_cost, matrix_cost, metric_of
from fismo_core.layout import MatrixLayout, Slot, shares_memory
from fismo_core.ranks import Ranks, RowExchange

__all__ = ["Directions", "Move", "OwnedByRanks", "Placement", "ShardedRows", "Whole", "placement_of", "ranks_of"]


class Move(NamedTuple):
    """A tensor of this process that is to be changed, the direction, and whether it is (a boolean on the device)."""

    values: Tensor
    direction: Tensor
    taken: Tensor


Directions = Mapping[Slot, tuple[Tensor, Tensor]]
"""Of each matrix that was stepped here its direction, and whether it takes part."""


class Whole:
    """Everything is stepped in this process.

    Args:
        parameters: of a group.
        layouts: the matrices of each; None: AdamW's parameters, which are taken as they are.
    """

    def __init__(self, parameters: Sequence[Tensor], layouts: Sequence[MatrixLayout] | None) -> None:
        self._parameters, self._layouts = parameters, layouts
        self._touched: dict[int, list[Tensor]] = {}

    def owns(self, slot: Slot) -> bool:
        """Whether this process has the state of a matrix, or of a parameter of AdamW's, and steps it."""
        return True

    def gather(self, gradients: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
        """Whole gradients of what is stepped here, from this process's gradients, by index of the parameter."""
        return gradients

    def moves(self, directions: Iterable[Directions], gradients: Mapping[int, Tensor]) -> Iterator[list[Move]]:
        """What is to be changed in this process, part by part: so that few directions take memory at once.

        Args:
            directions: of what was stepped here.
            gradients: as `gather` got them.
        """
        for found in directions:
            for index in {slot.parameter for slot in found} - self._touched.keys():
                self._touched[index] = self._parts(index)
            yield [Move(self._touched[slot.parameter][slot.part], *pair) for slot, pair in found.items()]

    def publish(self) -> None:
        """After the moves: bring the new values to where they are not yet."""
        for index, parts in self._touched.items():
            self._copy_back(index, parts)
        self._touched = {}

    def _parts(self, index: int) -> list[Tensor]:
        """The matrices of a parameter: views, or copies where its strides make that necessary."""
        parameter = self._parameters[index]
        return [parameter] if self._layouts is None else self._layouts[index].split(parameter)

    def _copy_back(self, index: int, parts: list[Tensor]) -> None:
        parameter = self._parameters[index]
        if self._layouts is not None and not shares_memory(parameter, parts):
            parameter.copy_(self._layouts[index].join(parts, parameter.shape))


class OwnedByRanks(Whole):
    """Each matrix, or parameter of AdamW's, is stepped by the rank that owns it, which sends the new values to all.

    Args:
        parameters: of a group, the same on all ranks.
        layouts: as in `Whole`.
        ranks: that share the work; `exchange_published` of theirs ends a step.
        owners: of each.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        layouts: Sequence[MatrixLayout] | None,
        ranks: Ranks,
        owners: Mapping[Slot, int],
    ) -> None:
        super().__init__(parameters, layouts)
        self._ranks, self._owners = ranks, owners

    def owns(self, slot: Slot) -> bool:
        """See `Whole`."""
        return self._owners.get(slot) == self._ranks.rank

    def publish(self) -> None:
        """Offer all parameters of the group to the exchange at the end of the step, whoever has changed them."""
        super().publish()
        for index in range(len(self._parameters)):
            parts = self._parts(index)
            owned = [(part, self._owners[Slot(index, k)]) for k, part in enumerate(parts) if part.numel()]
            self._ranks.publish(owned, partial(self._copy_back, index, parts))


class ShardedRows:
    """Each matrix is stepped by an owner, which gets the rows of its gradient from all ranks and sends theirs back.

    Args:
        parameters: of a group, DTensors whose rows are sharded.
        layouts: the matrices of each.
        ranks: over which they are.
        owners: of each parameter.
    """

    def __init__(
        self, parameters: Sequence[Tensor], layouts: Sequence[MatrixLayout], ranks: Ranks, owners: Sequence[int]
    ) -> None:
        self._parameters, self._layouts, self._ranks, self._owners = parameters, layouts, ranks, owners
        self._rows = RowExchange(ranks, [parameter.shape for parameter in parameters], owners)

    def owns(self, slot: Slot) -> bool:
        """See `Whole`."""
        return self._owners[slot.parameter] == self._ranks.rank

    def gather(self, gradients: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
        """See `Whole`."""
        return self._rows.to_owners({index: local_part(gradient) for index, gradient in gradients.items()})

    def moves(self, directions: Iterable[Directions], gradients: Mapping[int, Tensor]) -> Iterator[list[Move]]:
        """See `Whole`. A parameter takes part if all of its matrices do: rows know nothing of matrices."""
        found = {slot: pair for part in directions for slot, pair in part.items()}
        by_parameter: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for slot in sorted(found, key=lambda slot: (slot.parameter, slot.part)):
            by_parameter.setdefault(slot.parameter, []).append(found[slot])
        joined = {
            index: (
                self._layouts[index].join([D for D, _ in parts], self._parameters[index].shape),
                torch.stack([taken for _, taken in parts]).all(),
            )
            for index, parts in by_parameter.items()
        }
        here = {index: local_part(gradient) for index, gradient in gradients.items()}
        moved = self._rows.to_shards(joined, here)
        if moved:
            yield [
                Move(local_part(self._parameters[index]), D.to(here[index].dtype), taken)
                for index, (D, taken) in moved.items()
            ]

    def publish(self) -> None:
        """Nothing: each rank has changed its own rows."""


Placement = Whole | ShardedRows
"""Where a group is stepped: see `Whole` for the interface."""


def ranks_of(parameters: Sequence[Tensor], known: Ranks | None) -> Ranks | None:
    """The ranks that share the work: those over which FSDP2 has sharded parameters, if it has; else those known.

    Raises:
        ValueError: if these are others.
    """
    group = process_group_of(parameters)
    if group is None:
        return known
    if known is not None and known.group != group:
        raise ValueError("all parameters of an optimizer, and its process_group, must be on the same ranks")
    return known or Ranks(group)


def placement_of(group: Mapping[str, Any], ranks: Ranks | None) -> Placement:
    """Where a group's parameters are stepped; with ranks, all of them call this for the same groups in the same order.

    Raises:
        ValueError: if some parameters are sharded and others are whole.
    """
    parameters, layouts = group["params"], None
    if group["rule"] == "matrix":
        layouts = [MatrixLayout.from_plain(plain) for plain in group["layouts"]]
    sharded = [is_dtensor(parameter) for parameter in parameters]
    if any(sharded) and not all(sharded):
        raise ValueError("a group has sharded parameters and whole ones: make groups of their own for them")
    if ranks is None or (any(sharded) and layouts is None):  # AdamW steps rows where they are
        return Whole(parameters, layouts)
    if layouts is None:
        owners = ranks.assign([elementwise_cost(parameter.numel()) for parameter in parameters])
        return OwnedByRanks(parameters, None, ranks, {Slot(index, 0): owner for index, owner in enumerate(owners)})
    costs = _matrix_costs(group, layouts)
    if any(sharded):
        whole = [0.0] * len(parameters)
        for slot, cost in costs.items():
            whole[slot.parameter] += cost
        return ShardedRows(parameters, layouts, ranks, ranks.assign(whole))
    owners = ranks.assign(list(costs.values()))
    return OwnedByRanks(parameters, layouts, ranks, dict(zip(costs, owners, strict=True)))


def _matrix_costs(group: Mapping[str, Any], layouts: Sequence[MatrixLayout]) -> dict[Slot, float]:
    """All matrices of a group, with what a step of each costs."""
    metric = metric_of(group)
    costs = {}
    for index, (parameter, layout) in enumerate(zip(group["params"], layouts, strict=True)):
        for part, (m, n) in enumerate(layout.shapes(parameter)):
            if m * n:
                costs[Slot(index, part)] = matrix_cost(m, n, metric)
    return costs
