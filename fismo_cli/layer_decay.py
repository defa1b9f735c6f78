"""Layer-wise learning rates: the deeper towards the input, the smaller, as for fine-tuning (BEiT, arXiv 2106.08254)."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fismo_cli.blocks import repeated_blocks
from fismo_cli.errors import UsageError

__all__ = ["by_layer", "layer_scales", "scale_rates"]

Group = dict[str, Any]

_BY_PARAMETER = ("params", "reasons", "layouts")
"""What a group has one of for each of its parameters."""


def layer_scales(model: nn.Module, decay: float) -> dict[Tensor, float]:
    """By what the rate of each trained parameter is multiplied: `decay ** (depth - layer)`, 1 in the head.

    timm's models have timm's layers (`param_groups_layer_decay`). Of others the repeated blocks are the layers: what is
    defined before them (embeddings) is layer 0, what is after them (last norm, head) is one more than the last block.

    Raises:
        UsageError: the model has no such layers.
    """
    if hasattr(model, "group_matcher"):
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

        groups: list[Group] = param_groups_layer_decay(model, layer_decay=decay)
        return {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    blocks = repeated_blocks(model)
    if not blocks:
        raise UsageError(f"optimizer.layer_decay: {type(model).__name__} has no layers that could be told apart")
    number = {id(parameter): index for index, block in enumerate(blocks, 1) for parameter in block.parameters()}
    found: dict[Tensor, float] = {}
    layer = 0
    for parameter in model.parameters():
        inside = number.get(id(parameter))
        # Before the first block 0; after a block that is not followed by another one, behind all of them.
        layer = inside if inside is not None else 0 if layer == 0 else len(blocks) + 1
        found[parameter] = decay ** (len(blocks) + 1 - layer)
    return found


def by_layer(groups: Iterable[Group], scales: dict[Tensor, float]) -> tuple[list[Group], list[float]]:
    """Each group as one for each rate, the highest first, and what the rate of each is to be multiplied by.

    Args:
        groups: of parameters, or of pairs of name and parameter.
        scales: as `layer_scales` gives them.
    """
    made: list[Group] = []
    rates: list[float] = []
    for group in groups:
        own = [scales[item[1] if isinstance(item, tuple) else item] for item in group["params"]]
        for scale in sorted(set(own), reverse=True):
            members = [index for index, value in enumerate(own) if value == scale]
            parts = {key: [group[key][index] for index in members] for key in _BY_PARAMETER if key in group}
            made.append({**group, **parts})
            rates.append(scale)
    return made, rates


def scale_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Multiply the learning rate of each of an optimizer's groups."""
    for group, scale in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] *= scale
