"""The state of one group's matrices: stacked by bucket for the arithmetic; by parameter, as views, for torch.

torch's `optimizer.state` is the truth: a tensor that someone has put there in place of a view is taken in at the next
step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fismo_core import update
from fismo_core.arithmetic import arithmetic_of
from fismo_core.config import FisherMetric
from fismo_core.dtensors import distributed_like
from fismo_core.economy import metric_of
from fismo_core.groups import names_of, structure_of
from fismo_core.layout import Bucket, MatrixLayout, make_buckets
from fismo_core.placement import Directions, Move, Placement
from fismo_core.precision import accumulation_dtype, full_precision_matmul

__all__ = ["Entry", "MatrixStacks", "Stack", "fetch", "gathered"]

MAX_FAILED_REFRESHES = 10
"""Consecutive refreshes in which a matrix's roots may fail, and the previous ones be used, before a step raises."""

Entry = dict[str, Any]
"""The state of one parameter, as `optimizer.state` has it: `step`, and `momentum.0`, `P.0`, ... of its first matrix."""


class Stack:
    """The stacked states `(B, ...)` of a bucket's matrices, and the views of them that `optimizer.state` has.

    Args:
        bucket: the matrices.
        tensors: their states.

    Attributes:
        bucket: as given.
        tensors: as given; renewed by steps.
        views: by the index of the parameter and the name in its entry.
    """

    def __init__(self, bucket: Bucket, tensors: update.State) -> None:
        self.bucket, self.tensors = bucket, tensors
        self._viewed: update.State = {}
        self._failures: _Arriving | None = None
        self.views: dict[tuple[int, str], Tensor] = {}

    def put_views(self, entries: Sequence[Entry]) -> None:
        """Put views into the entries: all at first, later those of tensors that steps have put in others' place."""
        for name, tensor in self.tensors.items():
            if self._viewed.get(name) is not tensor:
                self._viewed[name] = tensor
                for slot, view in zip(self.bucket.slots, tensor, strict=True):
                    key = f"{name}.{slot.part}"
                    self.views[slot.parameter, key] = entries[slot.parameter][key] = view

    def check_roots(self) -> None:
        """After a refresh: no GPU is waited for, its answer is seen in a later one.

        Raises:
            RuntimeError: if the roots of a matrix failed in ten refreshes on end.
        """
        before = self._failures
        if before is None or before.here():
            self._failures = _Arriving(self.tensors["failures"].max())
        known = [int(answer.number) for answer in (before, self._failures) if answer is not None and answer.here()]
        if max(known, default=0) >= MAX_FAILED_REFRESHES:
            raise RuntimeError(
                f"roots of the Fisher factors of {self.bucket.m} x {self.bucket.n} matrices failed in "
                f"{MAX_FAILED_REFRESHES} refreshes on end; raise damping or lower lr"
            )


class _Arriving:
    """A number on its way from a device to the host."""

    def __init__(self, number: Tensor) -> None:
        self.number = number.to("cpu", non_blocking=number.is_cuda)
        self._event = torch.cuda.current_stream(number.device).record_event() if number.is_cuda else None

    def here(self) -> bool:
        """Whether `number` can be read."""
        return self._event is None or self._event.query()


class MatrixStacks:
    """Layouts of a group's parameters, and the stacked state of the matrices that are stepped in this process.

    Args:
        group: a parameter group of matrices.
        placement: of the group.
        saved: what to start from, for each parameter: its entry, and what messages call it; what is missing there
            starts afresh.
        complete: nothing may be missing.

    Attributes:
        layouts: of the parameters.
        stacks: one for each shape and device.
        entries: for each parameter what belongs into `optimizer.state`.

    Raises:
        ValueError: if something is missing in `saved`, or has another shape.
    """

    def __init__(
        self,
        group: Mapping[str, Any],
        placement: Placement,
        saved: Sequence[tuple[Mapping[str, Any], str]],
        *,
        complete: bool = False,
    ) -> None:
        parameters = group["params"]
        self.layouts = [MatrixLayout.from_plain(plain) for plain in group["layouts"]]
        self.stacks: list[Stack] = []
        self.entries: list[Entry] = [{} for _ in parameters]
        self._placed = _places(parameters)
        self._structure = structure_of(group)
        for bucket in make_buckets(parameters, self.layouts, placement.owns):
            sizes = len(bucket.slots), bucket.m, bucket.n
            arithmetic = arithmetic_of(group, bucket.dtype, bucket.device)
            stack = Stack(bucket, update.initial_state(*sizes, arithmetic, bucket.dtype, bucket.device))
            stack.put_views(self.entries)
            self.stacks.append(stack)
            for (index, key), view in stack.views.items():
                before, called = saved[index]
                if complete or key in before:
                    view.copy_(fetch(before, called, key, view))
        for entry, (before, _) in zip(self.entries, saved, strict=True):
            if entry:
                entry["step"] = int(before.get("step", 0))

    def fits(self, parameters: Sequence[Tensor], entries: Sequence[Entry]) -> bool:
        """False if parameters were moved or converted, or someone has cleared their state."""
        cleared = any(ours and not entry for ours, entry in zip(self.entries, entries, strict=True))
        return not cleared and self._placed == _places(parameters)

    def step(self, group: Mapping[str, Any], placement: Placement, entries: Sequence[Entry]) -> None:
        """One step of the parameters that have a gradient, by what `optimizer.state` has of them.

        Raises:
            RuntimeError: if options were changed that decide which state there is, or roots of a Fisher factor failed
                in ten refreshes on end.
            ValueError: if what stands in `optimizer.state` does not fit.
        """
        self._check_structure(group)
        self._follow(entries, names_of(group))
        gradients = {i: p.grad for i, p in enumerate(group["params"]) if p.grad is not None and p.numel()}
        directions = self._directions(group, placement.gather(gradients), entries)
        for moves in placement.moves(directions, gradients):
            _apply(moves, group)

    def _check_structure(self, group: Mapping[str, Any]) -> None:
        """Raise a RuntimeError if options that decide which state there is were changed since it was allocated."""
        if structure_of(group) != self._structure:
            raise RuntimeError(
                "the economy, and power (from or to 0 and 1/2), damping_scale, max_dim and max_ratio of the metric "
                "decide which state a group has and cannot be changed later: make a new optimizer"
            )

    def _follow(self, entries: Sequence[Entry], names: Sequence[str]) -> None:
        """Take in what stands in `optimizer.state` in place of the views."""
        for stack in self.stacks:
            for (index, key), view in stack.views.items():
                if entries[index].get(key) is not view:
                    view.copy_(fetch(entries[index], names[index], key, view))
                    entries[index][key] = view

    def _directions(
        self, group: Mapping[str, Any], gradients: Mapping[int, Tensor], entries: Sequence[Entry]
    ) -> Iterator[Directions]:
        """One step of the states of all matrices that have a gradient, bucket by bucket.

        Args:
            group: whose options are used.
            gradients: whole ones, by index of the parameter.
            entries: of the parameters, with the number of steps that each has taken; counted on by this.

        Yields:
            Of each matrix the direction `(m, n)`, to be applied as W <- W - lr D, and whether it takes part.
        """
        parts = {index: self.layouts[index].split(gradient) for index, gradient in gradients.items()}
        metric = metric_of(group)
        for stack in self.stacks:
            bucket = stack.bucket
            present = [slot.parameter in parts for slot in bucket.slots]
            if not any(present):
                continue
            steps = [entries[slot.parameter]["step"] for slot in bucket.slots]
            active, refresh, sides = _masks(present, steps, metric, bucket.device)
            # Autocast, if step() is called inside it, would turn the products below into half precision.
            with torch.autocast(bucket.device.type, enabled=False), full_precision_matmul():
                D, taken = update.fismo_update(
                    gathered(bucket, parts, negated=group["maximize"]),
                    stack.tensors,
                    arithmetic_of(group, bucket.dtype, bucket.device),
                    active=active,
                    refresh=refresh,
                    sides=sides,
                )
            stack.put_views(entries)
            if refresh is not False and metric.power > 0:
                stack.check_roots()
            results = zip(bucket.slots, present, D, taken, strict=True)
            yield {slot: (direction, takes_part) for slot, here, direction, takes_part in results if here}
        for index in parts:
            if entries[index]:
                entries[index]["step"] += 1


def _apply(moves: Sequence[Move], group: Mapping[str, Any]) -> None:
    """W <- (1 - lr weight_decay) W - lr radius_scale D in place."""
    lr, matrices, directions = float(group["lr"]), [move.values for move in moves], [move.direction for move in moves]
    if group["weight_decay"]:
        decay = lr * group["weight_decay"]
        # A boolean times a number would have torch's default dtype: too coarse for float64, or if that is bfloat16.
        shares = [1 - decay * move.taken.to(accumulation_dtype(move.values.dtype)) for move in moves]
        if group["cautious"]:
            for W, D, share in zip(matrices, directions, shares, strict=True):
                W.mul_(torch.where(W * D > 0, share, 1))
        else:
            torch._foreach_mul_(matrices, shares)
    torch._foreach_add_(matrices, directions, alpha=-lr * group["radius_scale"])


def gathered(bucket: Bucket, parts: Mapping[int, Sequence[Tensor]], *, negated: bool = False) -> Tensor:
    """The gradients of a bucket's matrices `(B, m, n)` in its dtype; zeros where there is none."""
    zeros = torch.zeros(bucket.m, bucket.n, dtype=bucket.dtype, device=bucket.device)
    G = torch.stack(
        [
            parts[slot.parameter][slot.part].to(bucket.dtype) if slot.parameter in parts else zeros
            for slot in bucket.slots
        ]
    )
    return G.neg_() if negated else G


def fetch(saved: Mapping[str, Any], called: str, name: str, like: Tensor) -> Tensor:
    """A saved tensor of a parameter, on the device and in the dtype of `like`.

    Raises:
        ValueError: if it is missing or has another shape.
    """
    value = saved.get(name)
    if value is None:
        raise ValueError(f"the state of {called} has no {name}")
    if value.shape != like.shape:
        raise ValueError(f"{name} of {called} has shape {tuple(value.shape)}, expected {tuple(like.shape)}")
    return distributed_like(value.to(device=like.device, dtype=like.dtype), like)


def _places(parameters: Sequence[Tensor]) -> list[tuple[torch.device, bool]]:
    """Where the parameters are, and whether they are float64: what the allocated state depends on."""
    return [(parameter.device, parameter.dtype == torch.float64) for parameter in parameters]


def _masks(
    present: Sequence[bool], steps: Sequence[int], metric: FisherMetric, device: torch.device
) -> tuple[update.Mask, update.Mask, tuple[update.Mask, update.Mask]]:
    """For which matrices of a bucket: a step is taken, new roots are computed, statistics of each side are taken.

    Args:
        present: which have a gradient.
        steps: how many steps each has taken.
        metric: of the group.
        device: of the bucket.
    """

    def mask(wanted: Callable[[int], bool]) -> update.Mask:
        return _device_mask(tuple(here and wanted(step) for here, step in zip(present, steps, strict=True)), device)

    return (
        mask(lambda step: True),
        mask(lambda step: _is_due(step, metric.refresh_every or 1)),
        (mask(lambda step: _folds_into(0, step, metric)), mask(lambda step: _folds_into(1, step, metric))),
    )


def _is_due(step: int, interval: int) -> bool:
    """Whether new roots are computed in this step (counted from 0) of a parameter.

    Early statistics change fast, so that roots after 1, 2, 4, ... steps are added to those of the interval.
    """
    return step % interval == 0 or (step < interval and step.bit_count() == 1)


def _folds_into(side: int, step: int, metric: FisherMetric) -> bool:
    """Whether the statistics of a side (0: rows, 1: columns) are taken in this step (counted from 0) of a parameter."""
    return metric.statistics == "both" or step == 0 or step % 2 == side


def _device_mask(mask: tuple[bool, ...], device: torch.device) -> Tensor | bool:
    """True or False if all or none of the mask are, else a boolean tensor on the device."""
    return True if all(mask) else any(mask) and _on_device(mask, device)


@lru_cache(maxsize=256)
def _on_device(mask: tuple[bool, ...], device: torch.device) -> Tensor:
    """Kept, since making one each step would make the host wait for a CUDA device."""
    return torch.tensor(mask, device=device)
