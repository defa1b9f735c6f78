"""FISMO on LoRA's adapters by peft: pairs of thin matrices, which it treats as such."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from fismo_core import FISMO


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 64}
    model = GPT2LMHeadModel(
        GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0)
    )
    return get_peft_model(model, LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True))


def train(model: torch.nn.Module, optimizer: FISMO, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


model = build()
optimizer = FISMO(model, lr=0.02)  # frozen weights are left out
print(optimizer.plan())
train(model, optimizer, range(10))
saved = {name: value.clone() for name, value in model.state_dict().items()}, optimizer.state_dict()
train(model, optimizer, range(10, 20))

again = build()
optimizer = FISMO(again, lr=0.02)
again.load_state_dict(saved[0])
optimizer.load_state_dict(saved[1])
train(again, optimizer, range(10, 20))
same = all(map(torch.equal, model.parameters(), again.parameters()))
print(f"resumed: the same weights: {same}")
