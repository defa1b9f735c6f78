"""FISMO in transformers.Trainer: by `optimizer_cls_and_kwargs`, with the model among the arguments; and resumed."""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from fismo_core import FISMO

text = torch.randint(64, (256, 17), generator=torch.Generator().manual_seed(0))
dataset = [{"input_ids": row, "labels": row} for row in text]


def build() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def trainer(folder: str, model: GPT2LMHeadModel) -> Trainer:
    arguments = TrainingArguments(
        folder, max_steps=20, save_steps=10, per_device_train_batch_size=8, report_to="none", use_cpu=True
    )
    # `learning_rate` and `weight_decay` of the arguments are not passed on: FISMO's are its own.
    options = {"model": model, "lr": 0.02, "weight_decay": 0.1}
    return Trainer(model, arguments, train_dataset=dataset, optimizer_cls_and_kwargs=(FISMO, options))


with tempfile.TemporaryDirectory() as folder:
    whole = build()
    trainer(folder, whole).train()
    again = build()
    trainer(folder, again).train(resume_from_checkpoint=f"{folder}/checkpoint-10")

same = all(map(torch.equal, whole.parameters(), again.parameters()))
print(f"resumed: the same weights: {same}")
