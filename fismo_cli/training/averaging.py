"""An exponential moving average of a model's weights, evaluated and saved in place of the last weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fismo_core.sharding import rows_of

__all__ = ["WeightAverage"]


class WeightAverage:
    """The moving average of `torch.optim.swa_utils`, without its per-step question to the device.

    `AveragedModel` counts updates in a tensor on the device and reads it at every step, which makes the host wait. Here
    the first update is told by the caller. As there, it copies the weights; buffers are always copied.

    Args:
        model: the model to follow; call this before it is compiled.
        decay: share of the average kept at each update.
        twin: a copy of the model to hold the average; by default one is made here.
    """

    def __init__(self, model: nn.Module, decay: float, twin: nn.Module | None = None) -> None:
        self.module = (copy.deepcopy(model) if twin is None else twin).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._own: list[Tensor] = list(self.module.parameters())
        self._own_buffers: list[Tensor] = list(self.module.buffers())

    @torch.no_grad()
    def update(self, model: nn.Module, *, first: bool) -> None:
        """Fold the model's weights into the average; the first time they become the average."""
        current = [rows_of(parameter.detach()) for parameter in model.parameters()]
        own = [rows_of(parameter) for parameter in self._own]
        if first:
            torch._foreach_copy_(own, current)
        else:
            self._average(own, current, None)
        buffers = list(model.buffers())
        if buffers:
            torch._foreach_copy_(self._own_buffers, buffers)

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the average to what `state_dict` returned."""
        self.module.load_state_dict(state)
