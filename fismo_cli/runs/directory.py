"""The layout of a run on disk: created, locked, found again for `--resume`."""

import fcntl
import json
import math
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fismo_cli.errors import FismoError, UsageError
from fismo_cli.files import whole_file
from fismo_cli.own_optimizers import import_arguments
from fismo_cli.preset.loading import LoadedPreset, identity, load_preset, resolved_yaml
from fismo_cli.preset.nested import flat
from fismo_cli.preset.schema import CheckpointConfig, LoggingConfig, Preset, TrainConfig, TuneConfig

__all__ = [
    "RunDirectory",
    "check_name",
    "check_same_preset",
    "found_again",
    "json_safe",
    "link_latest",
    "read_json",
    "run_identity",
    "unfinished_runs",
    "write_json",
    "write_preset",
]

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _let_go() -> None:
    """In a forked child: close its copies of the locks, which would outlive a parent that is killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of one run is."""

    path: Path

    @property
    def preset(self) -> Path:
        """The resolved preset."""
        return self.path / "preset.yaml"

    @property
    def environment(self) -> Path:
        """Versions, hardware, git commit, command line, hashes."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object an event."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """A row for each step that was logged or evaluated, for spreadsheets."""
        return self.path / "results.csv"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The final model in its library's own format."""
        return self.path / "model"

    @property
    def weights(self) -> Path:
        """The final weights, flat."""
        return self.path / "model.safetensors"

    @property
    def summary(self) -> Path:
        """What tables and comparisons read."""
        return self.path / "summary.json"

    @property
    def classes(self) -> Path:
        """How the final model does on each class, where there are classes."""
        return self.path / "classes.json"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, where they were asked for."""
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        """What the run is known by in the trackers that are told of it, and how far they were told."""
        return self.path / "trackers.json"

    @property
    def resume_command(self) -> str:
        """The command that continues this run, as it can be typed."""
        return shlex.join(["fismo", "train", str(self.preset), "--resume", str(self.path), *import_arguments()])

    def status(self) -> str | None:
        """`completed`, `diverged` or `interrupted` as the summary says; None where there is none (killed, running)."""
        status = read_json(self.summary).get("status")
        return None if status is None else str(status)

    def completed_steps(self) -> int | None:
        """How many steps the run has done, if it has completed."""
        summary = read_json(self.summary)
        return summary.get("steps") if summary.get("status") == "completed" else None

    @classmethod
    def create(
        cls, runs_dir: Path, loaded: LoadedPreset, name: str | None = None, *, numbered: bool = True
    ) -> "RunDirectory":
        """Make a new directory with the resolved preset in it; unique also when two start in the same second.

        Args:
            runs_dir: under which it is made.
            loaded: the preset.
            name: of the run; None: by time, optimizer and seed.
            numbered: whether a name that is taken gets a number behind it.

        Raises:
            UsageError: if nothing can be made there, or the name is taken.
        """
        config = loaded.preset
        # timm/NAME and the like must not become folders.
        optimizer = config.optimizer.name.replace("/", "-")
        stem = name or f"{time.strftime('%Y%m%d-%H%M%S')}-{optimizer}-s{config.train.seed}"
        parent = runs_dir / loaded.name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                path = parent / (stem if number == 1 else f"{stem}-{number}")
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    if not numbered:
                        raise UsageError(f"--name {name}: {path} is there already; choose another name") from None
                    number += 1
        except OSError as error:
            raise UsageError(f"cannot make a run directory in {parent}: {error.strerror}") from error
        run = cls(path)
        run.write_preset(loaded)
        return run

    def write_preset(self, loaded: LoadedPreset) -> None:
        """Write the resolved preset, without which no command takes a directory for a run's."""
        write_preset(self.preset, loaded)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep others from continuing this run; the system frees the lock however this process ends.

        Raises:
            FismoError: if it is held already.
            UsageError: if nothing can be written there.
        """
        try:
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UsageError(f"cannot write to {self.path}: {error.strerror}") from error
        _held.add(descriptor)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FismoError(f"another process is training in {self.path}; wait for it or stop it") from None
            yield
        finally:
            if descriptor in _held:  # not so in a forked child that is leaving
                _held.remove(descriptor)
                os.close(descriptor)


LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

FREE: dict[str, Any] = {
    "logging": LoggingConfig(),
    "compare": {},
    "tune": TuneConfig(),
    "checkpoint": CheckpointConfig(),
}
"""Sections that change no result, so that a run may go on with others, as all runs have them for their identity."""

FREE_KEY = "log_every"
"""The same of the section train."""

LENGTH = ("train.steps", "train.epochs")


def check_name(name: str, runs_dir: Path, loaded: LoadedPreset, *, new: bool) -> None:
    """Make sure that a new run of a preset can have a name.

    Args:
        name: the name.
        runs_dir: under which the run would be made.
        loaded: its preset.
        new: whether there must be no run of this name.

    Raises:
        UsageError: if it cannot.
    """
    if not _NAME.fullmatch(name) or name == LATEST:
        raise UsageError(
            f"--name {name}: must be of letters, digits, dots, hyphens and underscores, begin with a letter or digit, "
            f"and not be {LATEST}"
        )
    if new and (runs_dir / loaded.name / name).exists():
        place = runs_dir / loaded.name / name
        raise UsageError(f"--name {name}: {place} is there already; choose another name, or continue it by --resume")


def link_latest(run: RunDirectory, runs_dir: Path) -> None:
    """Let `latest` lead to a run under a directory; a folder of this name stays, as it is where links cannot be made.

    A run that is somewhere else (it was moved, or is continued in another directory's stead) is not linked.
    """
    place, path = runs_dir.resolve(), run.path.resolve()
    link = place / LATEST
    if path.parent.parent != place or (link.exists() and not link.is_symlink()):
        return
    temporary = place / f".{LATEST}.{os.getpid()}"
    with suppress(OSError):
        temporary.symlink_to(path.relative_to(place), target_is_directory=True)
        temporary.replace(link)


def run_identity(preset: Preset) -> str:
    """By which runs of one preset are known: `identity` without what changes no result."""
    train = preset.train.model_copy(update={FREE_KEY: TrainConfig.model_fields[FREE_KEY].default})
    return identity(preset.model_copy(update={**FREE, "train": train}))


def unfinished_runs(runs_dir: Path, loaded: LoadedPreset) -> list[RunDirectory]:
    """Runs of the same resolved preset that neither completed nor diverged, the newest first."""
    wanted = run_identity(loaded.preset)
    found = []
    for file in (runs_dir / loaded.name).glob("*/preset.yaml"):
        run = RunDirectory(file.parent)
        if run.status() in (None, "interrupted") and _identity_of(run) == wanted:
            found.append((file.stat().st_mtime_ns, run.path.name, run))
    return [run for *_, run in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def check_same_preset(run: RunDirectory, loaded: LoadedPreset, *, data_is_known: bool = False) -> bool:
    """Make sure that a run was started from the same resolved preset, but for its length; returns whether that differs.

    Args:
        run: the run.
        loaded: the preset.
        data_is_known: the run knows its data by what it is, so that it may be in another place now.

    Raises:
        UsageError: if it is no run directory or another preset's, naming the keys that differ.
    """
    if not run.preset.is_file():
        raise UsageError(f"--resume {run.path}: not a run directory (it has no preset.yaml)")
    saved = load_preset(str(run.preset)).preset
    if run_identity(saved) == run_identity(loaded.preset):
        return False
    old, new = flat(saved.model_dump(mode="json")), flat(loaded.preset.model_dump(mode="json"))
    places = {"path", "name"} if saved.data.source == "huggingface" else {"path"}
    moved = {f"data.{key}" for key in places if isinstance(new.get(f"data.{key}"), str)} if data_is_known else set()
    moved |= {"data.cache_dir", "data.download"}
    differing = [
        f"{key} ({_as_yaml(old, key)} there, {_as_yaml(new, key)} here)"
        for key in sorted(old.keys() | new.keys())
        if not _is_free(key) and key not in (*moved, *LENGTH) and _as_yaml(old, key) != _as_yaml(new, key)
    ]
    if not differing:
        return any(_as_yaml(old, key) != _as_yaml(new, key) for key in LENGTH)
    raise UsageError(
        f"--resume {run.path}: its preset differs from this one in {', '.join(differing)}. To continue it unchanged: "
        f"{run.resume_command}"
    )


def found_again(recorded: Path, root: Path) -> Path:
    """Where a directory is now that was recorded as one under `root`, which may have been moved or copied since.

    It is looked for by the end of its path; without success it is where it was recorded.
    """
    parts = recorded.parts
    for start in range(1, len(parts) - 1):
        place = root.joinpath(*parts[start:])
        if place.is_dir():
            return place
    return recorded


def write_preset(path: Path, loaded: LoadedPreset) -> None:
    """Replace a preset's file as a whole; running it repeats the run."""
    with whole_file(path) as file:
        file.write_text(resolved_yaml(loaded), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of named values holds; nothing where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole."""
    with whole_file(path) as file:
        file.write_text(json.dumps(json_safe(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def json_safe(value: Any) -> Any:
    """The value with null for NaN and infinities, which are no JSON, and plain containers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


def _identity_of(run: RunDirectory) -> str | None:
    try:
        return run_identity(load_preset(str(run.preset)).preset)
    except FismoError:
        return None  # of another version, or half written: nothing to continue


def _is_free(key: str) -> bool:
    """Whether a key changes no result."""
    return key.partition(".")[0] in FREE or key == f"train.{FREE_KEY}"


def _as_yaml(values: dict[str, Any], key: str) -> str:
    """A value as the preset's file would have it: JSON is YAML, but for text, which needs no quotes here."""
    value = values.get(key, "absent")
    return value if isinstance(value, str) else json.dumps(value)
