"""Trains a small model with FISMO in this rank and writes what came of it: started by torchrun, as a user's own loop.

torchrun --nproc-per-node N ranks.py RESULT RUNS: a list of `Run`s, as JSON, one after the other.
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fismo_core import FISMO, split_parameters
from fismo_core.config import FORMS
from fismo_core.dtensors import full_tensor


class Model(nn.Module):
    """Matrices of several shapes, a convolution, tied weights, a frozen layer, a branch that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        self.convolution = nn.Conv1d(12, 16, 3, padding=1)
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(5))
        self.down = nn.Linear(16, 12)
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.tiny = nn.Linear(1, 1)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.convolution(self.embedding(tokens).mT).mT
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        x = self.frozen(self.down(x))
        return self.head(x + self.tiny(x[..., :1]))


@dataclass(frozen=True)
class Run:
    """One training run: with which form, spread by FSDP2 or not, which steps, from and to which file."""

    form: str = "default"
    fsdp: bool = False
    steps: int = 12
    first: int = 0
    load: str | None = None
    save: str | None = None


def train(run: Run) -> dict[str, Any]:
    rank, size = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    model = Model().double()
    saved = torch.load(run.load) if run.load else None
    if saved:
        model.load_state_dict(saved["model"])
    if run.fsdp:
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    form = FORMS[run.form].options
    if run.form == "default":  # with diagonal factors of long sides; dense has the other ones
        form = replace(form, economy="most")
    group = distributed.group.WORLD if size > 1 and not run.fsdp else None
    optimizer = FISMO.of(split_parameters(model), replace(form, weight_decay=0.1), process_group=group)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
    replica = model if run.fsdp else DistributedDataParallel(model, find_unused_parameters=True)
    losses = []
    for step in range(run.first, run.steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 20, (8, 9), generator=generator)
        share = tokens[rank * 8 // size : (rank + 1) * 8 // size]
        optimizer.zero_grad()
        logits = replica(share[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), share[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        distributed.all_reduce(mean)
        losses.append(float(mean) / size)
    weights = {name: full_tensor(value.detach()) for name, value in model.state_dict().items()}
    flat = torch.cat([weights[name].flatten() for name, _ in model.named_parameters()])
    everywhere = [torch.empty_like(flat) for _ in range(size)]
    distributed.all_gather(everywhere, flat)
    state_bytes = [None] * size
    distributed.all_gather_object(state_bytes, optimizer.state_bytes())
    whole = optimizer.full_state_dict()
    skipped = optimizer.skipped_gradients()
    if rank == 0 and run.save:
        torch.save({"model": weights, "optimizer": whole}, run.save)
    distributed.barrier()  # what is saved is there for all
    return {
        "losses": losses,
        "weights": flat.tolist(),
        "equal": all(torch.equal(flat, other) for other in everywhere),
        "state_bytes": state_bytes,
        "skipped": skipped,
    }


def main() -> None:
    result, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found = [train(Run(**run)) for run in runs]
    if distributed.get_rank() == 0:
        result.write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # processes that used DDP at times abort while the interpreter ends, in torch 2.14


if __name__ == "__main__":
    main()
