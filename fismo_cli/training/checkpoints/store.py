"""Checkpoints on disk: written whole or not at all, verified when read, the last few and the best kept.

A checkpoint is a directory written by `torch.distributed.checkpoint` in its safetensors format, a file a process, plus
`state.json` for everything that is no tensor and `complete.json`, written last, with the size and SHA-256 of every
file. Nothing in it is ever unpickled. This module knows nothing of models, optimizers or what the state means.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fismo_cli.errors import FismoError
from fismo_cli.files import whole_directory, whole_file
from fismo_cli.training.checkpoints.state_tree import flatten, merge, rebuild
from fismo_cli.training.checkpoints.tensor_files import measure_files, read_tensors, sha256, write_tensors
from fismo_cli.training.distributed.world import World

__all__ = ["CheckpointStore", "Loaded", "final_weights", "write_weights"]

Value = TypeVar("Value")

STATE, MARKER = "state.json", "complete.json"
STEP_DIRECTORY = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read from disk, and what was wrong with the newer ones that were passed over."""

    step: int
    state: dict[str, Any]
    problems: list[str]


def final_weights(checkpoint: Loaded) -> dict[str, Tensor]:
    """A model's weights, their average where there is one: what would have been its final ones at that step."""
    weights: dict[str, Tensor] = checkpoint.state["average"] or checkpoint.state["model"]
    return weights


def write_weights(checkpoint: Loaded, path: Path) -> None:
    """Write a model's weights, their average where there is one, to one safetensors file, whole or not at all.

    Args:
        checkpoint: of a run.
        path: the file; its folder is made.
    """
    from safetensors.torch import save_file

    weights = final_weights(checkpoint)
    with whole_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)


class CheckpointStore:
    """The checkpoints of one run. The processes of one world at a time may write.

    Args:
        directory: where they are; created by the first `save`.
        keep: how many of the last are kept, besides the one with the lowest validation loss.
        longer_from: the newest until this step is kept, too: from it the run can be made longer.
    """

    def __init__(self, directory: Path, *, keep: int = 3, longer_from: int = 0) -> None:
        self.directory, self.keep, self._longer_from = directory, keep, longer_from

    def steps(self) -> list[int]:
        """Steps of which there is a directory, complete or not, ascending."""
        if not self.directory.is_dir():
            return []
        found = (STEP_DIRECTORY.fullmatch(path.name) for path in self.directory.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.directory / f"step-{step}"

    def save(
        self, step: int, state: dict[str, Any], *, validation_loss: float | None = None, world: World = World()
    ) -> Path:
        """Write a checkpoint, then delete those that need not be kept; all processes call it together.

        Args:
            step: the step it belongs to; a broken checkpoint of the same step is replaced.
            state: what `load` gives back (see `state_tree.flatten` for what it may hold). Of what several processes
                have, it is the first one's; of tensors that FSDP2 has spread, each has its rows.
            validation_loss: by which the best is chosen; None where this step was not evaluated.
            world: the processes, each of which writes what it has.

        Raises:
            FismoError: if it cannot be written; earlier checkpoints are intact and nothing partial is left.
        """
        target = self.path(step)
        tensors, document = flatten(state)
        documents = world.gather(document)
        with ExitStack() as stack:
            begun = self._attempt(step, world, lambda: self._begin(target, stack) if world.main else None)
            partial = world.from_main(begun)
            assert partial is not None
            self._attempt(step, world, lambda: _check_there(partial))
            failure = _write(tensors, partial, world)
            own = self._attempt(step, world, lambda: _measure(partial, world, failure))
            files = {name: measured for part in world.gather(own) for name, measured in part.items()}
            marker = {"step": step, "validation_loss": validation_loss, "files": files}
            self._attempt(
                step, world, lambda: _finish(partial, target, merge(documents), marker, stack) if world.main else None
            )
        if world.main:
            self._prune()
        return target

    def _begin(self, target: Path, stack: ExitStack) -> Path:
        self._remove_partial()
        return stack.enter_context(whole_directory(target))

    def _attempt(self, step: int, world: World, work: Callable[[], Value]) -> Value:
        """Do a part of saving a checkpoint, which fails in all processes if it fails in one."""

        def attempt() -> Value:
            try:
                return work()
            except (OSError, FismoError) as error:
                raise FismoError(
                    f"the checkpoint of step {step} could not be written to {self.directory}: "
                    f"{getattr(error, 'strerror', None) or error}. Earlier checkpoints are intact"
                ) from error

        return world.together(attempt)

    def best(self) -> int | None:
        """The step of the complete checkpoint with the lowest validation loss; None if there is none with one."""
        return _best(self._losses())

    def newest(self) -> int | None:
        """The last step of which there is a complete checkpoint; None if there is none."""
        return max(self._losses(), default=None)

    def complete_steps(self) -> list[int]:
        """Steps of which there is a complete checkpoint."""
        return list(self._losses())

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints after a step, from which the run goes on in another way."""
        for later in self.steps():
            if later > step:
                self._delete(later)

    def _delete(self, step: int) -> None:
        (self.path(step) / MARKER).unlink(missing_ok=True)  # first, so that half a deletion is no checkpoint
        shutil.rmtree(self.path(step), ignore_errors=True)

    def _losses(self) -> dict[int, float | None]:
        """The validation losses of the complete checkpoints, by step."""
        losses: dict[int, float | None] = {}
        for step in self.steps():
            with suppress(_BrokenError):
                losses[step] = _read_marker(self.path(step))["validation_loss"]
        return losses

    def load(self, wanted: int | None = None) -> Loaded | None:
        """The newest checkpoint that is whole, with a sentence for each newer one that is not; None if there is none.

        Args:
            wanted: the step of the only one that will do.

        Raises:
            FismoError: if there are checkpoints but every one is broken.
        """
        problems: list[str] = []
        for step in reversed(self.steps() if wanted is None else [wanted]):
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
            if sha256(file) != expected["sha256"]:
                raise _BrokenError(f"{name} has changed since it was written")
        document = json.loads((path / STATE).read_text(encoding="utf-8"))
        state: dict[str, Any] = rebuild(document, read_tensors(path))
        return state

    def _remove_partial(self) -> None:
        """Remove what a process that was killed while saving left under its temporary name."""
        if self.directory.is_dir():
            for path in self.directory.glob(".step-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Delete all but the last and the best; what is not complete is no use and goes too."""
        losses = self._losses()
        for step in set(self.steps()) - losses.keys():
            shutil.rmtree(self.path(step), ignore_errors=True)
        longer = max((step for step in losses if step <= self._longer_from), default=None)
        kept = {*sorted(losses)[-self.keep :], longer, _best(losses)}
        for step in losses.keys() - kept:
            self._delete(step)


def _best(losses: Mapping[int, float | None]) -> int | None:
    """The step with the lowest loss, of several the first; None if none has one."""
    known = [(loss, step) for step, loss in losses.items() if loss is not None]
    return min(known)[1] if known else None


class _BrokenError(Exception):
    """A checkpoint that must not be used; the message says why."""


def _check_there(partial: Path) -> None:
    if not partial.is_dir():
        raise FismoError("it is not there; all hosts must see the directory of a run")


def _write(tensors: dict[str, Tensor], partial: Path, world: World) -> Exception | None:
    """Write this process's share; returns what all processes have failed of.

    Whatever else one of several processes may raise is not caught: the others are in the middle of writing together,
    and notice that it has gone.
    """
    try:
        write_tensors(tensors, partial, world)
    except FismoError as error:
        return error
    except OSError as error:
        if world.size > 1:
            raise
        return error
    return None


def _measure(partial: Path, world: World, failure: Exception | None) -> dict[str, dict[str, Any]]:
    """What this process has written."""
    if failure is not None:
        raise failure
    return measure_files(partial, world)


def _finish(partial: Path, target: Path, document: Any, marker: dict[str, Any], stack: ExitStack) -> None:
    """Write what is no tensor, give the directory its name by closing the stack, and mark it complete."""
    state = partial / STATE
    state.write_text(json.dumps(document), encoding="utf-8")
    marker["files"][STATE] = {"bytes": state.stat().st_size, "sha256": sha256(state)}
    stack.close()
    with whole_file(target / MARKER) as file:
        file.write_text(json.dumps(marker, indent=1), encoding="utf-8")


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return {"validation_loss": marker["validation_loss"], "files": dict(marker["files"])}
    except FileNotFoundError:
        raise _BrokenError("it was not finished") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _BrokenError(f"{MARKER} cannot be read: {error}") from error
