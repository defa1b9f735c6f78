"""Modules as routing sees them: who holds a parameter, and by qualified name what torch's types cannot tell.

Neither timm nor transformers is imported.
"""

from dataclasses import dataclass

from torch import nn

__all__ = [
    "CONV1D",
    "CONV1D_FUSED",
    "PHI3_ATTENTION",
    "PHI3_MLP",
    "TIMM_QKV",
    "TRANSPOSED_EXPERTS",
    "Owner",
    "class_of",
    "owners_of",
    "qualified_name",
]

# timm's attention modules whose `qkv` rows are query, key and value one after the other, all of one size (read off
# their `reshape(B, N, 3, heads, ...)`). Modules that interleave them by head (maxxvit, tiny_vit) are left whole.
TIMM_QKV = {
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
CONV1D_FUSED = {
    "transformers.models.decision_transformer.modeling_decision_transformer.DecisionTransformerGPT2Attention",
    "transformers.models.gpt2.modeling_gpt2.GPT2Attention",
    "transformers.models.imagegpt.modeling_imagegpt.ImageGPTAttention",
    "transformers.models.openai.modeling_openai.Attention",
}
CONV1D = "transformers.pytorch_utils.Conv1D"
PHI3_ATTENTION = "transformers.models.phi3.modeling_phi3.Phi3Attention"
PHI3_MLP = "transformers.models.phi3.modeling_phi3.Phi3MLP"
# Stacked experts stored (expert, in, out) without transformers' `is_transposed` flag.
TRANSPOSED_EXPERTS = {"transformers.models.llama4.modeling_llama4.Llama4TextExperts"}


@dataclass(frozen=True)
class Owner:
    """A module that holds a parameter, the parameter's name in it, and the chain of modules around it."""

    module: nn.Module
    attribute: str
    parents: tuple[tuple[str, nn.Module], ...]  # (name of the child within the parent, parent), innermost first

    @property
    def child_name(self) -> str:
        """What the module is called in the one around it."""
        return self.parents[0][0] if self.parents else ""

    @property
    def parent_class(self) -> str:
        """The qualified name of the class of the module around it."""
        return qualified_name(self.parents[0][1]) if self.parents else ""


def owners_of(model: nn.Module) -> dict[int, list[Owner]]:
    """The modules that hold each parameter, by the parameter's id; several where it is tied."""
    found: dict[int, list[Owner]] = {}

    def visit(module: nn.Module, parents: tuple[tuple[str, nn.Module], ...]) -> None:
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append(Owner(module, attribute, parents))
        for name, child in module.named_children():
            visit(child, ((name, module), *parents))

    visit(model, ())
    return found


def qualified_name(module: nn.Module) -> str:
    """Module and name of the class that a module is made of."""
    return f"{class_of(module).__module__}.{class_of(module).__qualname__}"


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that the module was made of: FSDP2 gives modules one derived from it."""
    return next(kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed.fsdp"))
