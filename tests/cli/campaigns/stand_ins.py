"""What takes the place of processes in tests of many runs."""

from pathlib import Path
from typing import Any, ClassVar

from fismo_cli.campaigns.executor import Failure
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.runs.directory import RunDirectory

__all__ = ["RunStandIn"]


class RunStandIn:
    """In place of a `RunProcess`: ends after some polls, with what `outcome` gives or writes."""

    started: ClassVar[list[LoadedPreset]] = []
    polls = 1
    at_step = 0

    def __init__(self, loaded: LoadedPreset, *, runs_dir: Path, **rest: Any) -> None:
        self.loaded, self.runs_dir, self.left, self.running = loaded, runs_dir, self.polls, True
        self.started.append(loaded)

    def poll(self) -> RunDirectory | Failure | None:
        self.left -= 1
        if self.left > 0:
            return None
        self.running = False
        return self.outcome()

    def outcome(self) -> RunDirectory | Failure:
        raise AssertionError("to be given by a subclass")

    def step(self) -> int:
        return self.at_step

    def validations(self) -> list[Any]:
        return []

    def stop(self) -> None:
        self.running = False

    kill = wait = stop
