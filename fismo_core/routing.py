"""Which parameter is treated as matrices and which by AdamW, and why: decided by the module that holds it, or its name.

Knows modules by torch's types and by qualified class names, so that neither timm nor transformers is imported.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fismo_core.config import Rule
from fismo_core.layout import MatrixLayout
from fismo_core.modules import (
    CONV1D,
    CONV1D_FUSED,
    PHI3_ATTENTION,
    PHI3_MLP,
    TIMM_QKV,
    TRANSPOSED_EXPERTS,
    Owner,
    class_of,
    owners_of,
    qualified_name,
)

__all__ = ["Decision", "decide_by_modules", "decide_by_name"]

# Children of a model that are its output head, where no accessor says so (torchvision, transformers' classifiers).
_HEAD_NAMES = {"aux_head", "classifier", "fc", "head", "head_dist", "heads", "lm_head", "qa_outputs", "score"}

_MOST_IMAGE_CHANNELS = 16
"""A "patch embedding" of more channels is a stage's downsampling, a hidden layer like any other."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


Decision = tuple[Rule, MatrixLayout | None, str]
"""Who treats a parameter, which matrices it holds if it is treated so, and why."""


def decide_by_modules(model: nn.Module) -> dict[str, Decision]:
    """A decision for every parameter of a model, frozen ones too, by name; a tied one by its first.

    Parameters that have no shape yet are left out.
    """
    heads, owners = _head_parameters(model), owners_of(model)
    return {
        name: _decide(p, owners[id(p)], id(p) in heads)
        for name, p in model.named_parameters()
        if not isinstance(p, UninitializedParameter)
    }


def decide_by_name(name: str, parameter: Tensor) -> Decision:
    """The same where nothing but name and shape is known, as of `model.named_parameters()`."""
    *modules, attribute = name.split(".")
    if parameter.ndim < 2:
        return "adamw", None, "vector"
    if re.search("emb|pos|token|wte|wpe", ".".join([*modules[-1:], attribute])):
        return "adamw", None, "embedding, position or token, by its name"
    if modules and modules[-1] in _HEAD_NAMES:
        return "adamw", None, "output head, by its name"
    return "matrix", MatrixLayout(), "two or more dimensions"


def _head_parameters(model: nn.Module) -> set[int]:
    """Parameters of output heads, wherever in the model a timm, transformers or torchvision model sits."""
    heads: list[Any] = []
    for module in model.modules():
        # Looked up on the class: wrappers such as torch.compile's forward attributes to the model they hold.
        for accessor in ("get_classifier", "get_output_embeddings"):
            if callable(getattr(type(module), accessor, None)):
                with suppress(TypeError):  # a method of that name with other arguments
                    heads.extend(_flatten(getattr(module, accessor)()))
        library = class_of(module).__module__.startswith("torchvision.models.")
        if module is model or library or hasattr(type(module), "base_model_prefix"):
            named = [child for name, child in module.named_children() if name in _HEAD_NAMES]
            heads.extend(last for child in named if (last := _last_linear(child)) is not None)
    heads.append(_end_of_sequence(model))
    return {id(parameter) for head in heads if isinstance(head, nn.Module) for parameter in head.parameters()}


def _end_of_sequence(model: nn.Module) -> nn.Module | None:
    """The linear layer or convolution that ends a model which is an `nn.Sequential`, or holds nothing else."""
    module, in_sequence = model, False
    while not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        is_sequence, children = class_of(module) is nn.Sequential, list(module.children())
        is_wrapper = len(children) == 1 and not any(True for _ in module.parameters(recurse=False))
        weighted = [child for child in children if any(True for _ in child.parameters())]
        if not weighted or not (is_sequence or is_wrapper):
            return None
        module, in_sequence = weighted[-1], in_sequence or is_sequence
    return module if in_sequence else None


def _last_linear(module: nn.Module) -> nn.Module | None:
    """The last linear layer or convolution in a head; what comes before it is a hidden layer."""
    found = [child for child in module.modules() if isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    return found[-1] if found else None


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _decide(parameter: Tensor, owners: list[Owner], is_head: bool) -> Decision:
    if is_head:
        tied = any(isinstance(owner.module, nn.Embedding) for owner in owners)
        return "adamw", None, "output head, tied to the embedding" if tied else "output head"
    if any(isinstance(owner.module, (nn.Embedding, nn.EmbeddingBag)) for owner in owners):
        return "adamw", None, "embedding"
    if parameter.ndim < 2:
        return "adamw", None, "vector"
    return _decide_matrix(parameter, owners[0])


def _decide_matrix(parameter: Tensor, owner: Owner) -> Decision:
    module = owner.module
    rows = int(parameter.shape[0])
    if isinstance(module, nn.Linear) and owner.attribute == "weight":
        return _decide_linear(module, owner, rows)
    if isinstance(module, nn.MultiheadAttention):
        if owner.attribute == "in_proj_weight":
            return "matrix", MatrixLayout(rows=(rows // 3,) * 3), "query, key, value"
        if owner.attribute.endswith("_proj_weight"):
            return "matrix", MatrixLayout(), "attention projection"
    if isinstance(module, _CONVOLUTIONS) and owner.attribute == "weight":
        return _decide_convolution(module, owner)
    if isinstance(module, _TRANSPOSED_CONVOLUTIONS) and owner.attribute == "weight" and module.groups == 1:
        return "matrix", MatrixLayout(transposed=True), "transposed convolution"
    if qualified_name(module) == CONV1D and owner.attribute == "weight":
        fan_in, fan_out = (int(size) for size in parameter.shape)
        if owner.parent_class in CONV1D_FUSED and owner.child_name == "c_attn":
            blocks = (fan_in,) * (fan_out // fan_in)
            return "matrix", MatrixLayout(transposed=True, rows=blocks), "query, key, value, stored (in, out)"
        return "matrix", MatrixLayout(transposed=True), "linear, stored (in, out)"
    if parameter.ndim == 3 and type(module).__name__.endswith("Experts"):
        return _decide_experts(parameter, owner)
    if type(module).__name__.endswith("Router"):
        return "adamw", None, "router"
    if re.search("pos|token|query|scale|gamma", owner.attribute):
        return "adamw", None, "position, token or scale"
    return "adamw", None, "not a known kind of matrix"


def _decide_experts(parameter: Tensor, owner: Owner) -> Decision:
    module = owner.module
    transposed = bool(getattr(module, "is_transposed", qualified_name(module) in TRANSPOSED_EXPERTS))
    rows = int(parameter.shape[2 if transposed else 1])
    if owner.attribute == "gate_up_proj" and getattr(module, "is_concatenated", True):
        return "matrix", MatrixLayout(stacked=True, transposed=transposed, rows=(rows // 2,) * 2), "experts: gate, up"
    return "matrix", MatrixLayout(stacked=True, transposed=transposed), "stacked experts"


def _decide_linear(module: nn.Linear, owner: Owner, rows: int) -> Decision:
    if _is_router(owner):
        return "adamw", None, "router"
    if owner.child_name == "qkv" and owner.parent_class in TIMM_QKV:
        return "matrix", MatrixLayout(rows=(rows // 3,) * 3), "query, key, value"
    if owner.child_name == "gate_up_proj" and owner.parent_class == PHI3_MLP:
        return "matrix", MatrixLayout(rows=(rows // 2,) * 2), "gate, up"
    if owner.child_name == "qkv_proj" and owner.parent_class == PHI3_ATTENTION:
        config: Any = owner.parents[0][1].config
        query = config.num_attention_heads * (rows // (config.num_attention_heads + 2 * config.num_key_value_heads))
        return "matrix", MatrixLayout(rows=(query, (rows - query) // 2, (rows - query) // 2)), "query, key, value"
    return "matrix", MatrixLayout(), "linear"


def _is_router(owner: Owner) -> bool:
    """Whether a linear layer scores experts: named so, or a `gate` (not a gated unit's `gate_proj`) of a mixture."""
    if owner.child_name == "router":
        return True
    mixture = re.search(r"moe|sparse|expert|router", owner.parent_class.rsplit(".", 1)[-1], re.IGNORECASE)
    return owner.child_name in ("gate", "shared_expert_gate") and mixture is not None


def _decide_convolution(module: nn.Module, owner: Owner) -> Decision:
    groups = int(getattr(module, "groups", 1))
    channels = int(getattr(module, "in_channels", 1))
    rows = int(getattr(module, "out_channels", 1))
    if channels <= _MOST_IMAGE_CHANNELS and any(
        "patch_embed" in name or "PatchEmbed" in type(parent).__name__ for name, parent in owner.parents[:3]
    ):
        return "adamw", None, "patch embedding"
    if groups > 1 and groups == channels:
        return "adamw", None, "depthwise convolution"
    if groups > 1:
        return "matrix", MatrixLayout(rows=(rows // groups,) * groups), "convolution, by group"
    return "matrix", MatrixLayout(), "convolution"
