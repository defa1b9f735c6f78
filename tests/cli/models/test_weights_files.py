"""`model.pretrained`: weights files as many tools write them, and what is wrong with others."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fismo_cli.errors import UsageError
from fismo_cli.models import model_notes, save_flat
from tests.cli.models.test_models import GPT2, VIT, build, image_preset, same_weights, text_file, text_preset

__all__ = ["text_file", "text_preset"]  # fixtures

HEADS = {"test_resnet": "fc.", "vit_tiny_patch16_224": "head.", "test_convnext": "head.fc."}


@pytest.fixture(scope="module")
def vit():
    return build(image_preset())[0].state_dict()


def with_prefix(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize("name", HEADS)
def test_weights_without_a_head_get_a_new_one(tmp_path, name):
    args = VIT if name.startswith("vit") else {}
    size = {} if args else {"image_size": 32}
    whole = build(image_preset(name, args, **size))[0].state_dict()
    body = {key: value for key, value in whole.items() if not key.startswith(HEADS[name])}
    assert len(whole) - len(body) == 2
    torch.save(body, tmp_path / "headless.pth")
    preset = image_preset(name, args, str(tmp_path / "headless.pth"), **size)
    torch.manual_seed(0)
    model, task = build(preset)
    assert model_notes(model) == ["new head: the weights have none"]
    found = model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in body.items())
    assert found[HEADS[name] + "weight"].any()
    assert model.eval()(task.train.__getitems__([(0, 0), (0, 1)])["images"]).shape == (2, 10)
    torch.manual_seed(0)
    assert same_weights(model, build(preset)[0])
    first = next(key for key in body if key.endswith("weight"))
    torch.save({key: value for key, value in body.items() if key != first}, tmp_path / "headless.pth")
    with pytest.raises(UsageError, match=f"headless.pth does not fit {name} .*: it lacks {first}, {HEADS[name]}"):
        build(preset)


def test_weights_as_many_tools_wrap_them(tmp_path, vit):
    other = {name: torch.zeros_like(value) for name, value in vit.items()}
    for number, content in enumerate(
        [
            with_prefix(vit, "module."),
            with_prefix(vit, "_orig_mod."),
            with_prefix(vit, "_orig_mod.module."),
            {"model": vit, "args": argparse.Namespace(lr=0.1, data_path="x"), "max_accuracy": np.float64(81.5)},
            {"model": vit, "epoch": np.int64(3), "best": {"loss": np.float32(0.5), "done": np.bool_(True)}},
            with_prefix(vit, "module._orig_mod."),
            {"state_dict": with_prefix(vit, "model."), "epoch": 3},
            {"model": with_prefix(vit, "module."), "optimizer": {"state": {}, "param_groups": []}, "args": None},
            {"state_dict": other, "state_dict_ema": vit},
            {"model_state_dict": vit, "optimizer_state_dict": {}},
            with_prefix(vit, "timm_model."),
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        model, _ = build(image_preset(pretrained=str(tmp_path / f"{number}.pth")))
        assert model_notes(model) == []
        assert all(torch.equal(value, vit[name]) for name, value in model.state_dict().items()), number


def test_weights_of_another_size_class_count_and_precision(tmp_path, vit):
    save_file({name: value.half() for name, value in vit.items()}, tmp_path / "half.safetensors")
    model, _ = build(image_preset(pretrained=str(tmp_path / "half.safetensors")))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, vit[name].half().float()) for name, value in model.state_dict().items())
    larger, task = build(image_preset(pretrained=str(tmp_path / "half.safetensors"), image_size=16, channels=3))
    assert larger.pos_embed.shape[1] == 17
    assert torch.equal(larger.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert larger(task.train.__getitems__([(0, 0)])["images"]).shape == (1, 10)
    fewer = {**vit, "head.weight": vit["head.weight"][:4], "head.bias": vit["head.bias"][:4]}
    torch.save(fewer, tmp_path / "four.pth")
    assert model_notes(build(image_preset(pretrained=str(tmp_path / "four.pth")))[0]) == [
        "new head: the weights have 4 classes, the data 10"
    ]


def test_what_does_not_fit_is_named_in_a_few_words(tmp_path, vit):
    def refusal(content):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UsageError) as caught:
            build(image_preset(pretrained=str(tmp_path / "x.pth")))
        assert "\n" not in str(caught.value)
        return str(caught.value).partition("x.pth ")[2]

    extra = {f"criterion.{index}": torch.ones(1) for index in range(5)}
    assert refusal({**vit, **extra}).endswith(
        "it has criterion.0, criterion.1, criterion.2 and 2 more, which the model has not"
    )
    renamed = {name.replace("blocks", "layers"): value for name, value in vit.items()}
    assert "it lacks blocks.0.norm1.weight, blocks.0.norm1.bias, blocks.0.attn.qkv.weight and " in refusal(renamed)
    assert "; it has layers.0.norm1.weight, " in refusal(renamed)
    assert "size mismatch for norm.weight: " in refusal({**vit, "norm.weight": torch.ones(3)})
    for content in ({}, {"epoch": 3}, {"state_dict": {}}, [1, 2]):
        assert refusal(content) == "holds no weights of a model"


def test_weights_of_language_models_as_many_tools_wrap_them(tmp_path, text_preset):
    model, _ = build(text_preset())
    whole = dict(model.state_dict())
    tied = {name: value for name, value in whole.items() if name != "lm_head.weight"}
    for number, content in enumerate(
        [
            with_prefix(whole, "module."),
            with_prefix(tied, "_orig_mod."),
            {"state_dict": with_prefix(tied, "model."), "epoch": 3},
            {"model": {name: value.bfloat16() for name, value in whole.items()}},
        ]
    ):
        torch.save(content, tmp_path / f"{number}.pth")
        loaded, _ = build(text_preset(pretrained=str(tmp_path / f"{number}.pth")))
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
        assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
        assert number == 3 or same_weights(loaded, model)
    for name, args in (
        ("llama", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}),
        ("gpt2", GPT2),
    ):
        network, _ = build(text_preset(name, args))
        save_flat(network, tmp_path / "flat.safetensors")
        assert same_weights(network, build(text_preset(name, args, str(tmp_path / "flat.safetensors")))[0])
    for content, message in [
        (
            {k: v for k, v in whole.items() if "ln_f" not in k},
            "it lacks transformer.ln_f.weight, transformer.ln_f.bias",
        ),
        ({**whole, "ema.x": torch.ones(1)}, "it has ema.x, which the model has not"),
        ({"epoch": 3}, "holds no weights of a model"),
    ]:
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(UsageError, match=message):
            build(text_preset(pretrained=str(tmp_path / "x.pth")))
