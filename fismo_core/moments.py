"""AdamW by torch, for the parameters of a group that are no matrices: their moments, and a step."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from fismo_core.layout import Slot
from fismo_core.placement import Placement
from fismo_core.stacks import Entry, fetch

__all__ = ["Moments"]


class Moments:
    """First and second moment of each parameter of a group that is stepped in this process.

    Args:
        group: a parameter group of AdamW's.
        placement: of the group.
        saved: what to start from, for each parameter: its entry, and what messages call it; what is missing there
            starts afresh.
        complete: nothing may be missing.

    Attributes:
        entries: for each parameter what belongs into `optimizer.state`; empty where another rank has it.

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
        self.entries: list[Entry] = [{} for _ in group["params"]]
        for index, parameter in enumerate(group["params"]):
            if not placement.owns(Slot(index, 0)):
                continue
            self.entries[index] = _fresh(parameter, group["fused"])
            before, called = saved[index]
            for name, value in self.entries[index].items():
                if complete or name in before:
                    value.copy_(fetch(before, called, name, value))

    def fits(self, parameters: Sequence[Tensor], entries: Sequence[Entry]) -> bool:
        """False if parameters were moved or converted, or someone has cleared their state."""
        return all(
            "exp_avg" in entry
            and (entry["exp_avg"].device, entry["exp_avg"].dtype) == (parameter.device, parameter.dtype)
            for parameter, entry, ours in zip(parameters, entries, self.entries, strict=True)
            if ours
        )

    def step(self, group: Mapping[str, Any], placement: Placement, entries: Sequence[Entry]) -> None:
        """One step of the parameters that have a gradient, by what `optimizer.state` has of them."""
        here = [(p, entry) for p, entry in zip(group["params"], entries, strict=True) if p.grad is not None and entry]
        for fused in (False, True):
            chosen = [(parameter, entry) for parameter, entry in here if _is_fused(parameter, group["fused"]) is fused]
            if chosen:
                adamw(
                    [parameter for parameter, _ in chosen],
                    [cast(Tensor, parameter.grad) for parameter, _ in chosen],
                    [entry["exp_avg"] for _, entry in chosen],
                    [entry["exp_avg_sq"] for _, entry in chosen],
                    [],
                    [entry["step"] for _, entry in chosen],
                    fused=fused or None,
                    amsgrad=False,
                    # Schedulers that cycle the momentum set this key in all groups.
                    beta1=group.get("momentum", group["betas"][0]),
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=group["maximize"],
                )


def _fresh(parameter: Tensor, fused: bool | None) -> Entry:
    """AdamW's state before the first step."""
    # On the CPU: read without a device sync. In bfloat16, torch's default or not, it would stop at 256.
    device = parameter.device if _is_fused(parameter, fused) else "cpu"
    return {
        "step": torch.zeros((), dtype=torch.float32, device=device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
    }


def _is_fused(parameter: Tensor, fused: bool | None) -> bool:
    return parameter.device.type == "cuda" if fused is None else fused
