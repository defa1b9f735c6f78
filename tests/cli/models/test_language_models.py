"""Language models of transformers: their own training loss, no look ahead, and what a configuration that fails says."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from fismo_cli.errors import UsageError
from fismo_cli.models import build_model, model_notes
from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig, TrainConfig
from fismo_cli.tasks import build_task
from fismo_cli.training.trainer import RunName, Trainer
from fismo_cli.transformers_checks import check_next_token_model, use_own_loss
from tests.cli.models.test_models import build, text_file, text_preset

__all__ = ["text_file", "text_preset"]  # fixtures

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GROUPED = {**SMALL, "num_key_value_heads": 1}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 5}
MIXTRAL = {**EXPERTS, "head_dim": 16, "num_local_experts": 4}
MIXTURES = {
    "mixtral": MIXTRAL,
    "qwen2_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
    "olmoe": {**EXPERTS, "num_experts": 4},
    "phimoe": {**EXPERTS, "num_local_experts": 4},
    "gpt_oss": {**MIXTRAL, "layer_types": ["sliding_attention", "full_attention"]},
    "granitemoe": {**EXPERTS, "num_local_experts": 4},
    "jamba": {**EXPERTS, "num_experts": 4, "mamba_d_state": 8},
    "ernie4_5_moe": {
        **GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "output_router_logits": True,
        "router_aux_loss_coef": 5,
    },
}  # fmt: skip
OTHERS = {
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "llama": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 16, "final_logit_softcapping": 2.0},
    "granite": {**GROUPED, "logits_scaling": 3.0},
    "cohere": GROUPED,
    "gpt_neox": SMALL,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2},
    "opt": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 64},
    "bart": {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 8},
    "bert": {**SMALL, "is_decoder": True},
    "roberta": {**SMALL, "is_decoder": True, "pad_token_id": 0},
    "deepseek_v3": {
        **SMALL, "num_key_value_heads": 2, "moe_intermediate_size": 32, "q_lora_rank": 16, "kv_lora_rank": 16,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def batch(text_preset):
    return build_task(text_preset()).train.__getitems__([(0, index) for index in range(4)])


@pytest.mark.parametrize("name", [*MIXTURES, *OTHERS])
def test_the_training_loss_is_transformers_own_and_validation_is_plain(text_preset, batch, name):
    from transformers import AutoModelForCausalLM

    model, task = build(text_preset(name, {**MIXTURES, **OTHERS}[name]))
    alone = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.float32)
    alone.load_state_dict(model.state_dict())
    model.eval(), alone.eval()
    with torch.no_grad():
        output = alone(input_ids=batch["inputs"], labels=batch["inputs"], use_cache=False)
        first, second = output.logits[:, :-1].flatten(0, 1), batch["inputs"][:, 1:].flatten()
        if name == "bart":  # which does not shift
            first, second = output.logits.flatten(0, 1), batch["inputs"].flatten()
        added = output.loss - functional.cross_entropy(first, second)
        plain = functional.cross_entropy(output.logits.flatten(0, 1), batch["targets"].flatten())
        assert task.training_loss(model, batch).item() == pytest.approx((plain + added).item(), abs=1e-5)
        measured = task.measure(model, batch)
    assert (measured["loss"] / measured["tokens"]).item() == pytest.approx(plain.item(), rel=1e-6)
    assert (added.item() > 5) == (name in MIXTURES)
    loss = task.training_loss(model.train(), batch)
    loss.backward()
    routers = [p for n, p in model.named_parameters() if "gate" in n or "router" in n]
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert name not in MIXTURES or any(p.grad is not None and p.grad.any() for p in routers)


def test_z_loss_is_part_of_the_training_loss(text_preset, batch):
    args = {**GROUPED, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
    losses = {}
    for coefficient in (0, 2):
        torch.manual_seed(0)
        model, task = build(text_preset("bamba", {**args, "z_loss_coefficient": coefficient}))
        with torch.no_grad():
            losses[coefficient] = task.training_loss(model.eval(), batch)
            logits = model(input_ids=batch["inputs"], use_cache=False).logits
    assert (losses[2] - losses[0]).item() == pytest.approx(2 * logits.logsumexp(-1).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "noise_every": 1}, {"activation_checkpointing": True}])
def test_the_logged_loss_of_a_mixture_has_its_auxiliary_loss(text_preset, options):
    from transformers import AutoModelForCausalLM

    preset = text_preset("mixtral", {**MIXTRAL, "router_aux_loss_coef": 5.0})
    task = build_task(preset)
    torch.manual_seed(0)
    model = build_model(preset, task)
    alone = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.float32)
    alone.load_state_dict(model.state_dict())
    trainer = Trainer(
        task=task,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        train=TrainConfig(steps=1, batch_size=8, log_every=1, **options),
        evaluate=EvaluateConfig(),
        checkpoint=CheckpointConfig(),
        device=torch.device("cpu"),
        name=RunName("p", "sgd"),
    )
    pieces = list(trainer.batches())
    right = torch.stack(
        [alone(input_ids=p["inputs"], labels=p["targets"], shift_labels=p["targets"]).loss for p in pieces]
    ).mean()
    right.backward()
    logged = next(event for event in trainer.fit() if type(event).__name__ == "StepLogged")
    assert logged.loss == pytest.approx(right.item(), rel=1e-6)
    assert right.item() > 14
    before, after = alone.state_dict(keep_vars=True), model.state_dict()
    lr = logged.lr[next(iter(logged.lr))]
    for name, value in before.items():
        if value.grad is not None:
            torch.testing.assert_close(after[name], value.detach() - lr * value.grad, rtol=1e-4, atol=1e-6)


def test_a_coefficient_that_transformers_ignores_is_said(text_preset):
    model, _ = build(text_preset("mixtral", {**MIXTRAL, "output_router_logits": False}))
    assert "model.args.router_aux_loss_coef has no effect" in model_notes(model)[0]
    assert model_notes(build(text_preset("mixtral", MIXTRAL))[0]) == []


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("roberta", {**SMALL, "is_decoder": True}, "roberta with these .*: set model.args.pad_token_id, such"),
        (
            "roberta", {**SMALL, "is_decoder": True, "pad_token_id": 0, "max_position_embeddings": 16},
            "data.block_size is 16, but roberta has 16 positions .* give it 17 or more",
        ),
        ("modernbert-decoder", SMALL, "refuses them: .* set model.args.pad_token_id, such as 0"),
        ("xmod", {**SMALL, "is_decoder": True, "pad_token_id": 0}, "cannot take tokens: ValueError: Input language"),
        ("deepseek_v3", {**OTHERS["deepseek_v3"], "num_key_value_heads": 1}, "cannot take tokens: RuntimeError"),
        ("electra", SMALL, "electra looks at later tokens; set model.args.is_decoder to true"),
        ("xlnet", {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}, "xlnet looks at later tokens; choose a c"),
        ("gemma4_assistant", {}, "model.name: gemma4_assistant has no configuration of its own"),
    ],
)  # fmt: skip
def test_what_a_configuration_that_fails_says(text_preset, name, args, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(text_preset(name, args))
    assert "\n" not in str(caught.value)


def test_weights_that_begin_at_zero_hide_no_look_ahead(text_preset):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("bert", vocab_size=257, **SMALL)
    model = AutoModelForCausalLM.from_config(config)
    use_own_loss(model)
    for name, parameter in model.named_parameters():
        if "attention.output" in name:
            parameter.data.zero_()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="looks at later tokens"):
        check_next_token_model(model, "bert", 16)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_loss_that_shifts_labels_by_itself_is_refused():
    class Shifting(torch.nn.Module):
        config = SimpleNamespace(pad_token_id=0)

        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(9, 9)

        def forward(self, input_ids, labels, use_cache):
            logits = self.embedding(input_ids)
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            return SimpleNamespace(logits=logits, loss=loss)

    with pytest.raises(UsageError, match="the loss of mine shifts labels by itself"):
        check_next_token_model(Shifting(), "mine", 16)
