"""What is frozen stays as it is, in whatever mode the model is; the rest trains, and resumes bit for bit."""

import copy

import pytest
import torch
import transformers
from torch import nn

from fismo_cli.errors import UsageError
from fismo_cli.freezing import freeze, trained_parameters
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.preparation import prepare
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.training.events import Finished

SMALL = ["train.epochs=null", "train.steps=6", "checkpoint.every=3", "checkpoint.keep=9", "evaluate.every=null"]


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))


def gpt2(tied):
    config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=tied)
    return transformers.GPT2LMHeadModel(config)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("optimizer", ["fismo", "adamw"])
def test_a_run_leaves_what_is_frozen_as_it_was_and_resumes_bit_for_bit(tmp_path, optimizer):
    loaded = load_preset(
        "digits-resnet", [*SMALL, "model.freeze=[conv1.*,bn1.*,layer1.*]", f"optimizer={{name: {optimizer}}}"]
    )
    prepared = prepare(loaded)
    trainer, store = prepared.trainer, CheckpointStore(tmp_path, keep=9)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert any("parameters are trained, and the statistics of" in note for note in prepared.notes)
    assert isinstance(list(trainer.fit(store))[-1], Finished)
    after = trainer.model.state_dict()
    frozen = [name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))]
    assert any(name.endswith("running_mean") for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert all(not torch.equal(before[name], after[name]) for name in before if name not in frozen)
    owned = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert owned == {p for name, p in trainer.model.named_parameters() if name not in frozen}
    again = prepare(loaded).trainer
    list(again.fit(resume=store.load(3)))
    assert all(torch.equal(value, after[name]) for name, value in again.model.state_dict().items())


def test_a_frozen_norm_keeps_its_statistics_and_a_copy_its_own():
    model = net()
    assert freeze(model, ["1.*"]) == [
        "model.freeze: 36 of 44 parameters are trained, and the statistics of 1 norm stay as they are"
    ]
    other = copy.deepcopy(model).train()
    model.train()
    assert [module.training for module in model] == [True, False, True, True]
    assert [module.training for module in other] == [True, False, True, True]
    model(torch.randn(8, 3))
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert not torch.equal(model[3].running_mean, torch.zeros(4))
    assert torch.equal(other[3].running_mean, torch.zeros(4))
    freeze(bare := net(), ["1.*", "3.*"])
    assert not bare.train()[3].training


def test_half_frozen_norms_and_those_of_the_rest_go_on():
    model = net()
    freeze(model, ["1.bias"])
    assert model.train()[1].training


def test_all_but_the_head_of_timm_and_transformers_models():
    import timm

    model = timm.create_model("test_resnet", num_classes=5)
    freeze(model, "all-but-head")
    assert trained(model) == {"fc.weight", "fc.bias"}
    assert not any(m.training for m in model.train().modules() if isinstance(m, nn.BatchNorm2d))
    loose = gpt2(tied=False)
    assert len(freeze(loose, "all-but-head")) == 1
    assert trained(loose) == {"lm_head.weight"}
    tied = gpt2(tied=True)
    assert (
        "the head is tied: transformer.wte.weight and lm_head.weight are one parameter"
        in freeze(tied, "all-but-head")[1]
    )
    assert trained(tied) == {"transformer.wte.weight"}
    with pytest.raises(UsageError, match="no head of its own"):
        freeze(timm.create_model("test_resnet", num_classes=0), "all-but-head")


def test_a_tied_parameter_is_frozen_by_either_name():
    model = gpt2(tied=True)
    freeze(model, ["lm_head.weight"])
    assert "transformer.wte.weight" not in trained(model)
    assert trained_parameters(model) == sum(p.numel() for p in model.parameters()) - 9 * 8


def test_wrong_patterns_are_named_all_at_once_with_what_is_close():
    with pytest.raises(UsageError) as wrong:
        freeze(gpt2(tied=True), ["transformer.h", "transformer.wpe.wieght", "encoder.*"])
    text = str(wrong.value)
    assert 'called "transformer.h"; write "transformer.h.*" for the' in text
    assert "did you mean transformer.wpe.weight" in text
    assert 'called "encoder.*"; there are transformer.*, lm_head.*' in text
    with pytest.raises(UsageError, match="freezes every parameter"):
        freeze(net(), ["*"])
