"""What `save_model` writes, as those read it who never heard of fismo: transformers' pipelines, timm's own names."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from fismo_cli.models import save_model
from fismo_cli.tasks.image_transforms import evaluation_side, plain_transform
from tests.cli.models.test_models import GPT2, VIT, build, image_preset, save_tokenizer, text_file, text_preset

__all__ = ["text_file", "text_preset"]  # fixtures


@pytest.mark.parametrize(("name", "args"), [("vit_tiny_patch16_224", VIT), ("test_resnet", {})])
def test_transformers_and_timm_classify_as_the_model_did(tmp_path, name, args):
    import timm
    from transformers import pipeline

    # Of 24 pixels to 8: by another interpolation, other pixels.
    preset = image_preset(name, args, channels=3, mean=[0.3, 0.4, 0.5], std=[0.2, 0.2, 0.3], interpolation="nearest")
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    side, known = evaluation_side(preset.data), task.description
    seen = plain_transform(preset.data, side, known["mean"], known["std"])(Image.fromarray(pixels))
    with torch.no_grad():
        right = functional.softmax(model.eval()(seen[None]), dim=1)[0].numpy()
    classify = pipeline("image-classification", model=str(tmp_path / "model"), top_k=10)
    found = {entry["label"]: entry["score"] for entry in classify(str(tmp_path / "image.png"))}
    np.testing.assert_allclose([found[str(label)] for label in range(10)], right, rtol=1e-4)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(loaded)
    assert config["interpolation"] == json.loads((tmp_path / "model/config.json").read_text())["pretrained_cfg"][
        "interpolation"
    ] == "nearest"  # fmt: skip
    transform = timm.data.create_transform(**config, is_training=False)
    assert torch.equal(transform(Image.fromarray(pixels)), seen)
    with torch.no_grad():
        again = functional.softmax(loaded(seen[None]), dim=1)[0].numpy()
    np.testing.assert_allclose(again, right, rtol=1e-5)


def test_transformers_generates_what_the_model_says(tmp_path, text_preset):
    from transformers import AutoModelForCausalLM, pipeline

    save_tokenizer(tmp_path / "words", ["some", "words", "to", "learn", "from", "<unk>", "<end>"])
    torch.manual_seed(0)
    preset = text_preset(args={**GPT2, "initializer_range": 0.5}, tokenizer=str(tmp_path / "words"))
    model, task = build(preset)
    save_model(model, preset, task, tmp_path / "model")
    tokens = [0, 1, 2]
    with torch.no_grad():
        for _ in range(4):
            tokens.append(int(model.eval()(torch.tensor([tokens])).logits[0, -1].argmax()))
    generate = pipeline("text-generation", model=str(tmp_path / "model"))
    found = generate("some words to", max_new_tokens=4, do_sample=False, return_tensors=True, eos_token_id=None)
    assert found[0]["generated_token_ids"] == tokens
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
