"""Reporting: sinks that read a run's events, and tables. Nothing here changes what a run does."""

from typing import Protocol

from fismo_cli.training.events import Event

__all__ = ["Sink"]


class Sink(Protocol):
    """Something that is told every event of a run, in order, and closed at the end whatever happens."""

    def write(self, event: Event) -> None:
        """Take in one event."""

    def close(self) -> None:
        """Release what is held."""
