"""The repeated blocks of a model (layers of a transformer, stages of a convolutional network), and recomputing them.

By structure alone, whatever library the model is of.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fismo_cli.errors import UsageError

__all__ = ["recompute_activations", "repeated_blocks"]

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of one class, two or more of them in lists or sequences, that hold most of a model's weights.

    A block is made of other modules, and is no mere container. Of blocks within blocks the outer ones count. Blocks
    that share weights with the rest of the model are left out, since those cannot be treated apart.
    """
    by_class: dict[type, dict[nn.Module, None]] = {}  # dicts keep the order
    for container in model.modules():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            for child in container:
                if not isinstance(child, _CONTAINERS) and any(True for _ in child.children()):
                    by_class.setdefault(type(child), {})[child] = None
    repeated = [list(found) for found in by_class.values() if len(found) > 1]
    blocks = max(repeated, key=_weights, default=[])
    inner = {module for block in blocks for module in block.modules() if module is not block}
    return [block for block in blocks if block not in inner and not _shares_weights(block, model)]


def recompute_activations(model: nn.Module, *, compiled: bool = False) -> None:
    """Keep only the inputs of a model's blocks for the backward pass, which computes each block's forward pass again.

    In place, and no name of a parameter changes. Random draws are repeated; statistics that a block takes in training
    (batch norm) are taken once.

    Args:
        model: the model.
        compiled: whether torch.compile compiles it.

    Raises:
        UsageError: if the model has no repeated blocks, or compiled ones with batch norm.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        raise UsageError(
            f"train.activation_checkpointing: {type(model).__name__} has no repeated blocks to compute again; set it "
            "to false"
        )
    if compiled and any(isinstance(module, _BatchNorm) for block in blocks for module in block.modules()):
        raise UsageError(
            "train.activation_checkpointing: with train.compile, batch norm would take its statistics twice; set one "
            "of them to false"
        )
    for block in blocks:
        block.forward = _recomputed(block)


def _recomputed(block: nn.Module) -> Callable[..., Any]:
    forward = block.forward

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # torch.compile takes no context
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _buffers_kept(block)), **kwargs
        )

    return run


def _buffers_kept(block: nn.Module) -> AbstractContextManager[None]:
    return _restored(block) if any(True for _ in block.buffers()) else nullcontext()


@contextmanager
def _restored(block: nn.Module) -> Iterator[None]:
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(block.buffers(), before, strict=True):
                buffer.copy_(value)


def _weights(blocks: list[nn.Module]) -> int:
    return sum({parameter: parameter.numel() for block in blocks for parameter in block.parameters()}.values())


def _shares_weights(block: nn.Module, model: nn.Module) -> bool:
    inside = set(block.modules())
    own = {id(parameter) for parameter in block.parameters()}
    outside = (module for module in model.modules() if module not in inside)
    return any(id(parameter) in own for module in outside for parameter in module.parameters(recurse=False))
