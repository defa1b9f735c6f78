"""A matrix optimizer of torch or pytorch-optimizer on the matrices that FISMO would treat, and AdamW on the rest."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fismo_core import Plan
from fismo_core.layout import MatrixLayout, shares_memory
from fismo_core.plan import plan_of_groups

__all__ = ["Group", "MatrixOptimizer"]

Group = dict[str, Any]

PROJECTOR = "GaLoreProjector"
"""The one kind of object that optimizers here keep in their state; in a checkpoint it is a dictionary."""


class MatrixOptimizer(Optimizer):
    """A matrix optimizer on the matrices that FISMO would treat, and AdamW on all other parameters.

    The inner optimizer works on two-dimensional views that share memory with the parameters; where strides make that
    impossible (a convolution in channels-last memory), values are copied to and fro.

    Args:
        groups: from `split_parameters`; those that must not decay have `weight_decay` 0.
        create: makes the inner optimizer from parameter groups of matrices.
        adamw: arguments of `torch.optim.AdamW`.
    """

    def __init__(
        self, groups: list[Group], create: Callable[[Iterable[Any]], Optimizer], adamw: Mapping[str, Any]
    ) -> None:
        super().__init__(groups, {})
        self._inner: list[Optimizer] = []
        self._views: list[tuple[nn.Parameter, Any, list[Tensor]]] = []
        for group in self.param_groups:
            own = {"weight_decay": group["weight_decay"]} if "weight_decay" in group else {}
            if group["rule"] == "adamw":
                inner: Optimizer = torch.optim.AdamW([{"params": group["params"], **own}], **adamw)
            else:
                entries = []
                for parameter, plain in zip(group["params"], group["layouts"], strict=True):
                    layout = MatrixLayout.from_plain(plain)
                    entries.append((parameter, layout, layout.split(parameter.detach())))
                inner = create([{"params": [view for _, _, views in entries for view in views], **own}])
                self._views += entries
            group |= {k: v for k, v in inner.param_groups[0].items() if k in ("lr", "momentum", "betas")}
            self._inner.append(inner)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both optimizers, each at its group's `lr`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        copied = [entry for entry in self._views if not shares_memory(entry[0], entry[2])]
        for parameter, layout, views in copied:
            for view, value in zip(views, layout.split(parameter), strict=True):
                view.copy_(value)
        for parameter, layout, views in self._views:
            gradients = [None] * len(views) if parameter.grad is None else layout.split(parameter.grad)
            for view, gradient in zip(views, gradients, strict=True):
                view.grad = gradient
        for group, inner in zip(self.param_groups, self._inner, strict=True):
            for inner_group in inner.param_groups:
                inner_group["lr"] = group["lr"]
            inner.step()
        for parameter, layout, views in copied:
            parameter.copy_(layout.join(views, parameter.shape))
        for _, _, views in self._views:
            for view in views:
                view.grad = None  # or the gradients would outlive zero_grad
        return loss

    def plan(self) -> Plan:
        """Which parameter is treated by whom, as `FISMO.plan`."""
        return plan_of_groups(self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The groups, and the state of each inner optimizer in their order; of plain values and tensors."""
        return {**super().state_dict(), "inner": [_with_plain_projectors(inner.state_dict()) for inner in self._inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave.

        Raises:
            ValueError: if it is the state of another kind of optimizer.
        """
        if len(state_dict.get("inner", ())) != len(self._inner):
            raise ValueError("this is not the state of the same matrix optimizer")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "inner"})
        for inner, state in zip(self._inner, state_dict["inner"], strict=True):
            inner.load_state_dict(state)
            _make_projectors(inner)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's views would no longer share memory with its parameters, and it would silently train nothing.
        raise TypeError("a matrix optimizer cannot be copied or pickled; build another one and load its state_dict")


def _with_plain_projectors(state: dict[str, Any]) -> dict[str, Any]:
    entries = {
        index: {
            key: {PROJECTOR: vars(value)} if type(value).__name__ == PROJECTOR else value for key, value in e.items()
        }
        for index, e in state["state"].items()
    }
    return {**state, "state": entries}


def _make_projectors(optimizer: Optimizer) -> None:
    """Put projectors where `_with_plain_projectors` took them out; tensors are on their devices by now."""
    for entry in optimizer.state.values():
        for key, value in entry.items():
            if isinstance(value, dict) and PROJECTOR in value:
                from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

                projector = GaLoreProjector()
                vars(projector).update(value[PROJECTOR])
                entry[key] = projector
