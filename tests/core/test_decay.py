"""Which parameters weight decay leaves alone, held against timm's and transformers' own rules."""

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.trainer_pt_utils import get_parameter_names

from fismo_core import undecayed_parameters


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext", "test_byobnet"])
def test_timms_models_are_treated_as_timm_does(name: str) -> None:
    model = timm.create_model(name)
    listed = getattr(model, "no_weight_decay", set)()
    without, _ = param_groups_weight_decay(model, 0.1, no_weight_decay_list=listed)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    assert without["weight_decay"] == 0
    assert set(undecayed_parameters(model)) == {names[id(parameter)] for parameter in without["params"]}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_of_transformers_models_no_embedding_decays_either(kind: str) -> None:
    """What its Trainer leaves alone, and embeddings; a head of its own is decayed."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11, "ffn_dim": 16}
    config = AutoConfig.for_model(
        kind, **sizes, intermediate_size=16, tie_word_embeddings=kind == "gpt2", word_embed_proj_dim=8
    )
    model = AutoModelForCausalLM.from_config(config)
    decayed_by_trainer = get_parameter_names(
        model, [nn.LayerNorm], ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)"]
    )
    trainable = {name for name, _ in model.named_parameters()}
    embeddings = {name for name in trainable if any(word in name for word in ("wte", "wpe", "embed"))}
    undecayed = undecayed_parameters(model)
    assert set(undecayed) == trainable - (set(decayed_by_trainer) - embeddings)
    assert embeddings
    assert kind == "gpt2" or "lm_head.weight" not in undecayed


def test_names_that_parts_list_and_marks_are_heeded() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.third = nn.Parameter(torch.zeros(2, 2))
            self.fourth = nn.Parameter(torch.zeros(2, 2))
            self.third._no_weight_decay = True  # type: ignore[attr-defined]

        def no_weight_decay(self) -> set[str]:
            return {"second.*"}

    model = nn.Sequential(Part(), nn.LayerNorm((2, 2)))
    model[0].first.bias.requires_grad_(False)
    assert undecayed_parameters(model) == {
        "0.second.weight": "the model says so",
        "0.second.bias": "the model says so",
        "0.third": "the model says so",
        "1.weight": "norm",
        "1.bias": "position, token, scale or bias",
    }
