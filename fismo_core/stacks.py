"""The state of one group's matrices: stacked by bucket for the arithmetic, by parameter for checkpoints.

Knows parameter groups as dictionaries; the optimizer around it and the arithmetic in `update.py` are not its business.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fismo_core.layout import Bucket, MatrixLayout, Slot, make_buckets
from fismo_core.options import options_of, structure_of
from fismo_core.routing import layout_from_plain
from fismo_core.sharding import spread_as
from fismo_core.update import State, initial_state

__all__ = ["MatrixStacks", "device_mask", "fetch", "placement_of"]


@dataclass
class MatrixStacks:
    """Layouts of a group's parameters, the buckets of their matrices, and the stacked state of each bucket."""

    layouts: list[MatrixLayout]
    buckets: list[Bucket]
    states: list[State]
    placement: list[tuple[torch.device, bool]]
    structure: tuple[Any, ...]

    @classmethod
    def allocate(cls, group: Mapping[str, Any], owned: Container[Slot] | None = None) -> "MatrixStacks":
        """All state of a group at once, so that checkpoints are complete from the start; or of its owned matrices."""
        layouts = [layout_from_plain(plain) for plain in group["layouts"]]
        buckets = make_buckets(group["params"], layouts, owned)
        return cls(layouts, buckets, _fresh(group, buckets), placement_of(group["params"]), structure_of(group))

    def check_structure(self, group: Mapping[str, Any]) -> None:
        """Raise a RuntimeError if options that decide which state there is were changed since it was allocated."""
        if structure_of(group) != self.structure:
            raise RuntimeError(
                "power (from or to 0 and 1/2), damping_scale, max_factor_dim and max_factor_ratio decide which state a "
                "group has and cannot be changed later: make a new optimizer"
            )

    def gather(self, bucket: Bucket, gradients: Mapping[int, Sequence[Tensor]]) -> Tensor:
        """The gradients of a bucket's matrices `(B, m, n)` in its dtype; zeros where there is none."""
        zeros = torch.zeros(bucket.m, bucket.n, dtype=bucket.dtype, device=bucket.device)
        return torch.stack(
            [
                gradients[slot.parameter][slot.part].to(bucket.dtype) if slot.parameter in gradients else zeros
                for slot in bucket.slots
            ]
        )

    def entries(self) -> dict[int, dict[str, Tensor]]:
        """The state by index of the parameter, in memory of its own: `momentum.0`, `P.0`, ... for its first matrix."""
        result: dict[int, dict[str, Tensor]] = {}
        for bucket, state in zip(self.buckets, self.states, strict=True):
            for row, slot in enumerate(bucket.slots):
                entry = result.setdefault(slot.parameter, {})
                entry.update({f"{key}.{slot.part}": tensor[row].clone() for key, tensor in state.items()})
        return result

    def read(self, saved_group: Mapping[str, Any], saved: Mapping[Any, Mapping[str, Any]]) -> list[State]:
        """Stacked states from saved entries.

        Args:
            saved_group: the saved group, whose options decide which state there must be.
            saved: entries as `entries` made them, by the keys in `saved_group["params"]`.

        Raises:
            ValueError: if one is missing or has another shape.
        """
        keys = saved_group["params"]
        return [
            {
                name: torch.stack(
                    [fetch(saved, keys[slot.parameter], f"{name}.{slot.part}", like[0]) for slot in bucket.slots]
                )
                for name, like in template.items()
            }
            for bucket, template in zip(self.buckets, _fresh(saved_group, self.buckets), strict=True)
        ]


def placement_of(parameters: Sequence[Tensor]) -> list[tuple[torch.device, bool]]:
    """Where the parameters are, and whether they are float64: what the allocated state depends on."""
    return [(parameter.device, parameter.dtype == torch.float64) for parameter in parameters]


def fetch(saved: Mapping[Any, Mapping[str, Any]], key: Any, name: str, like: Tensor) -> Tensor:
    """A copy of one saved tensor, on the device and in the dtype of `like`.

    Raises:
        ValueError: if it is missing or has another shape.
    """
    value = saved.get(key, {}).get(name)
    if value is None:
        raise ValueError(f"the state of parameter {key} has no {name}")
    if value.shape != like.shape:
        raise ValueError(f"{name} of parameter {key} has shape {tuple(value.shape)}, expected {tuple(like.shape)}")
    return spread_as(value.to(device=like.device, dtype=like.dtype, copy=True), like)


def device_mask(mask: tuple[bool, ...], device: torch.device) -> Tensor | bool:
    """True or False if all or none of the mask are, else a boolean tensor on the device."""
    return True if all(mask) else any(mask) and _on_device(mask, device)


@lru_cache(maxsize=256)
def _on_device(mask: tuple[bool, ...], device: torch.device) -> Tensor:
    """Kept, since making one each step would make the host wait for a CUDA device."""
    return torch.tensor(mask, device=device)


def _fresh(group: Mapping[str, Any], buckets: Sequence[Bucket]) -> list[State]:
    return [initial_state(len(b.slots), b.m, b.n, options_of(group, b), b.dtype, b.device) for b in buckets]
