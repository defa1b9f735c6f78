"""TensorBoard event files, where a preset asks for them; the package is an extra."""

from pathlib import Path
from typing import Any

from fismo_cli.errors import UsageError
from fismo_cli.reporting.scalars import Measured, scalars
from fismo_cli.training.events import Event

__all__ = ["TensorBoardSink", "require_tensorboard"]


def require_tensorboard() -> Any:
    """The writer's class.

    Raises:
        UsageError: if the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "logging.tensorboard=true needs the package tensorboard: pip install 'fismo[tensorboard]'"
        ) from error
    return SummaryWriter


class TensorBoardSink:
    """Writes losses, learning rates and metrics.

    Args:
        directory: where the event files go.
        resumed_from: the step a resumed run continues from; later points of the files that are there are hidden.
    """

    def __init__(self, directory: Path, resumed_from: int | None = None) -> None:
        purge = None if resumed_from is None else resumed_from + 1
        self._writer = require_tensorboard()(str(directory), purge_step=purge)

    def write(self, event: Event) -> None:
        """Write the numbers of an event that has some."""
        if isinstance(event, Measured):
            for name, value in scalars(event).items():
                self._writer.add_scalar(name, value, event.step)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
