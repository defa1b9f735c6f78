"""An exponential moving average of a model's weights, evaluated and saved in place of the last weights."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fismo_core.dtensors import local_part

__all__ = ["WeightAverage", "decay_at"]


def decay_at(step: int, decay: float) -> float:
    """The share of the average kept at the update after a step (from 1), which rises to `decay`.

    With a constant one the first weights, which are random, would stay for 1 / (1 - decay) steps. The rule is that of
    timm's `ModelEmaV3` with `use_warmup`: the average is over about the last `step ** (2 / 3)` steps.
    """
    return min(decay, 1.0 - math.pow(step, -2.0 / 3.0))


class WeightAverage:
    """The moving average of `torch.optim.swa_utils`, without its per-step question to the device, and with a warm-up.

    `AveragedModel` counts updates in a tensor on the device and reads it at every step, which makes the host wait. Here
    the caller tells the number of the update. Buffers are always copied.

    Args:
        model: the model to follow; call this before it is compiled.
        decay: share of the average kept at each update, once it has warmed up (see `decay_at`).
        twin: a copy of the model to hold the average; by default one is made here.
    """

    def __init__(self, model: nn.Module, decay: float, twin: nn.Module | None = None) -> None:
        self.module = (copy.deepcopy(model) if twin is None else twin).eval().requires_grad_(False)
        self._decay = decay
        self._own: list[Tensor] = list(self.module.parameters())
        self._own_buffers: list[Tensor] = list(self.module.buffers())

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Fold the model's weights after a step (from 1) into the average; after the first they are the average."""
        current = [local_part(parameter.detach()) for parameter in model.parameters()]
        own = [local_part(parameter) for parameter in self._own]
        if step == 1:
            torch._foreach_copy_(own, current)
        else:
            get_ema_multi_avg_fn(decay_at(step, self._decay))(own, current, None)  # type: ignore[no-untyped-call]
        buffers = list(model.buffers())
        if buffers:
            torch._foreach_copy_(self._own_buffers, buffers)

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the average to what `state_dict` returned."""
        self.module.load_state_dict(state)
