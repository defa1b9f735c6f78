"""LoRA: adapters alone are trained, the saved model is the library's own, and resuming is exact."""

import sys

import pytest
import torch
import transformers

from fismo_cli.errors import UsageError
from fismo_cli.lora import add_adapters, merged
from fismo_cli.models import load_model_dir, save_flat, save_model
from fismo_cli.preset.loading import load_preset, resolved_yaml
from fismo_cli.preset.schema import LoraConfig
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.preparation import prepare
from fismo_cli.runs.weights import export_weights
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.weights_file import read_weights


@pytest.fixture
def preset(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some words to learn from\n" * 200)
    settings = [
        "data.source=text-files", f"data.path={path}", "data.block_size=16", "train.batch_size=8", "train.epochs=null",
        "train.steps=6", "evaluate.every=null", "checkpoint.every=3", "checkpoint.keep=9", "optimizer.lr=0.005",
        "model.args={n_layer: 2, n_embd: 16, n_head: 2, n_positions: 16}",
    ]  # fmt: skip
    return lambda *more: load_preset("stdlib-gpt2", [*settings, *more])


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=9, **sizes))


def test_a_new_adapter_changes_nothing_and_alone_is_trained():
    model, tokens = llama(), torch.arange(8)[None]
    before = model(tokens).logits
    assert "in 14 layers" in add_adapters(model, LoraConfig(rank=2))
    assert torch.equal(model(tokens).logits, before)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    plain = llama()
    assert merged(plain) is plain
    some = llama()
    add_adapters(some, LoraConfig(target=["q_proj", "v_proj"]))
    assert {name.split(".")[4] for name, p in some.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}


def test_a_run_saves_a_plain_model_and_its_adapters_and_resumes_bit_for_bit(tmp_path, preset):
    from peft import PeftModel

    prepared = prepare(preset("model.lora={rank: 4, dropout: 0.1}"))
    base = merged(prepared.trainer.model)  # as it was: B is zero
    store = CheckpointStore(tmp_path / "checkpoints", keep=9)
    list(prepared.trainer.fit(store))
    model, task, loaded = prepared.trainer.kept_model.eval(), prepared.task, prepared.loaded.preset
    save_model(model, loaded, task, tmp_path / "model")
    save_flat(model, tmp_path / "model.safetensors")
    tokens = task.test.__getitems__([(0, 0), (0, 1)])["inputs"]
    logits = model(input_ids=tokens).logits
    assert not torch.allclose(base.eval()(input_ids=tokens).logits, logits, atol=1e-3)
    own = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    again = PeftModel.from_pretrained(base, str(tmp_path / "model" / "adapter"))
    for found in (own, load_model_dir(tmp_path, loaded, task), again):
        assert type(found.get_base_model() if found is again else found) is transformers.GPT2LMHeadModel
        torch.testing.assert_close(found.eval()(input_ids=tokens).logits, logits, atol=1e-5, rtol=1e-5)
    flat = read_weights(tmp_path / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in flat)
    run = RunDirectory(tmp_path)
    run.preset.write_text(resolved_yaml(prepared.loaded))
    assert export_weights(run, tmp_path.with_suffix(".safetensors"), "6").step == 6
    exported = read_weights(tmp_path.with_suffix(".safetensors"))
    assert exported.keys() == flat.keys()
    assert all(torch.equal(value, flat[name]) for name, value in exported.items())
    resumed = prepare(preset("model.lora={rank: 4, dropout: 0.1}")).trainer
    list(resumed.fit(resume=store.load(3)))
    weights = prepared.trainer.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())


def test_what_cannot_be_is_refused(preset, monkeypatch):
    with pytest.raises(UsageError, match=r"model\.lora\.target: .*q_prj.* not found.*; there are .*q_proj"):
        add_adapters(llama(), LoraConfig(target=["q_prj"]))
    with pytest.raises(UsageError, match=r"model\.freeze: model\.lora freezes all but adapters"):
        preset("model.lora={}", "model.freeze=all-but-head")
    with pytest.raises(UsageError, match=r"model\.lora: is for models of transformers"):
        load_preset("digits-vit", ["model.lora={}"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"model\.lora needs the package peft: pip install 'fismo\[lora\]'"):
        add_adapters(llama(), LoraConfig())
