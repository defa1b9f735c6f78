"""Which parameters weight decay leaves alone: the field's rule, the same for every optimizer."""

import fnmatch
import re
from contextlib import suppress

from torch import Tensor, nn

from fismo_core.modules import owners_of
from fismo_core.routing import decide_by_name

__all__ = ["undecayed_by_name", "undecayed_parameters"]

# Parameters that a module holds beside its layers: positions, class tokens, learned queries, scales.
_NOT_WEIGHTS = re.compile("pos|token|query|latent|embed|scale|gamma|bias")


def undecayed_parameters(model: nn.Module) -> dict[str, str]:
    """The trainable parameters that weight decay should leave alone, and why.

    These are norms, biases and other vectors and single numbers, embeddings (tied to the head or not), positions and
    tokens, and what the model lists in `no_weight_decay()` (timm's models) or marks by `_no_weight_decay`
    (transformers' state space models). Decayed are the weights of linear layers, the head among them, and of
    convolutions.

    Args:
        model: any module; a tied parameter counts once, by its first name.

    Returns:
        Of each such parameter the name, as in `model.named_parameters()`, and the reason.
    """
    listed = _listed(model)
    owners = owners_of(model)
    found: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        modules = [(owner.module, owner.attribute) for owner in owners[id(parameter)]]
        if not parameter.requires_grad:
            continue
        if id(parameter) in listed or getattr(parameter, "_no_weight_decay", False):
            found[name] = "the model says so"
        elif parameter.ndim < 2:
            found[name] = "vector"
        elif any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module, _ in modules):
            found[name] = "embedding"
        elif any("norm" in type(module).__name__.lower() and attribute == "weight" for module, attribute in modules):
            found[name] = "norm"
        elif any(_NOT_WEIGHTS.search(attribute) for _, attribute in modules):
            found[name] = "position, token, scale or bias"
    return found


def _listed(model: nn.Module) -> set[int]:
    """Parameters that `no_weight_decay()` of the model or of a part of it names, or whose names match its patterns."""
    found: set[int] = set()
    for module in model.modules():
        # Looked up on the class: wrappers forward attributes to the model they hold.
        if not callable(getattr(type(module), "no_weight_decay", None)):
            continue
        with suppress(TypeError):  # a method of that name with other arguments
            patterns = module.no_weight_decay()  # type: ignore[operator]
            named = list(module.named_parameters(remove_duplicate=False))
            found |= {id(p) for name, p in named if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    return found


def undecayed_by_name(name: str, parameter: Tensor) -> bool:
    """Whether weight decay should leave a parameter alone of which nothing but name and shape is known."""
    return parameter.ndim < 2 or decide_by_name(name, parameter)[2].startswith("embedding")
