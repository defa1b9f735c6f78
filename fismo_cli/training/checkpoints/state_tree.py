"""A nested state as named tensors and a JSON document, and back, exactly: what makes checkpoints free of pickle.

A state is made of dicts (keys: str, int, float, bool or None), lists, tuples, deques, tensors, torch's dtypes and plain
values. Integer keys, tuples, negative zero, infinities and NaN survive, which plain JSON would lose.
"""

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fismo_core.dtensors import is_dtensor, local_part

__all__ = ["flatten", "merge", "rebuild"]

Tree = Any


def flatten(tree: Tree) -> tuple[dict[str, Tensor], Any]:
    """Split a state into its tensors, named by their path, and a JSON document that `rebuild` reads.

    Tensors without a dimension go into the document, byte for byte. The others are contiguous, on the CPU, and share no
    memory with one another; those that are spread over processes stay spread, on their devices. A matrix that lies
    column by column is stored transposed, and lies so again when it is rebuilt: the last digits of its products depend
    on that.

    Raises:
        TypeError: for a value of another kind, naming where it is.
    """
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()

    def encode(node: Tree, path: str) -> Any:
        match node:
            case None | bool() | str():
                return node
            case int():
                return int(node)
            case float():
                return float(node) if math.isfinite(node) else {"float": repr(float(node))}
            case Tensor() if node.dim() == 0:
                # An optimizer has a counter a parameter: as tensors of their own they would take most of the time.
                content = node.detach().cpu().reshape(1).view(torch.uint8).numpy().tobytes()
                return {"scalar": [str(node.dtype).removeprefix("torch."), content.hex()]}
            case Tensor():
                name = path
                while name in tensors:  # the keys 1 and "1" give one path
                    name += "'"
                order = _order_in_memory(node)
                tensors[name] = _separate(node if order is None else node.permute(order), storages)
                return {"tensor": name} if order is None else {"tensor": name, "order": order}
            case Mapping():
                return {
                    "dict": [[encode(key, f"{path}#"), encode(item, _join(path, key))] for key, item in node.items()]
                }
            case list():
                return [encode(item, _join(path, index)) for index, item in enumerate(node)]
            case tuple():
                return {"tuple": [encode(item, _join(path, index)) for index, item in enumerate(node)]}
            case deque():
                return {
                    "deque": [encode(item, _join(path, index)) for index, item in enumerate(node)],
                    "of": node.maxlen,
                }
            case torch.dtype():
                return {"dtype": str(node).removeprefix("torch.")}
        raise TypeError(f"{path or 'the state'}: a checkpoint cannot hold a {type(node).__name__}")

    return tensors, encode(tree, "")


def rebuild(document: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """The state that `flatten` split.

    Raises:
        KeyError: if a tensor is missing.
        ValueError: if the document is not one of `flatten`'s.
    """
    match document:
        case list():
            return [rebuild(item, tensors) for item in document]
        case {"tensor": name, "order": order}:
            return tensors[name].permute(sorted(range(len(order)), key=order.__getitem__))
        case {"tensor": name}:
            return tensors[name]
        case {"scalar": [dtype, content]}:
            return torch.frombuffer(bytearray.fromhex(content), dtype=getattr(torch, dtype)).reshape(()).clone()
        case {"float": text}:
            return float(text)
        case {"dict": items}:
            return {rebuild(key, tensors): rebuild(item, tensors) for key, item in items}
        case {"tuple": items}:
            return tuple(rebuild(item, tensors) for item in items)
        case {"deque": items, "of": length}:
            return deque(rebuild(items, tensors), maxlen=length)
        case {"dtype": name}:
            return getattr(torch, name)
        case dict():
            raise ValueError(f"unknown entry {sorted(document)}")
    return document


def merge(documents: Sequence[Any]) -> Any:
    """One document out of those of several processes: of dicts all entries that any has, of all else the first's."""
    dicts = [document["dict"] for document in documents if isinstance(document, dict) and "dict" in document]
    if not dicts or not isinstance(documents[0], dict) or "dict" not in documents[0]:
        return documents[0]
    entries: dict[str, tuple[Any, list[Any]]] = {}
    for key, value in (entry for items in dicts for entry in items):
        entries.setdefault(json.dumps(key), (key, []))[1].append(value)
    return {"dict": [[key, merge(values)] for key, values in entries.values()]}


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _order_in_memory(tensor: Tensor) -> list[int] | None:
    """The order of dimensions in which a tensor is contiguous; None for the usual one, and where there is none."""
    if tensor.is_contiguous() or is_dtensor(tensor):
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dim: -strides[dim])
    return order if tensor.permute(order).is_contiguous() else None


def _separate(tensor: Tensor, storages: set[int]) -> Tensor:
    """The tensor on the CPU, contiguous, copied where its memory is another's too (safetensors refuses that)."""
    value = tensor.detach()
    if is_dtensor(value):
        memory = local_part(value).untyped_storage().data_ptr()
        value = value.clone() if memory in storages and local_part(value).numel() else value
        storages.add(memory)
        return value
    if value.device.type != "cpu":
        value = value.cpu()
    storage = value.untyped_storage()
    whole = storage.nbytes() == value.numel() * value.element_size()
    # An empty tensor's storage has no address of its own.
    if not value.is_contiguous() or not whole or (storage.data_ptr() in storages and value.numel()):
        value = value.clone(memory_format=torch.contiguous_format)
    storages.add(value.untyped_storage().data_ptr())
    return value
