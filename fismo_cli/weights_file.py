"""What is said of files of weights that cannot be read. Knows nothing of models, and of no library that builds them."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fismo_cli.errors import UsageError

__all__ = ["readable_weights"]


@contextmanager
def readable_weights(path: Path) -> Iterator[None]:
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
            reason = "it is broken, or holds other Python objects than weights; loading those could run any code"
        else:
            reason = "it is broken, or neither a safetensors file nor one that torch.save wrote"
        raise UsageError(f"model.pretrained: {path} is not a readable weights file: {reason}") from error
