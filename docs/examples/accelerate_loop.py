"""FISMO under accelerate: prepared like any optimizer, saved and loaded with `save_state` and `load_state`."""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn

from fismo_core import FISMO


def build(accelerator: Accelerator):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    optimizer = FISMO(model, lr=0.02, rules={r"^4\.": "adamw"})  # before `prepare`, which may wrap the model
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return accelerator.prepare(model, optimizer, scheduler)


def train(accelerator: Accelerator, model, optimizer, scheduler, steps: range) -> None:
    for step in steps:
        for part in range(2):
            x = torch.randn(32, 16, generator=torch.Generator().manual_seed(2 * step + part)).to(accelerator.device)
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(dim=1))
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()


accelerator = Accelerator(gradient_accumulation_steps=2)
with tempfile.TemporaryDirectory() as folder:
    first = build(accelerator)
    train(accelerator, *first, range(10))
    accelerator.save_state(folder)
    train(accelerator, *first, range(10, 20))
    whole = [parameter.detach().clone() for parameter in first[0].parameters()]
    accelerator.load_state(folder)  # into the same objects; a new process would build and prepare them anew
    train(accelerator, *first, range(10, 20))

same = all(map(torch.equal, whole, first[0].parameters()))
print(f"resumed: the same weights: {same}")
