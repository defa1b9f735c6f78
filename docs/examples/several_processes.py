"""DDP, and FSDP2: torchrun --nproc-per-node=2 docs/examples/several_processes.py ddp (or fsdp2)."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fismo_core import FISMO

dist.init_process_group()  # nccl where there are GPUs, else gloo
device = torch.device("cuda", dist.get_rank()) if torch.cuda.is_available() else torch.device("cpu")


def build(kind: str) -> tuple[nn.Module, FISMO]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4)).to(device)
    rules = {r"^4\.": "adamw"}
    if kind == "fsdp2":
        fully_shard(model)  # before the optimizer, which then knows the ranks by itself
        return model, FISMO(model, lr=0.02, rules=rules)
    # Given the group, each rank computes a part of the step and the others take it over; without, each does it all.
    optimizer = FISMO(model, lr=0.02, rules=rules, process_group=dist.group.WORLD)
    return DistributedDataParallel(model), optimizer


def train(model, optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * dist.get_rank() + step)
        x = torch.randn(32, 16, generator=generator).to(device)
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


kind = sys.argv[1] if len(sys.argv) > 1 else "ddp"
model, optimizer = build(kind)
train(model, optimizer, range(10))
state = model.state_dict(), optimizer.state_dict()  # of this rank; `optimizer.full_state_dict()` has all of it on one
state = {name: value.clone() for name, value in state[0].items()}, state[1]
train(model, optimizer, range(10, 20))

again, optimizer = build(kind)
again.load_state_dict(state[0])
optimizer.load_state_dict(state[1])
train(again, optimizer, range(10, 20))

pairs = zip(model.parameters(), again.parameters(), strict=True)
full = [[p.full_tensor() if hasattr(p, "full_tensor") else p for p in pair] for pair in pairs]
same = all(torch.equal(one, other) for one, other in full)
if dist.get_rank() == 0:
    print(f"{kind}: resumed: the same weights: {same}", flush=True)
dist.destroy_process_group()
os._exit(0)  # processes that used DDP or FSDP at times abort while the interpreter ends, in torch 2.14 on a CPU
