"""MARS: a correction of gradients that takes away some of their noise, in front of any optimizer's momentum."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fismo_core.dtensors import distributed_like, full_tensor, local_part

__all__ = ["Mars"]


class Mars:
    """Steps an optimizer along c_t = g_t + gamma beta / (1 - beta) (g_t - g_{t-1}) instead of along the gradient g_t.

    beta is the decay of the optimizer's momentum (or first moment), by group. The momentum of c is the one of
    STORM-like variance reduction, by which a step's gradient replaces what older ones said. This is the approximate
    form: g_{t-1} is the last step's own gradient, on its own samples, so that no second backward pass is needed. A c_t
    whose norm, over the parameter, exceeds 1 is scaled to it, as the source does.

    Source: Yuan, Liu, Wu, Zhou, Gu, "MARS: Unleashing the Power of Variance Reduction for Training Large Models"
    (2024), arXiv 2411.10438.

    Example:
        >>> optimizer = FISMO(model)
        >>> mars = Mars(optimizer)
        >>> loss.backward()
        >>> optimizer.step()     # along the corrected gradients; parameters' `grad` is put back afterwards

    Args:
        optimizer: any, whose groups have `momentum` or `betas`; its steps are corrected from now on.
        gamma: how much of the correction is applied; 0 is none.

    Raises:
        ValueError: if gamma is negative, or a group has neither momentum nor betas, or they are zero.

    The first gradient of a parameter, and one that follows a non-finite gradient, is not corrected. A non-finite one is
    passed on as it is.
    """

    def __init__(self, optimizer: Optimizer, gamma: float = 0.025) -> None:
        if not gamma >= 0:
            raise ValueError(f"gamma must be at least 0, got {gamma!r}")
        for group in optimizer.param_groups:
            momentum_of(group)
        self._optimizer, self.gamma = optimizer, gamma
        self._last: dict[Tensor, Tensor] = {}
        self._seen: dict[Tensor, Tensor] = {}  # 1 where there is a finite last gradient, on the device
        self._raw: dict[Tensor, Tensor] = {}
        optimizer.register_step_pre_hook(self._correct)
        optimizer.register_step_post_hook(self._put_back)

    def state_bytes(self) -> int:
        """Bytes of the gradients it keeps in this process."""
        return sum(local_part(tensor).numel() * tensor.element_size() for tensor in self._last.values())

    def state_dict(self) -> dict[str, Any]:
        """The last gradients, by the parameter's number among all of the optimizer's."""
        return {
            str(index): {"last": self._last[parameter], "seen": self._seen[parameter]}
            for index, parameter in enumerate(self._parameters())
            if parameter in self._last
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: if it is of other parameters.
        """
        parameters = self._parameters()
        last: dict[Tensor, Tensor] = {}
        seen: dict[Tensor, Tensor] = {}
        for key, entry in state.items():
            if not int(key) < len(parameters) or parameters[int(key)].shape != entry["last"].shape:
                raise ValueError(f"the last gradient of parameter {key} is of another parameter")
            parameter = parameters[int(key)]
            last[parameter] = distributed_like(entry["last"].to(parameter.dtype, copy=True), parameter.detach())
            seen[parameter] = entry["seen"].to(parameter.device, copy=True)
        self._last, self._seen = last, seen

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def _correct(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            beta = momentum_of(group)
            factor = self.gamma * beta / (1 - beta)
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                self._raw[parameter] = gradient
                finite = full_tensor(gradient.isfinite().all())
                if parameter in self._last:
                    last, seen = self._last[parameter], self._seen[parameter]
                    corrected = gradient + (gradient - last) * (factor * seen)
                else:
                    corrected = gradient
                norm = torch.linalg.vector_norm(corrected)
                corrected = corrected / norm.clamp_min(1.0)
                parameter.grad = torch.where(finite, corrected, gradient)
                self._last[parameter] = torch.where(finite, gradient, 0.0)
                self._seen[parameter] = finite.to(gradient.dtype)

    def _put_back(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, gradient in self._raw.items():
            parameter.grad = gradient
        self._raw.clear()


def momentum_of(group: Mapping[str, Any]) -> float:
    """The decay of a group's momentum, or of its first moment.

    Raises:
        ValueError: if it has none, or zero.
    """
    beta = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
    if not 0 < beta < 1:
        raise ValueError("variance reduction corrects what a momentum averages, and this optimizer has none")
    return float(beta)
