"""Saves a checkpoint by several ranks, then one that the last rank's disk refuses: started by torchrun.

torchrun --nproc-per-node N shards.py RESULT
"""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from fismo_cli.errors import FismoError
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.training.distributed.world import World, join_world

SHAPES = [(1,), (3, 2), (4,), (7, 5), (0, 3), (16, 2, 3)]


def wholes() -> dict[str, torch.Tensor]:
    """Tensors with fewer rows than ranks, with as many, with more that do not divide, and with none."""
    generator = torch.Generator().manual_seed(0)
    found = {str(shape): torch.randn(shape, generator=generator) for shape in SHAPES}
    return {**found, "bfloat16": found["(7, 5)"].bfloat16(), "int": torch.arange(10)}


def state(world: World) -> dict[str, Any]:
    mesh = DeviceMesh.from_group(world.group, "cpu")
    spread = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in wholes().items()}
    everywhere = torch.tensor([1.0, 2.0])
    return {
        "spread": {
            **spread,
            "tied": spread["(7, 5)"],
            "everywhere": distribute_tensor(everywhere, mesh, [Replicate()]),
        },
        "of the first": [torch.full((2,), float(world.rank)), world.rank, torch.tensor(world.rank)],
        "by owner": {world.rank: {"whole": torch.full((3,), float(world.rank)), "scalar": torch.tensor(world.rank)}},
        "of two owners": {0: {f"part.{world.rank}": torch.full((2,), float(world.rank))}},
    }


def main() -> None:
    result = Path(sys.argv[1])
    with join_world() as world:
        store = CheckpointStore(result.parent / "checkpoints")
        store.save(1, state(world), world=world)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if world.rank == world.size - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            store.save(2, state(world), world=world)
            said = "saved"
        except FismoError as error:
            said = f"{type(error).__name__}: {error}"
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        left = sorted(path.name for path in store.directory.iterdir())
        everyone = world.gather(said)
        store.save(3, state(world), world=world)
        if world.main:
            result.write_text("\n".join([*everyone, str(left)]))
    os._exit(0)  # see app.main


if __name__ == "__main__":
    main()
