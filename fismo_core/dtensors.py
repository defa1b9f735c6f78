"""Tensors that may be DTensors: this rank's part, the whole, and the process group over which rows are sharded."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["distributed_like", "full_tensor", "is_dtensor", "local_part", "process_group_of"]


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor. (To import the class takes longer than all of this package.)"""
    return hasattr(tensor, "placements")


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; one that is not sharded is given back."""
    return tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank; one that is not sharded is given back. All ranks call it together."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def distributed_like(value: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor, which every rank has, on the device of another one and sharded as that is."""
    value = value.to(like.device)
    if not is_dtensor(like) or is_dtensor(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole: nothing needs to be sent.
    sharded: Any = like
    return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)


def process_group_of(parameters: Sequence[Any]) -> Any:
    """The process group over which rows of parameters are sharded, as FSDP2 does it; None if they are not.

    Raises:
        ValueError: if some are sharded in another way.
    """
    sharded = [parameter for parameter in parameters if is_dtensor(parameter)]
    if not sharded:
        return None
    mesh = sharded[0].device_mesh
    for parameter in sharded:
        by_rows = len(parameter.placements) == 1 and parameter.placements[0].is_shard(0)
        if parameter.device_mesh != mesh or not by_rows:
            raise ValueError(
                "FISMO takes parameters that are whole, or whose rows are sharded over one dimension of ranks, as "
                f"fully_shard does it; got {parameter.placements} on {parameter.device_mesh}"
            )
    return mesh.get_group()
