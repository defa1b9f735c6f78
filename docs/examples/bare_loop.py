"""FISMO in a loop of your own: a schedule, gradient clipping, a checkpoint, and going on from it."""

import tempfile

import torch
from torch import nn

from fismo_core import FISMO


def build() -> tuple[nn.Module, FISMO, torch.optim.lr_scheduler.LRScheduler]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    # Of a plain Sequential nobody can say that its last layer is a head: a rule does.
    optimizer = FISMO(model, lr=0.02, weight_decay=0.1, rules={r"^4\.": "adamw"})
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)


def train(model, optimizer, scheduler, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(64, 16, generator=generator)
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as usual; FISMO's steps do not depend on the norm
        optimizer.step()
        scheduler.step()


parts = build()
print(parts[1].plan())
train(*parts, range(10))
with tempfile.TemporaryDirectory() as folder:
    torch.save({"parts": [part.state_dict() for part in parts], "step": 10}, f"{folder}/checkpoint.pt")
    train(*parts, range(10, 20))

    again, checkpoint = build(), torch.load(f"{folder}/checkpoint.pt")
    for part, state in zip(again, checkpoint["parts"], strict=True):
        part.load_state_dict(state)
    train(*again, range(checkpoint["step"], 20))

same = all(map(torch.equal, parts[0].parameters(), again[0].parameters()))
print(f"resumed: the same weights: {same}")
