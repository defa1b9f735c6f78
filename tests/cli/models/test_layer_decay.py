"""Layer-wise learning rates: timm's for its models, by numbered blocks for others; and nothing but the rate changes."""

import pytest
import timm
import torch
import transformers
from torch import nn

from fismo_cli.errors import UsageError
from fismo_cli.layer_decay import layer_scales
from fismo_cli.optimizers import build_optimizer, learning_rates
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.schema import BaselineConfig, FismoConfig
from fismo_cli.runs.preparation import prepare
from tests.cli.training.fakes import store_in

OPTIMIZERS = ["fismo", "muon", "adamw", "sgd", "timm/nadamw", "lion"]


def vit():
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)


def config_of(name, **settings):
    if name == "fismo":
        return FismoConfig(name="fismo", compute_dtype="float32", **settings)
    return BaselineConfig(name=name, **settings)


def rates_by_name(optimizer, model):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_by_depth_are_timm_s_own(name):
    model = vit()
    model.blocks[1].requires_grad_(False)
    plain = rates_by_name(build_optimizer(config_of(name, weight_decay=0.1), model), model)
    optimizer = build_optimizer(config_of(name, weight_decay=0.1, layer_decay=0.5), model)
    scaled = rates_by_name(optimizer, model)
    timm_scales = {
        id(parameter): group["lr_scale"]
        for group in timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
        for parameter in group["params"]
    }
    expected = {n: plain[n] * timm_scales[id(p)] for n, p in model.named_parameters() if p.requires_grad}
    assert scaled == pytest.approx(expected)
    assert scaled["head.weight"] == plain["head.weight"]
    assert scaled["blocks.2.attn.qkv.weight"] == pytest.approx(plain["blocks.2.attn.qkv.weight"] * 0.5)
    assert scaled["patch_embed.proj.weight"] == pytest.approx(plain["patch_embed.proj.weight"] * 0.5**4)
    highest = {"lr": max(scaled.values())}
    if name in ("fismo", "muon"):
        highest = {"matrix": scaled["blocks.2.attn.qkv.weight"], "adamw": plain["head.weight"]}
    assert learning_rates(optimizer) == pytest.approx(highest)


def test_the_layers_of_transformers_models_are_their_numbered_blocks():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=9, **sizes))
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {names[parameter]: scale for parameter, scale in layer_scales(model, 0.5).items()}
    assert scales["model.embed_tokens.weight"] == 0.125
    assert {scale for name, scale in scales.items() if name.startswith("model.layers.0.")} == {0.25}
    assert {scale for name, scale in scales.items() if name.startswith("model.layers.1.")} == {0.5}
    assert (scales["model.norm.weight"], scales["lm_head.weight"]) == (1.0, 1.0)
    with pytest.raises(UsageError, match=r"optimizer\.layer_decay: Linear has no layers"):
        build_optimizer(config_of("sgd", layer_decay=0.5), nn.Linear(2, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups_change_nothing_but_the_rate(name):
    """With a decay of nearly 1 the steps are those without, in as many groups as layers; FISMO's economy too."""
    one, many = vit(), vit()
    flops = 2e4 * sum(parameter.numel() for parameter in one.parameters())
    optimizers = [
        build_optimizer(config_of(name, weight_decay=0.1, layer_decay=decay), model, forward_flops=flops)
        for model, decay in ((one, None), (many, 1 - 1e-9))
    ]
    assert len(optimizers[1].param_groups) >= len(optimizers[0].param_groups) + 3
    economies = [{group.get("economy") for group in optimizer.param_groups} for optimizer in optimizers]
    assert economies[0] == economies[1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for mine, other in zip(one.parameters(), many.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(one.parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("name", ["fismo", "adamw"])
def test_a_run_with_layers_resumes_bit_for_bit(tmp_path, name):
    loaded = load_preset(
        "digits-vit",
        [
            "train.epochs=null", "train.steps=4", "checkpoint.every=2", "evaluate.every=null",
            f"optimizer={{name: {name}, layer_decay: 0.7}}",
        ],
    )  # fmt: skip
    store = store_in(tmp_path)
    first, again = prepare(loaded).trainer, prepare(loaded).trainer
    list(first.fit(store))
    list(again.fit(resume=store.load(2)))
    weights = first.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in again.model.state_dict().items())
    rates = [group["lr"] for group in first.optimizer.param_groups]
    assert len(set(rates)) > 3
