"""Which parameters of a model that FSDP2 has spread got a gradient in any process.

FSDP2 gives those that got none in any process a gradient of zero, by which an optimizer would decay them and move on
its momentum: other than in one process, and other than under DDP.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fismo_cli.training.distributed.world import World
from fismo_core.dtensors import is_dtensor

__all__ = ["UsedParameters"]


class UsedParameters:
    """Notes which parameters get a gradient, from the first forward pass on.

    Args:
        model: spread by `fully_shard`, before its first forward pass.
        world: the processes.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        from torch.distributed.fsdp import FSDPModule

        self._world = world
        self._parameters = list(model.parameters())
        number = {parameter: index for index, parameter in enumerate(self._parameters)}
        self._numbers = {name: number[p] for name, p in model.named_parameters(remove_duplicate=False)}
        self._flags = torch.zeros(len(self._parameters), dtype=torch.int32)
        self._watched: dict[int, Tensor] = {}
        # Here, not as a decorator: it imports torch's compiler, which takes seconds that only FSDP2 need cost.
        watch = torch.compiler.disable(self._watch)  # type: ignore[no-untyped-call]
        self._hooks = {
            prefix: module.register_forward_pre_hook(partial(watch, prefix))
            for prefix, module in model.named_modules()
            if issubclass(type(module), FSDPModule)
        }

    def drop_unused(self) -> None:
        """Take the gradients away that no process had in this step; all processes call it after the backward pass."""
        if self._flags.numel():
            for parameter, used in zip(self._parameters, self._world.maximum(self._flags).tolist(), strict=True):
                if not used:
                    parameter.grad = None
        self._flags.zero_()

    def _watch(self, prefix: str, module: nn.Module, _: Any) -> None:
        """Watch the parameters that FSDP2 has brought together for this module: the same tensors ever after."""
        self._hooks[prefix].remove()
        for name, parameter in module.named_parameters(prefix, remove_duplicate=False):
            if parameter.requires_grad and not is_dtensor(parameter) and id(parameter) not in self._watched:
                self._watched[id(parameter)] = parameter
                parameter.register_hook(partial(self._note, self._numbers[name]))  # type: ignore[no-untyped-call]

    def _note(self, number: int, gradient: Tensor | None) -> None:
        if gradient is not None:
            self._flags[number] = 1
