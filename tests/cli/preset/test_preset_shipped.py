"""The shipped presets are valid, say what they are, and name models that exist."""

from pathlib import Path

import pytest

from fismo_cli.preset.loading import identity, load_preset, resolved_yaml, shipped_presets
from fismo_cli.preset.locate import DEFAULT_PRESET
from fismo_cli.preset.schema import ImagePreset, TextPreset

NAMES = sorted(shipped_presets())
EXPECTED = {
    "cifar10-dla",
    "cifar10-vit",
    "digits-resnet",
    "digits-vit",
    "finetune-smollm",
    "finetune-vit",
    "imagenet-vit",
    "openwebtext-gpt2",
    "stdlib-gpt2",
    "stdlib-llama",
}


def test_all_are_there():
    assert set(NAMES) == EXPECTED
    assert DEFAULT_PRESET == "digits-vit"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_preset(name)
    assert loaded.name == name
    assert loaded.preset.optimizer.name == "fismo"
    Path("again.yaml").write_text(resolved_yaml(loaded))
    assert identity(load_preset("again.yaml").preset) == identity(loaded.preset)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "soap", "sgd", "timm/lamb"])
def test_each_takes_any_optimizer(name, optimizer):
    assert load_preset(name, [f"optimizer.name={optimizer}"]).preset.optimizer.name == optimizer


@pytest.mark.parametrize("name", NAMES)
def test_each_says_in_its_first_line_what_it_trains(name):
    first = shipped_presets()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 40


def test_a_shipped_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits-vit").mkdir()
    assert load_preset("digits-vit").name == "digits-vit"


# Parameters of the networks that the presets name, in millions, from their papers or counted by hand.
SIZES = {
    "cifar10-dla": (15.3, "15.8 with 1,000 classes, arXiv 1707.06484"),
    "cifar10-vit": (6.3, "6.3, omihub777/ViT-CIFAR"),
    "imagenet-vit": (22.05, "22.05, arXiv 2205.01580"),
    "openwebtext-gpt2": (124.4, "124, GPT-2"),
    "finetune-vit": (21.7, "22.05 less the head"),
    "digits-vit": (0.103, "3 layers x (4 + 2 x 2) x 64^2, biases, norms and embeddings"),
    "stdlib-gpt2": (0.37, "3 layers x 12 x 96^2 and embeddings"),
    "stdlib-llama": (0.38, "3 layers x (4 x 96^2 + 3 x 96 x 256) and embeddings"),
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_model_arguments_build_a_model_of_the_size_meant(name):
    import torch

    preset = load_preset(name).preset
    with torch.device("meta"):
        if isinstance(preset, ImagePreset):
            import timm

            classes = {"imagenet-vit": 1000, "finetune-vit": 3}.get(name, 10)
            args = {**preset.model.args, "num_classes": classes, "in_chans": preset.data.channels}
            model = timm.create_model(preset.model.name, pretrained=False, **args)
        else:
            from transformers import AutoConfig, AutoModelForCausalLM

            vocabulary = 50257 if preset.data.tokenizer != "bytes" else 257
            config = AutoConfig.for_model(preset.model.name, vocab_size=vocabulary, **preset.model.args)
            model = AutoModelForCausalLM.from_config(config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(SIZES[name][0], rel=0.05)


def test_text_presets_have_room_for_their_blocks():
    for name in NAMES:
        preset = load_preset(name).preset
        if isinstance(preset, TextPreset) and preset.model.pretrained is False:
            room = preset.model.args.get("n_positions") or preset.model.args["max_position_embeddings"]
            assert room >= preset.data.block_size


def test_fine_tuning_presets_start_from_weights():
    assert load_preset("finetune-smollm").preset.model.pretrained is True
    assert load_preset("finetune-vit").preset.model.pretrained is True
