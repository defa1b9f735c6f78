"""TensorBoard event files, where a preset asks for them; the package is an extra."""

from pathlib import Path
from typing import Any

from fismo_cli.errors import UsageError
from fismo_cli.training.events import BatchGrown, Evaluated, Event, NoiseMeasured, StepLogged

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
        match event:
            case StepLogged():
                self._writer.add_scalar("train/loss", event.loss, event.step)
                self._writer.add_scalar("train/samples_per_second", event.samples_per_second, event.step)
                for name, value in event.lr.items():
                    self._writer.add_scalar(f"lr/{name}", value, event.step)
                if event.gradient_norm is not None:
                    self._writer.add_scalar("train/gradient_norm", event.gradient_norm, event.step)
            case NoiseMeasured():
                for name, scale in (
                    ("noise_scale", event.noise_scale),
                    ("fisher_noise_scale", event.fisher_noise_scale),
                ):
                    if scale is not None:
                        self._writer.add_scalar(f"train/{name}", scale, event.step)
            case BatchGrown():
                self._writer.add_scalar("train/batch_size", event.batch_size, event.step)
            case Evaluated():
                for name, value in event.metrics.items():
                    self._writer.add_scalar(f"{event.split}/{name}", value, event.step)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
