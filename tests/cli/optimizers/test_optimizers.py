"""Optimizers by name: baselines get FISMO's matrices, settings mean what they say, state survives a round trip."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from fismo_cli.errors import UsageError
from fismo_cli.optimizers import MatrixOptimizer, build_optimizer, learning_rates, optimizer_state_bytes
from fismo_cli.preset.schema import BaselineConfig, FismoConfig, fismo_options
from fismo_core import DENSE, PAPER, AdamW, FisherMetric, FismoOptions, Polar


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=16, depth=1, num_heads=2, in_chans=1, num_classes=3
    )


def _gpt2() -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16)
    )


def _set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_steps_the_split_and_transposed_matrices_and_adamw_the_rest() -> None:
    model = _gpt2()
    before = copy.deepcopy(model)
    config = BaselineConfig(name="muon", lr=0.1, weight_decay=0.2, adamw=AdamW(lr=0.01, weight_decay=0.3))
    optimizer = build_optimizer(config.model_copy(update={"weight_decay_on": "all"}), model)

    # Independently: each matrix as a parameter of its own for torch's Muon, everything else for torch's AdamW.
    attention = before.transformer.h[0].attn.c_attn.weight
    blocks = [nn.Parameter(block.clone()) for block in attention.detach().T.split(8)]
    fc = nn.Parameter(before.transformer.h[0].mlp.c_fc.weight.detach().T.clone())
    muon = torch.optim.Muon([*blocks, fc], lr=0.1, weight_decay=0.2)
    adamw = torch.optim.AdamW([before.transformer.wte.weight], lr=0.01, betas=(0.9, 0.95), weight_decay=0.3)
    for step in range(3):
        _set_gradients(model, step)
        for parameter, other in zip(model.parameters(), before.parameters(), strict=True):
            other.grad = parameter.grad.clone()
        for block, gradient in zip(blocks, attention.grad.T.split(8), strict=True):
            block.grad = gradient.clone()
        fc.grad = before.transformer.h[0].mlp.c_fc.weight.grad.T.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    after = model.transformer.h[0]
    torch.testing.assert_close(after.attn.c_attn.weight.detach().T, torch.cat(list(blocks)).detach())
    torch.testing.assert_close(after.mlp.c_fc.weight.detach().T, fc.detach())
    assert torch.equal(model.transformer.wte.weight, before.transformer.wte.weight)


def test_every_matrix_optimizer_has_the_plan_of_fismo() -> None:
    model = _vit()
    expected = build_optimizer(FismoConfig(name="fismo"), model).plan().rows
    for name in ("muon", "soap", "shampoo"):
        assert build_optimizer(BaselineConfig(name=name), model).plan().rows == expected
    rules = {r"mlp\.fc1": "adamw"}
    changed = build_optimizer(BaselineConfig(name="muon", rules=rules), model).plan().rows
    assert changed == build_optimizer(FismoConfig(name="fismo", rules=rules), model).plan().rows != expected


def test_the_economy_goes_by_the_operations_of_a_batch() -> None:
    config, matrices = FismoConfig(name="fismo"), 100 * 100
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    for rows, economy in ((100_000, "none"), (10, "most")):
        optimizer = build_optimizer(config, model, forward_flops=2 * matrices * rows)
        assert optimizer.param_groups[0]["economy"] == economy
        assert f"With {rows:,} rows a step" in str(optimizer.plan())


def test_convolutions_in_channels_last_memory_are_stepped_too() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for model in (plain, last):
        optimizer = build_optimizer(BaselineConfig(name="muon"), model)
        assert isinstance(optimizer, MatrixOptimizer)
        for step in range(2):
            _set_gradients(model, step)
            optimizer.step()
    torch.testing.assert_close(plain[0].weight, last[0].weight)


@pytest.mark.parametrize("name", ["fismo", "muon", "soap", "shampoo", "adam", "sgd", "lion", "timm/nadamw"])
def test_state_round_trip_continues_alike(name: str) -> None:
    config: Any = FismoConfig(name="fismo") if name == "fismo" else BaselineConfig(name=name)
    first = _vit()
    optimizer = build_optimizer(config, first)
    for step in range(3):
        _set_gradients(first, step)
        optimizer.step()
    second = copy.deepcopy(first)
    resumed = build_optimizer(config, second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for model, one in ((first, optimizer), (second, resumed)):
            _set_gradients(model, step)
            one.step()
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_scheduled_rate_reaches_both_inner_optimizers() -> None:
    model = _vit()
    optimizer = build_optimizer(BaselineConfig(name="muon", lr=0.1), model)
    assert learning_rates(optimizer) == {"matrix": 0.1, "adamw": 3e-3}
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    _set_gradients(model, 0)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_parameters_without_gradient_are_left_alone() -> None:
    model = _vit()
    optimizer = build_optimizer(BaselineConfig(name="muon", weight_decay=0.5), model)
    _set_gradients(model, 0)
    frozen = model.blocks[0].attn.qkv.weight
    frozen.grad = None
    before = frozen.detach().clone()
    optimizer.step()
    assert torch.equal(before, frozen)


def test_weight_decay_is_the_presets_not_the_librarys() -> None:
    """torch's Muon decays by 0.1 and its AdamW by 0.01 unless told otherwise."""
    for name in ("muon", "adamw", "soap"):
        optimizer = build_optimizer(BaselineConfig(name=name), _vit())
        inner = optimizer._inner if isinstance(optimizer, MatrixOptimizer) else [optimizer]
        assert [group["weight_decay"] for one in inner for group in one.param_groups] == [0.0] * len(inner)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BaselineConfig(name="soap", args={"precondition_freq": 3}),
            r"args\.precondition_freq.*precondition_frequency",
        ),
        (BaselineConfig(name="adamw", momentum=0.9), r"optimizer\.momentum: adamw has no argument"),
        (BaselineConfig(name="adam", args={"eps": "small"}), "optimizer adam"),
        (BaselineConfig(name="adan", betas=(0.9, 0.99)), r"optimizer\.args\.betas: adan has 3 decay rates, such as \["),
        (BaselineConfig(name="sgd", momentum=0.0, args={"nesterov": True}), "Nesterov momentum requires a momentum"),
        (
            BaselineConfig(name="adamw", args={"betas": [0.9, 0.99, 0.999]}),
            r"optimizer\.args\.betas: adamw has 2 decay rates",
        ),
        (BaselineConfig(name="muon", rules={"nothing": "adamw"}), "match no trainable parameter"),
        (FismoConfig(name="fismo", rules={"norm": "matrix"}), "makes a matrix of"),
    ],
)
def test_bad_settings_are_said_before_training(config: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_optimizer(config, _vit())


def test_a_matrix_optimizer_refuses_copies_and_other_states() -> None:
    model = _vit()
    optimizer = build_optimizer(BaselineConfig(name="muon"), model)
    with pytest.raises(TypeError, match="load its state_dict"):
        copy.deepcopy(optimizer)
    with pytest.raises(ValueError, match="not the state of the same"):
        optimizer.load_state_dict(build_optimizer(BaselineConfig(name="adam"), model).state_dict())


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(UsageError, match="no trainable parameters"):
        build_optimizer(BaselineConfig(name="adam"), _vit().requires_grad_(False))


def test_state_bytes_of_adam_are_two_moments_and_a_step() -> None:
    model = nn.Linear(10, 10, bias=False)
    optimizer = build_optimizer(BaselineConfig(name="adam"), model)
    _set_gradients(model, 0)
    optimizer.step()
    assert optimizer_state_bytes(optimizer) == 2 * 400 + 4


def test_the_schema_has_every_option_of_the_optimizer_with_its_default() -> None:
    assert fismo_options(FismoConfig(name="fismo")) == FismoOptions()
    asked = {"momentum": 0.9, "metric": {"damping": 0.3, "decay": 0.8}, "polar": "quintic", "adamw": {"lr": 0.1}}
    assert fismo_options(FismoConfig.model_validate({"name": "fismo", **asked})) == FismoOptions(
        momentum=0.9, metric=FisherMetric(damping=0.3, decay=0.8), polar=Polar("quintic"), adamw=AdamW(lr=0.1)
    )


@pytest.mark.parametrize(("form", "options"), [("default", FismoOptions()), ("dense", DENSE), ("paper", PAPER)])
def test_each_form_by_preset_equals_the_options_of_its_name(form: str, options: FismoOptions) -> None:
    group = build_optimizer(FismoConfig.model_validate({"name": "fismo", "form": form}), _vit()).param_groups[0]
    if options.economy == "auto":
        options = replace(options, economy=group["economy"])
    assert {key: group[key] for key in vars(options) if key != "adamw"} == {
        key: value for key, value in vars(options).items() if key != "adamw"
    }
