"""What an instrument is told of a step, in the order of the methods."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fismo_cli.tasks.base import Batch
from fismo_cli.training.events import Event

__all__ = ["Instrument", "Step"]


@dataclass(frozen=True)
class Step:
    """A step that is about to be taken.

    Attributes:
        number: from 1.
        lr_factor: share of the peak learning rate.
        samples: of the whole batch, in all processes.
        micro_batches: of this process.
        measure: measure in this step, whatever an interval says.
    """

    number: int
    lr_factor: float
    samples: int
    micro_batches: int
    measure: bool


class Instrument:
    """Looks at steps; what a subclass does not override does nothing. If a method fails, training goes on without."""

    what = ""
    """What is measured, as the subject of a sentence."""

    def before_step(self, step: Step) -> None:
        """Nothing of the step is done."""

    def before_micro_batch(self, batch: Batch) -> None:
        """The gradient of a micro-batch comes next."""

    def around_micro_batch(self) -> AbstractContextManager[Any]:
        """Around its forward and backward pass; errors of its own must not leave it."""
        return nullcontext()

    def after_backward(self) -> None:
        """The batch's gradient is there, multiplied by the loss scale of float16, and not clipped."""

    def needs_unscaled(self) -> bool:
        """Whether `before_update` needs a gradient that is not multiplied."""
        return False

    def before_update(self) -> None:
        """The gradient is not clipped yet."""

    def after_update(self, loss: Tensor) -> None:
        """The weights have changed; the loss is that of before, of this process's samples."""

    def take_events(self) -> list[Event]:
        """What it has to say of the last step, once."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
