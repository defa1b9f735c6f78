"""Files of weights: read as they are written by many tools, and what is said of those that cannot be."""

import argparse
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fismo_cli.errors import UsageError

__all__ = ["read_weights", "without_prefix"]

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict", "net", "module")
"""Names under which training checkpoints hold the weights, the averaged ones first."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file of safetensors or of torch.save, a model's alone or in a checkpoint with other things.

    Names are without what DDP (`module.`) and torch.compile (`_orig_mod.`) put into them.

    Raises:
        UsageError: The file cannot be read, or holds no weights.
    """
    found: Any
    with _readable(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            with torch.serialization.safe_globals(_harmless()):
                found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, Mapping):
        found = next((found[name] for name in WRAPPERS if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise UsageError(f"model.pretrained: {path} holds no weights of a model")
    return without_prefix({str(name).replace("_orig_mod.", ""): value for name, value in found.items()}, "module.")


def _harmless() -> list[Any]:
    """What training scripts keep beside weights: a command line's arguments, and numbers of numpy's (a best score)."""
    numbers = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)]
    scalar = type(np.float64(0))(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *numbers, *((scalar, name) for name in names)]


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights with a prefix taken off that all of their names have."""
    common = all(name.startswith(prefix) for name in weights)
    return {name.removeprefix(prefix) if common else name: value for name, value in weights.items()}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Word the errors of reading a weights file, whose own advice is for programmers, and keep torch's warnings away.

    Raises:
        UsageError: The file cannot be read, or not as weights alone.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # safetensors, pickle and zip files each fail in their own way
        if isinstance(error, PermissionError):
            reason = "it may not be read"
        elif path.suffix == ".safetensors":
            reason = "it is broken, or no safetensors file"
        elif isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):  # timm wraps the former
            reason = (
                "it is broken, or holds other Python objects than weights; loading those could run any code. Save the "
                "weights alone (model.state_dict())"
            )
        else:
            reason = "it is broken, or neither a safetensors file nor one that torch.save wrote"
        raise UsageError(f"model.pretrained: {path} is not a readable weights file: {reason}") from error
