"""What `environment.json` records of a run: the surroundings, and hashes by which two runs are known to be paired."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fismo_cli.environment import environment
from fismo_cli.own_optimizers import own_origin

__all__ = ["describe_run", "differences", "weights_hash"]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        # One dimension first: torch reinterprets no scalar's bytes.
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def describe_run(
    *,
    command: Sequence[str],
    device: torch.device,
    initial_weights: str,
    sample_order: str,
    data: Mapping[str, Any],
    optimizer: str,
) -> dict[str, Any]:
    """The content of `environment.json`.

    Args:
        command: the command line.
        device: where the run trains.
        initial_weights: `weights_hash` of the model before the first step.
        sample_order: hash of the first epoch's order.
        data: the task's own description of its data.
        optimizer: its name.
    """
    origin = own_origin(optimizer)
    return {
        **environment(),
        "device": str(device),
        "command": list(command),
        "folder": str(Path.cwd()),
        "initial_weights_sha256": initial_weights,
        "sample_order_sha256": sample_order,
        "data": dict(data),
        **({} if origin is None else {"optimizer": origin}),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed of that on which results depend to the last bit, as `name: before -> now`."""
    found = []
    for section in ("versions", "threads"):
        old, new = before.get(section) or {}, now.get(section) or {}
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found.append(f"{name}: {old.get(name)} -> {new.get(name)}")
    for name in ("device", "system", "gpus"):
        if before.get(name) != now.get(name):
            found.append(f"{name}: {before.get(name)} -> {now.get(name)}")
    old_cpu, new_cpu = (side.get("cpu") or {} for side in (before, now))
    if old_cpu.get("model") != new_cpu.get("model"):
        found.append(f"cpu: {old_cpu.get('model')} -> {new_cpu.get('model')}")
    return found
