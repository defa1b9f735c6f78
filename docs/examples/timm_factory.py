"""FISMO by timm's factory, as its training scripts make their optimizers."""

import timm
import torch
from timm.optim import create_optimizer_v2

from fismo_core import FISMO
from fismo_core.frameworks import register_with_timm, whole_model

register_with_timm()


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4}
    return timm.create_model("vit_tiny_patch16_224", **sizes)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(16, 3, 16, 16, generator=generator)
        labels = torch.randint(4, (16,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def made(model: torch.nn.Module) -> torch.optim.Optimizer:
    return create_optimizer_v2(model, "fismo", lr=0.02, weight_decay=0.1, param_group_fn=whole_model)


model = build()
optimizer = made(model)
train(model, optimizer, range(10))
saved = {name: value.clone() for name, value in model.state_dict().items()}, optimizer.state_dict()
train(model, optimizer, range(10, 20))

again = build()
optimizer = made(again)
again.load_state_dict(saved[0])
optimizer.load_state_dict(saved[1])
train(again, optimizer, range(10, 20))
same = all(map(torch.equal, model.parameters(), again.parameters()))
print(f"resumed: the same weights: {same}")

direct = build()
train(direct, FISMO(direct, lr=0.02, weight_decay=0.1), range(20))
print(f"as FISMO(model): {all(map(torch.equal, model.parameters(), direct.parameters()))}")
