"""Which parameter is treated as matrices and which by AdamW, and why; `split_parameters` turns that into groups.

Knows modules by torch's types and by qualified class names, so that neither timm nor transformers is imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fismo_core.layout import MatrixLayout

__all__ = ["Plan", "PlanRow", "Rule", "owners_of", "plan_of_groups", "plan_parameters", "split_parameters"]

Rule = Literal["matrix", "adamw"]

# timm's attention modules whose `qkv` rows are query, key and value one after the other, all of one size (read off
# their `reshape(B, N, 3, heads, ...)`). Modules that interleave them by head (maxxvit, tiny_vit) are left whole.
_TIMM_QKV = {
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.layers.attention_pool2d.AttentionPool2d",
    "timm.layers.attention_pool2d.RotAttentionPool2d",
    "timm.layers.diff_attention.DiffAttention",
    "timm.models.beit.Attention",
    "timm.models.cait.TalkingHeadAttn",
    "timm.models.coat.FactorAttnConvRelPosEnc",
    "timm.models.convit.MHSA",
    "timm.models.davit.ChannelAttention",
    "timm.models.davit.ChannelAttentionV2",
    "timm.models.davit.WindowAttention",
    "timm.models.edgenext.CrossCovarianceAttn",
    "timm.models.eva.EvaAttention",
    "timm.models.fastvit.Attention",
    "timm.models.hiera.MaskUnitAttention",
    "timm.models.hieradet_sam2.MultiScaleAttention",
    "timm.models.metaformer.Attention",
    "timm.models.mvitv2.MultiScaleAttention",
    "timm.models.nest.Attention",
    "timm.models.swin_transformer.WindowAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention",
    "timm.models.twins.LocallyGroupedAttn",
    "timm.models.vision_transformer.Attention",
    "timm.models.vision_transformer_relpos.RelPosAttention",
    "timm.models.vision_transformer_sam.Attention",
    "timm.models.volo.Attention",
    "timm.models.xcit.XCA",
}

# transformers' attention modules with a Conv1D that holds query, key, value (or key, value) one after the other.
_CONV1D_FUSED = {
    "transformers.models.decision_transformer.modeling_decision_transformer.DecisionTransformerGPT2Attention",
    "transformers.models.gpt2.modeling_gpt2.GPT2Attention",
    "transformers.models.imagegpt.modeling_imagegpt.ImageGPTAttention",
    "transformers.models.openai.modeling_openai.Attention",
}
_CONV1D = "transformers.pytorch_utils.Conv1D"
_PHI3_ATTENTION = "transformers.models.phi3.modeling_phi3.Phi3Attention"
_PHI3_MLP = "transformers.models.phi3.modeling_phi3.Phi3MLP"
# Stacked experts stored (expert, in, out) without transformers' `is_transposed` flag.
_TRANSPOSED_EXPERTS = {"transformers.models.llama4.modeling_llama4.Llama4TextExperts"}

# Children of a model that are its output head, where no accessor says so (torchvision, transformers' classifiers).
_HEAD_NAMES = {"aux_head", "classifier", "fc", "head", "head_dist", "heads", "lm_head", "qa_outputs", "score"}

_MOST_IMAGE_CHANNELS = 16
"""A "patch embedding" of more channels is a stage's downsampling, a hidden layer like any other."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class PlanRow:
    """How one parameter is treated: its name, shape, rule, matrices and the reason."""

    name: str
    shape: tuple[int, ...]
    rule: Rule
    layout: MatrixLayout | None
    matrices: tuple[tuple[int, int], ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    """How every parameter of an optimizer is treated; `str(plan)` is a table."""

    rows: tuple[PlanRow, ...]

    def __str__(self) -> str:
        head = ("parameter", "shape", "rule", "matrices", "why")
        lines = [head, *((r.name, _dims(r.shape), r.rule, _matrices(r.matrices), r.reason) for r in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def split_parameters(model: nn.Module, rules: Mapping[str, Rule] | None = None) -> list[dict[str, Any]]:
    """Parameter groups for `FISMO`: hidden matrices in one, everything else, for AdamW, in another.

    Frozen parameters (`requires_grad=False`) are left out; a tied parameter appears once.

    Args:
        model: any module. Linear layers, attention projections and convolutions are matrices; embeddings, heads,
            norms, biases, positional and class tokens, depthwise convolutions and patch embeddings are not.
        rules: regular expressions, searched in the parameter's name, and who treats what they match; the first match
            wins over everything else. Models that are neither timm's, transformers' nor torchvision's may need one for
            their output head. Example: `{r"patch_embed": "matrix", r"blocks\\.0\\.": "adamw"}`.

    Returns:
        Dictionaries with `params` (pairs of name and parameter), `rule`, `reasons` and, for matrices, `layouts`.

    Raises:
        ValueError: if a rule matches no parameter, names an unknown rule, or makes a vector a matrix.
    """
    parameters = dict(model.named_parameters())
    rows = plan_parameters(model, rules).rows
    groups: list[dict[str, Any]] = []
    for rule in ("matrix", "adamw"):
        chosen = [row for row in rows if row.rule == rule]
        if not chosen:
            continue
        group: dict[str, Any] = {
            "params": [(row.name, parameters[row.name]) for row in chosen],
            "rule": rule,
            "reasons": [row.reason for row in chosen],
        }
        if rule == "matrix":
            group["layouts"] = [layout_to_plain(row.layout or MatrixLayout()) for row in chosen]
        groups.append(group)
    return groups


def plan_parameters(model: nn.Module, rules: Mapping[str, Rule] | None = None) -> Plan:
    """Decide for every trainable parameter of the model; arguments and errors as in `split_parameters`."""
    compiled = {pattern: re.compile(pattern) for pattern in rules or {}}
    heads = _head_parameters(model)
    unused = set(compiled)
    owners = owners_of(model)
    rows = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet: run the model once before its parameters are split")
        rule, layout, reason = _decide(parameter, owners[id(parameter)], id(parameter) in heads)
        matching = next((pattern for pattern, regex in compiled.items() if regex.search(name)), None)
        if matching is not None:
            unused.discard(matching)
            rule, layout, reason = _overridden(name, parameter, layout, matching, (rules or {})[matching])
        matrices = tuple(layout.shapes(parameter)) if layout is not None else ()
        rows.append(PlanRow(name, tuple(parameter.shape), rule, layout, matrices, reason))
    if unused:
        raise ValueError(f"rules that match no trainable parameter: {', '.join(sorted(unused))}")
    return Plan(tuple(rows))


def plan_of_groups(groups: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan that parameter groups made by `split_parameters`, or given by hand, amount to."""
    rows = []
    for group in groups:
        parameters = group["params"]
        plain: Sequence[Any] = group.get("layouts") or [None] * len(parameters)
        layouts = [None if layout is None else layout_from_plain(layout) for layout in plain]
        names = group.get("param_names") or ["(unnamed)"] * len(parameters)
        reasons = group.get("reasons") or ["as given"] * len(parameters)
        for name, parameter, layout, reason in zip(names, parameters, layouts, reasons, strict=True):
            matrices = tuple(layout.shapes(parameter)) if layout is not None else ()
            rows.append(PlanRow(name, tuple(parameter.shape), group["rule"], layout, matrices, reason))
    return Plan(tuple(rows))


def layout_to_plain(layout: MatrixLayout) -> dict[str, Any]:
    """The layout as plain values, for `state_dict`."""
    return {"stacked": layout.stacked, "transposed": layout.transposed, "rows": list(layout.rows)}


def layout_from_plain(plain: Mapping[str, Any]) -> MatrixLayout:
    """The inverse of `layout_to_plain`."""
    return MatrixLayout(stacked=plain["stacked"], transposed=plain["transposed"], rows=tuple(plain["rows"]))


Decision = tuple[Rule, MatrixLayout | None, str]


def _overridden(name: str, parameter: Tensor, layout: MatrixLayout | None, pattern: str, rule: Rule) -> Decision:
    reason = f"rule {pattern!r}"
    if rule == "adamw":
        return "adamw", None, reason
    if rule != "matrix":
        raise ValueError(f"rule {pattern!r}: unknown rule {rule!r}; choose matrix or adamw")
    if parameter.ndim < 2:
        raise ValueError(f"rule {pattern!r} makes a matrix of {name}, which has shape {tuple(parameter.shape)}")
    return "matrix", layout or MatrixLayout(), reason


@dataclass(frozen=True)
class _Owner:
    """A module that holds a parameter, the parameter's name in it, and the chain of modules around it."""

    module: nn.Module
    attribute: str
    parents: tuple[tuple[str, nn.Module], ...]  # (name of the child within the parent, parent), innermost first

    @property
    def child_name(self) -> str:
        return self.parents[0][0] if self.parents else ""

    @property
    def parent_class(self) -> str:
        return _qualified(self.parents[0][1]) if self.parents else ""


def owners_of(model: nn.Module) -> dict[int, list[_Owner]]:
    """The modules that hold each parameter, by the parameter's id; several where it is tied."""
    found: dict[int, list[_Owner]] = {}

    def visit(module: nn.Module, parents: tuple[tuple[str, nn.Module], ...]) -> None:
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append(_Owner(module, attribute, parents))
        for name, child in module.named_children():
            visit(child, ((name, module), *parents))

    visit(model, ())
    return found


def _head_parameters(model: nn.Module) -> set[int]:
    """Parameters of output heads, wherever in the model a timm, transformers or torchvision model sits."""
    heads: list[Any] = []
    for module in model.modules():
        # Looked up on the class: wrappers such as torch.compile's forward attributes to the model they hold.
        for accessor in ("get_classifier", "get_output_embeddings"):
            if callable(getattr(type(module), accessor, None)):
                with suppress(TypeError):  # a method of that name with other arguments
                    heads.extend(_flatten(getattr(module, accessor)()))
        library = _class_of(module).__module__.startswith("torchvision.models.")
        if module is model or library or hasattr(type(module), "base_model_prefix"):
            named = [child for name, child in module.named_children() if name in _HEAD_NAMES]
            heads.extend(last for child in named if (last := _last_linear(child)) is not None)
    return {id(parameter) for head in heads if isinstance(head, nn.Module) for parameter in head.parameters()}


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


def _decide(parameter: Tensor, owners: list[_Owner], is_head: bool) -> Decision:
    if is_head:
        tied = any(isinstance(owner.module, nn.Embedding) for owner in owners)
        return "adamw", None, "output head, tied to the embedding" if tied else "output head"
    if any(isinstance(owner.module, (nn.Embedding, nn.EmbeddingBag)) for owner in owners):
        return "adamw", None, "embedding"
    if parameter.ndim < 2:
        return "adamw", None, "vector"
    return _decide_matrix(parameter, owners[0])


def _decide_matrix(parameter: Tensor, owner: _Owner) -> Decision:
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
    if _qualified(module) == _CONV1D and owner.attribute == "weight":
        fan_in, fan_out = (int(size) for size in parameter.shape)
        if owner.parent_class in _CONV1D_FUSED and owner.child_name == "c_attn":
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


def _decide_experts(parameter: Tensor, owner: _Owner) -> Decision:
    module = owner.module
    transposed = bool(getattr(module, "is_transposed", _qualified(module) in _TRANSPOSED_EXPERTS))
    rows = int(parameter.shape[2 if transposed else 1])
    if owner.attribute == "gate_up_proj" and getattr(module, "is_concatenated", True):
        return "matrix", MatrixLayout(stacked=True, transposed=transposed, rows=(rows // 2,) * 2), "experts: gate, up"
    return "matrix", MatrixLayout(stacked=True, transposed=transposed), "stacked experts"


def _decide_linear(module: nn.Linear, owner: _Owner, rows: int) -> Decision:
    if _is_router(owner):
        return "adamw", None, "router"
    if owner.child_name == "qkv" and owner.parent_class in _TIMM_QKV:
        return "matrix", MatrixLayout(rows=(rows // 3,) * 3), "query, key, value"
    if owner.child_name == "gate_up_proj" and owner.parent_class == _PHI3_MLP:
        return "matrix", MatrixLayout(rows=(rows // 2,) * 2), "gate, up"
    if owner.child_name == "qkv_proj" and owner.parent_class == _PHI3_ATTENTION:
        config: Any = owner.parents[0][1].config
        query = config.num_attention_heads * (rows // (config.num_attention_heads + 2 * config.num_key_value_heads))
        return "matrix", MatrixLayout(rows=(query, (rows - query) // 2, (rows - query) // 2)), "query, key, value"
    return "matrix", MatrixLayout(), "linear"


def _is_router(owner: _Owner) -> bool:
    """Whether a linear layer scores experts: named so, or a `gate` (not a gated unit's `gate_proj`) of a mixture."""
    if owner.child_name == "router":
        return True
    mixture = re.search(r"moe|sparse|expert|router", owner.parent_class.rsplit(".", 1)[-1], re.IGNORECASE)
    return owner.child_name in ("gate", "shared_expert_gate") and mixture is not None


def _decide_convolution(module: nn.Module, owner: _Owner) -> Decision:
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


def _qualified(module: nn.Module) -> str:
    return f"{_class_of(module).__module__}.{_class_of(module).__qualname__}"


def _class_of(module: nn.Module) -> type[nn.Module]:
    """The class that the module was made of: FSDP2 gives modules one derived from it."""
    return next(kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed.fsdp"))


def _dims(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "scalar"


def _matrices(shapes: tuple[tuple[int, int], ...]) -> str:
    counts: dict[tuple[int, int], int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    return ", ".join((f"{count} of " if count > 1 else "") + _dims(shape) for shape, count in counts.items()) or "-"
