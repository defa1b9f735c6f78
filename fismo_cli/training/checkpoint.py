"""Checkpoints on disk: written whole or not at all, verified when read, the last few and the best kept.

A checkpoint is a directory written by `torch.distributed.checkpoint` in its safetensors format, plus `state.json` for
everything that is no tensor and `complete.json`, written last, with the size and SHA-256 of every file. Nothing in it
is ever unpickled. This module knows nothing of models, optimizers or what the state means.
"""

import hashlib
import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fismo_cli.errors import FismoError
from fismo_cli.files import whole_directory, whole_file
from fismo_cli.training.tree import flatten, rebuild

__all__ = ["CheckpointStore", "Loaded"]

STATE, MARKER = "state.json", "complete.json"
STEP_DIRECTORY = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read from disk, and what was wrong with the newer ones that were passed over."""

    step: int
    state: dict[str, Any]
    problems: list[str]


class CheckpointStore:
    """The checkpoints of one run. One process at a time may write.

    Args:
        directory: where they are; created by the first `save`.
        keep: how many of the last are kept, besides the one with the lowest validation loss.
    """

    def __init__(self, directory: Path, *, keep: int = 3) -> None:
        self.directory, self.keep = directory, keep

    def steps(self) -> list[int]:
        """Steps of which there is a directory, complete or not, ascending."""
        if not self.directory.is_dir():
            return []
        found = (STEP_DIRECTORY.fullmatch(path.name) for path in self.directory.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.directory / f"step-{step}"

    def save(self, step: int, state: dict[str, Any], *, validation_loss: float | None = None) -> Path:
        """Write a checkpoint, then delete those that need not be kept.

        Args:
            step: the step it belongs to; a broken checkpoint of the same step is replaced.
            state: what `load` gives back (see `tree.flatten` for what it may hold).
            validation_loss: by which the best is chosen; None where this step was not evaluated.

        Raises:
            FismoError: if it cannot be written; earlier checkpoints are intact and nothing partial is left.
        """
        # torch's own exception derives from BaseException and hides the cause in an attribute.
        from torch.distributed.checkpoint.api import CheckpointException

        target = self.path(step)
        try:
            self._remove_partial()
            with whole_directory(target) as partial:
                tensors, document = flatten(state)
                _write_tensors(tensors, partial)
                (partial / STATE).write_text(json.dumps(document))
                marker = {"step": step, "validation_loss": validation_loss, "files": _measure_files(partial)}
            with whole_file(target / MARKER) as file:
                file.write_text(json.dumps(marker, indent=1))
        except (OSError, CheckpointException) as error:
            cause: BaseException = error
            if isinstance(error, CheckpointException):
                cause = next(iter(error.failures.values()))[0]
                if not isinstance(cause, OSError | RuntimeError):
                    raise
            raise FismoError(
                f"the checkpoint of step {step} could not be written to {self.directory}: "
                f"{getattr(cause, 'strerror', None) or cause}. Earlier checkpoints are intact"
            ) from error
        self._prune()
        return target

    def load(self) -> Loaded | None:
        """The newest checkpoint that is whole, with a sentence for each newer one that is not; None if there is none.

        Raises:
            FismoError: if there are checkpoints but every one is broken.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                return Loaded(step, self._read(step), problems)
            except _BrokenError as error:
                problems.append(f"{self.path(step)} is broken ({error})")
        if problems:
            raise FismoError("; ".join(problems) + f". No whole checkpoint is left in {self.directory}")
        return None

    def _read(self, step: int) -> dict[str, Any]:
        path = self.path(step)
        marker = _read_marker(path)
        for name, expected in marker["files"].items():
            file = path / name
            if not file.is_file():
                raise _BrokenError(f"{name} is missing")
            if file.stat().st_size != expected["bytes"]:
                raise _BrokenError(f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}")
            if _sha256(file) != expected["sha256"]:
                raise _BrokenError(f"{name} has changed since it was written")
        document = json.loads((path / STATE).read_text())
        state: dict[str, Any] = rebuild(document, _read_tensors(path))
        return state

    def _remove_partial(self) -> None:
        """Remove what a process that was killed while saving left under its temporary name."""
        if self.directory.is_dir():
            for path in self.directory.glob(".step-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Delete all but the last and the best; what is not complete is no use and goes too."""
        losses: dict[int, float | None] = {}
        for step in self.steps():
            try:
                losses[step] = _read_marker(self.path(step))["validation_loss"]
            except _BrokenError:
                shutil.rmtree(self.path(step), ignore_errors=True)
        kept = set(sorted(losses)[-self.keep :])
        evaluated = {step: loss for step, loss in losses.items() if loss is not None}
        if evaluated:
            kept.add(min(evaluated, key=lambda step: (evaluated[step], step)))
        for step in losses.keys() - kept:
            (self.path(step) / MARKER).unlink(missing_ok=True)  # first, so that half a deletion is no checkpoint
            shutil.rmtree(self.path(step), ignore_errors=True)


class _BrokenError(Exception):
    """A checkpoint that must not be used; the message says why."""


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        marker = json.loads((path / MARKER).read_text())
        return {"validation_loss": marker["validation_loss"], "files": dict(marker["files"])}
    except FileNotFoundError:
        raise _BrokenError("it was not finished") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _BrokenError(f"{MARKER} cannot be read: {error}") from error


def _write_tensors(tensors: dict[str, Tensor], directory: Path) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what we want
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(directory)), no_dist=True)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
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


def _measure_files(directory: Path) -> dict[str, dict[str, Any]]:
    return {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(directory.iterdir())}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
