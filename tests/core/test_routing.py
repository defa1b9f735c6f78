"""Which parameters become which matrices, on real timm and transformers models."""

import pytest
import timm
import torch
from torch import nn

from fismo_core import FISMO, Plan, plan_parameters, split_parameters
from fismo_core.layout import MatrixLayout


def _by_name(plan: Plan) -> dict[str, tuple[str, tuple[tuple[int, int], ...], str]]:
    return {row.name: (row.rule, row.matrices, row.reason) for row in plan.rows}


def _vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=8, depth=1, num_heads=2, num_classes=3
    )


def _gpt2() -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16)
    )


def test_vit() -> None:
    rows = _by_name(plan_parameters(_vit()))
    assert rows["blocks.0.attn.qkv.weight"] == ("matrix", ((8, 8),) * 3, "query, key, value")
    assert rows["blocks.0.mlp.fc1.weight"][:2] == ("matrix", ((32, 8),))
    for name in ("patch_embed.proj.weight", "pos_embed", "cls_token", "head.weight", "norm.weight"):
        assert rows[name][0] == "adamw"


def test_gpt2_conv1d_is_transposed_and_its_fused_columns_split() -> None:
    model = _gpt2()
    rows = _by_name(plan_parameters(model))
    assert rows["transformer.h.0.attn.c_attn.weight"][:2] == ("matrix", ((8, 8),) * 3)
    assert rows["transformer.h.0.mlp.c_fc.weight"][:2] == ("matrix", ((32, 8),))
    assert rows["transformer.wte.weight"][2] == "output head, tied to the embedding"
    assert rows["transformer.wpe.weight"][2] == "embedding"
    assert "lm_head.weight" not in rows  # tied: once
    weight = model.transformer.h[0].attn.c_attn.weight
    query, key, value = MatrixLayout(transposed=True, rows=(8, 8, 8)).split(weight)
    x = torch.randn(2, 8)
    torch.testing.assert_close(torch.cat([x @ query.mT, x @ key.mT, x @ value.mT], 1), x @ weight)


def test_llama_and_its_head() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama",
            num_hidden_layers=1,
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=11,
            tie_word_embeddings=False,
        )
    )
    rows = _by_name(plan_parameters(model))
    assert rows["lm_head.weight"] == ("adamw", (), "output head")
    assert rows["model.embed_tokens.weight"][2] == "embedding"
    assert rows["model.layers.0.self_attn.k_proj.weight"][:2] == ("matrix", ((4, 8),))
    assert sum(rule == "matrix" for rule, _, _ in rows.values()) == 7


def test_phi3_unequal_query_key_value() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "phi3",
            num_hidden_layers=1,
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=4,
            num_key_value_heads=1,
            vocab_size=11,
            pad_token_id=0,
        )
    )
    rows = _by_name(plan_parameters(model))
    assert rows["model.layers.0.self_attn.qkv_proj.weight"][1] == ((8, 8), (2, 8), (2, 8))
    assert rows["model.layers.0.mlp.gate_up_proj.weight"][1] == ((16, 8), (16, 8))


def _moe(name: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        name,
        num_hidden_layers=1,
        hidden_size=8,
        intermediate_size=24,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_local_experts=3,
        num_experts_per_tok=2,
        vocab_size=11,
        pad_token_id=0,
        **({"layer_types": ["full_attention"]} if name == "gpt_oss" else {}),
    )
    return AutoModelForCausalLM.from_config(config)


def test_stacked_experts_are_matrices_out_by_in_and_routers_are_not() -> None:
    for name, gate_up in (("mixtral", ((24, 8),) * 6), ("gpt_oss", ((48, 8),) * 3)):  # gpt_oss interleaves the two
        rows = _by_name(plan_parameters(_moe(name)))
        experts = {key.rsplit(".", 1)[-1]: value for key, value in rows.items() if "experts." in key}
        assert experts["gate_up_proj"][:2] == ("matrix", gate_up), name
        assert experts["down_proj"][1] == ((8, 24),) * 3, name
        assert {value[::2] for key, value in rows.items() if "router.weight" in key or key.endswith("gate.weight")} == {
            ("adamw", "router")
        }, name


def test_stacked_expert_views_multiply_as_the_model_does() -> None:
    weight = torch.randn(3, 8, 10)  # (expert, in, out), as gpt_oss stores it
    x = torch.randn(3, 5, 8)
    views = MatrixLayout(stacked=True, transposed=True).split(weight)
    torch.testing.assert_close(torch.stack([x[e] @ views[e].mT for e in range(3)]), torch.bmm(x, weight))


class _Forwarding(nn.Module):
    """A wrapper that forwards attributes to the model it holds, as PEFT's and FSDP's do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


@pytest.mark.parametrize("wrap", [torch.compile, _Forwarding, nn.DataParallel])
@pytest.mark.parametrize("make", [_vit, _gpt2])
def test_a_wrapped_model_is_routed_like_the_bare_one(wrap: object, make: object) -> None:
    bare = [(row.rule, row.matrices, row.reason) for row in plan_parameters(make()).rows]
    wrapped = [(row.rule, row.matrices, row.reason) for row in plan_parameters(wrap(make())).rows]
    assert wrapped == bare
    assert {rule for rule, _, _ in bare} == {"matrix", "adamw"}


def test_heads_without_an_accessor_are_known_by_name() -> None:
    from torchvision.models import resnet18, vgg11
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    assert _by_name(plan_parameters(resnet18()))["fc.weight"][2] == "output head"
    vgg = _by_name(plan_parameters(vgg11()))
    assert [vgg[f"classifier.{i}.weight"][0] for i in (0, 3, 6)] == ["matrix", "matrix", "adamw"]
    bert = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(
            "bert", num_hidden_layers=1, hidden_size=8, intermediate_size=16, num_attention_heads=2, vocab_size=11
        )
    )
    rows = _by_name(plan_parameters(bert))
    assert rows["classifier.weight"][2] == "output head"
    assert rows["bert.pooler.dense.weight"][0] == "matrix"
    vit = AutoModelForImageClassification.from_config(
        AutoConfig.for_model(
            "vit",
            num_hidden_layers=1,
            hidden_size=8,
            intermediate_size=16,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    rows = _by_name(plan_parameters(vit))
    assert rows["classifier.weight"][2] == "output head"
    assert rows["vit.embeddings.patch_embeddings.projection.weight"][2] == "patch embedding"


def test_downsampling_between_stages_is_no_patch_embedding() -> None:
    rows = _by_name(plan_parameters(timm.create_model("pvt_v2_b0", num_classes=3)))
    assert rows["patch_embed.proj.weight"][2] == "patch embedding"
    assert rows["stages.1.downsample.proj.weight"][0] == "matrix"


def test_embedding_bags_and_lazy_modules() -> None:
    rows = _by_name(plan_parameters(nn.Sequential(nn.EmbeddingBag(5, 4), nn.Linear(4, 4))))
    assert rows["0.weight"][2] == "embedding"
    with pytest.raises(ValueError, match="has no shape yet"):
        plan_parameters(nn.Sequential(nn.LazyLinear(3)))


def test_a_rule_keeps_the_known_layout() -> None:
    rows = _by_name(plan_parameters(_vit(), {r"qkv\.weight": "matrix"}))
    assert rows["blocks.0.attn.qkv.weight"][1] == ((8, 8),) * 3


def test_gpt_neox_interleaved_layout_stays_whole() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "gpt_neox", num_hidden_layers=1, hidden_size=8, intermediate_size=16, num_attention_heads=2, vocab_size=11
        )
    )
    assert _by_name(plan_parameters(model))["gpt_neox.layers.0.attention.query_key_value.weight"][1] == ((24, 8),)


def test_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 5, 2),
        nn.MultiheadAttention(8, 2),
    )
    rows = _by_name(plan_parameters(model))
    assert rows["0.weight"][:2] == ("matrix", ((6, 36),))
    assert rows["1.weight"][2] == "depthwise convolution"
    assert rows["2.weight"][1] == ((4, 27),) * 2
    assert rows["3.weight"][1] == ((20, 8),)
    assert rows["4.in_proj_weight"][1] == ((8, 8),) * 3
    assert rows["4.out_proj.weight"][:2] == ("matrix", ((8, 8),))


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (MatrixLayout(), (4, 6)),
        (MatrixLayout(), (4, 3, 2, 2)),
        (MatrixLayout(transposed=True, rows=(2, 4)), (5, 6)),
        (MatrixLayout(transposed=True), (5, 6, 2)),
        (MatrixLayout(stacked=True), (3, 2, 5)),
        (MatrixLayout(stacked=True, transposed=True, rows=(2, 3)), (3, 4, 5)),
    ],
)
def test_join_inverts_split(layout: MatrixLayout, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    assert torch.equal(layout.join(layout.split(tensor), tensor.shape), tensor)


def test_fused_projection_steps_like_the_separate_ones() -> None:
    fused = nn.Parameter(torch.zeros(6, 4))
    separate = [nn.Parameter(torch.zeros(2, 4)) for _ in range(3)]
    layouts = [{"stacked": False, "transposed": False, "rows": [2, 2, 2]}]
    first, second = FISMO([{"params": [fused], "layouts": layouts}]), FISMO(separate)
    for _ in range(7):
        G = torch.randn(6, 4)
        fused.grad = G
        for p, part in zip(separate, G.split(2), strict=True):
            p.grad = part.clone()
        first.step()
        second.step()
    assert torch.equal(fused.detach(), torch.cat([p.detach() for p in separate]))


def test_rules_override_and_are_checked() -> None:
    rows = _by_name(plan_parameters(_vit(), {"patch_embed.*weight": "matrix", "blocks": "adamw"}))
    assert rows["patch_embed.proj.weight"][:2] == ("matrix", ((8, 12),))
    assert rows["blocks.0.attn.qkv.weight"] == ("adamw", (), "rule 'blocks'")
    with pytest.raises(ValueError, match="match no trainable parameter: nothing_here"):
        plan_parameters(_vit(), {"nothing_here": "adamw"})
    with pytest.raises(ValueError, match=r"makes a matrix of norm\.weight"):
        plan_parameters(_vit(), {r"^norm\.weight": "matrix"})


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = _gpt2()
    model.transformer.wpe.weight.requires_grad_(False)
    groups = split_parameters(model)
    ids = [id(parameter) for group in groups for _, parameter in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_plan_prints_every_parameter() -> None:
    model = _vit()
    text = str(FISMO(split_parameters(model)).plan())
    for name, _ in model.named_parameters():
        assert name in text
    assert "3 of 8 x 8" in text


def test_resnet_and_swin_run_a_step() -> None:
    for name, size in (("test_resnet", 32), ("swin_tiny_patch4_window7_224", 56)):
        options = (
            {} if name == "test_resnet" else {"img_size": 56, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)}
        )
        model = timm.create_model(name, num_classes=3, **options)
        optimizer = FISMO(split_parameters(model))
        model(torch.randn(2, 3, size, size)).sum().backward()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
        for row in optimizer.plan().rows:
            parameter = dict(model.named_parameters())[row.name]
            assert parameter.isfinite().all()
            if parameter.grad is not None and parameter.grad.any():
                assert not torch.equal(parameter, before[row.name]), row.name
