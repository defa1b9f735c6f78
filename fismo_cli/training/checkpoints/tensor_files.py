"""Named tensors in safetensors files, by `torch.distributed.checkpoint`: each process writes what it has.

Of a tensor that FSDP2 has spread every process writes its own rows; any other one is written by the first process that
has it. Nothing is ever pickled.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fismo_cli.errors import FismoError
from fismo_cli.training.distributed.world import World
from fismo_core.dtensors import is_dtensor

__all__ = ["measure_files", "read_tensors", "sha256", "write_tensors"]


def write_tensors(tensors: dict[str, Tensor], directory: Path, world: World) -> None:
    """Write this process's tensors; all processes call it together, and if it fails in one it fails in all.

    Args:
        tensors: by name; names are of the same tensors in all processes.
        directory: which all of them see.
        world: the processes.

    Raises:
        FismoError: why it failed in the first process where it did.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    several = world.size > 1
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=several)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # where one process is all
            save(_own(tensors, world), storage_writer=writer, process_group=world.group, no_dist=not several)
    except CheckpointException as error:  # derives from BaseException, and hides the cause in an attribute
        cause = next(iter(error.failures.values()))[0]
        if not isinstance(cause, OSError | RuntimeError):
            raise
        raise FismoError(getattr(cause, "strerror", None) or str(cause)) from error


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors in a directory, whole and on the CPU, however many processes wrote them."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    found = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)
    return tensors


def measure_files(directory: Path, world: World = World()) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the files that this process wrote, by name: with several, of the shard of its number."""
    shard = f"shard-{world.rank + 1:05d}-" if world.size > 1 else ""
    files = (file for file in sorted(directory.iterdir()) if file.name.startswith(shard))
    return {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _own(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this process has to write."""
    whole = [name for name, tensor in tensors.items() if not is_dtensor(tensor)]
    taken = {name for names in world.gather(whole)[: world.rank] for name in names}
    return {name: tensor for name, tensor in tensors.items() if name not in taken}
