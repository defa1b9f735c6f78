"""Adapts FISMO's trust radius by what steps achieve: around `fismo_core.RadiusControl`."""

from typing import Any

import torch
from torch import Tensor

from fismo_cli.tasks.base import Batch
from fismo_cli.training.distributed.world import World
from fismo_cli.training.instruments.base import Instrument, Step
from fismo_cli.training.loss import TrainingLoss
from fismo_core import RadiusControl, StepProbe

__all__ = ["RadiusInstrument"]


class RadiusInstrument(Instrument):
    """Sets the radius of every step, and measures what some of them do to the loss of their own samples.

    Args:
        control: the rule by which the radius is adapted.
        optimizer: whose matrices have a radius.
        loss: of the model.
        world: the processes that train together.
        sharded: whether each of them has a part of every weight.
    """

    what = "what a step achieves (optimizer.adapt_radius)"

    def __init__(
        self,
        control: RadiusControl,
        optimizer: torch.optim.Optimizer,
        loss: TrainingLoss,
        *,
        world: World,
        sharded: bool,
    ) -> None:
        self.control = control
        self._optimizer, self._loss, self._world, self._sharded = optimizer, loss, world, sharded
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.matrices = {parameter for group in self._groups() for parameter in group["params"]}
        self._probe: StepProbe | None = None
        self._batches: list[Batch] = []
        self._step = 0

    def before_step(self, step: Step) -> None:
        """Set the radius; keep the weights, if the step is measured."""
        for group in self._groups():
            group["radius_scale"] = self.control.scale
        self._step, self._probe, self._batches = step.number - 1, None, []
        if self.control.due(self._step, step.lr_factor):
            self._probe = StepProbe(self._loss.model, self._parameters)

    def before_micro_batch(self, batch: Batch) -> None:
        """Keep the batch."""
        if self._probe is not None:
            self._batches.append(batch)

    def needs_unscaled(self) -> bool:
        """In a measured step."""
        return self._probe is not None

    def before_update(self) -> None:
        """Keep the gradient."""
        if self._probe is not None:
            self._probe.take_gradients()

    def after_update(self, loss: Tensor) -> None:
        """See what the step did to the loss of its own samples, and adapt the radius of the next one."""
        probe, self._probe = self._probe, None
        if probe is None:
            return

        def mean_loss() -> Tensor:
            return torch.stack([self._loss(batch) for batch in self._batches]).mean()

        def look() -> Tensor:
            return probe.loss_again(mean_loss)

        after = self._world.together(look) if self._sharded else look()
        self._batches = []
        # All ranks must come to the same: where each has seen its own rows, and where last digits differ between hosts.
        before, after = (self._world.mean(value.float()) for value in (loss, after))
        sums = self._world.mean(probe.sums(self.matrices))
        if self._sharded:
            sums = sums * self._world.size
        self.control.update(self._step, probe.report(before, after, self.matrices, sums))

    def _groups(self) -> list[dict[str, Any]]:
        """Those of FISMO's matrices; others once the optimizer has loaded a state."""
        return [group for group in self._optimizer.param_groups if "radius_scale" in group]

    def state_dict(self) -> dict[str, Any]:
        """That of the rule."""
        return self.control.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.control.load_state_dict(state)
