"""Adapts the radius of the trust region by what steps achieve against what their gradients promise.

The classical rule for trust regions (Conn, Gould, Toint, "Trust-Region Methods", 2000): where the loss falls as its
linear model promises, the radius may grow; where it falls much less, it must shrink. What a step misses of its promise
grows with the radius, to first order: so what is missed says how far off the radius is, and in which direction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from fismo_core.optimizer import FISMO
from fismo_core.probe import StepProbe, StepReport

__all__ = ["AdaptiveRadius", "RadiusControl"]

TARGET = 0.3
"""The share of the promise that a step of a good radius misses, times the matrices' share of the promise."""

FACTOR = 4.0
"""A measurement asks for a radius at most this much longer or shorter."""

LEAST_GAIN = 0.125
"""The radius follows what a measurement asks for to the power of the gain, which each turn halves; here that ends."""

LONGEST_CHANGE = 0.1
"""Steps at the schedule's full share change the matrices by at most this share of their norm."""

LAST_SHARE = 0.5
"""In the schedule's decay nothing is measured below this share: small steps keep any promise there."""


@dataclass
class RadiusControl:
    """What the radius is multiplied by, and when the next step is measured: with gaps of 1, 2, 4, ... up to `every`.

    Attributes:
        every: steps between measurements in the long run; None: the radius is never changed.
        scale: what the radius is multiplied by.
        gain: the power of what the next change does.
        direction: of the last change: 1 growing, -1 shrinking, 0 none yet.
        next_step: the step to measure next, from 0.
        gap: steps from that one to the next.
        share: of the schedule's peak, at the last step that was asked about.
    """

    every: int | None
    scale: float = 1.0
    gain: float = 1.0
    direction: int = 0
    next_step: int = 0
    gap: int = 1
    share: float = 0.0

    def due(self, step: int, share: float) -> bool:
        """Whether the step (from 0) is to be measured, at this share of the schedule's peak."""
        falling, self.share = share < self.share, share
        return self.every is not None and step >= self.next_step and not (falling and share < LAST_SHARE)

    def update(self, step: int, report: StepReport) -> None:
        """Take in a measured step (from 0), the one last asked about; the scale is then right for the next one.

        A loss that is not finite makes the radius shrink.
        """
        assert self.every is not None
        # No step was taken, as where float16 overflowed; or the matrices have no part in it that a radius could change.
        if report.predicted == 0 or self.share == 0 or report.of_matrices <= 0 < report.predicted:
            self.next_step = step + 1
            return
        self.next_step, self.gap = step + self.gap, min(2 * self.gap, self.every)
        wanted = 1 / FACTOR
        if report.predicted > 0 and math.isfinite(report.actual):
            # Both what is missed and what is changed grow with the schedule's share.
            missed = 1 - report.actual / report.predicted
            missed *= min(report.of_matrices / report.predicted, 1.0) / self.share
            wanted = min(max(TARGET / missed, 1 / FACTOR), FACTOR) if missed > 0 else FACTOR
        direction = 1 if wanted > 1 else -1
        if direction == -self.direction:
            self.gain = max(self.gain / 2, LEAST_GAIN)
        self.direction = direction
        by = wanted**self.gain
        if report.change > 0:
            by = min(by, LONGEST_CHANGE * self.share / report.change)
        self.scale *= by

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "every"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)


class AdaptiveRadius:
    """Takes the steps of a FISMO whose radius finds its own length, in a loop of one's own.

    Example:
        >>> optimizer = FISMO(model, lr=0.02)
        >>> radius = AdaptiveRadius(optimizer, model, every=8)
        >>> for x, y in loader:
        ...     loss = radius.step(lambda: criterion(model(x), y))
        ...     scheduler.step()

    Args:
        optimizer: over the model's parameters; the learning rates of now are the schedule's peaks.
        model: in training mode when steps are taken.
        every: steps between measurements in the long run; a measured step evaluates its samples once more.
    """

    def __init__(self, optimizer: FISMO, model: nn.Module, every: int = 8) -> None:
        self.control = RadiusControl(every)
        self._optimizer, self._model, self._steps = optimizer, model, 0
        self._peak = self._rate()
        self._matrices = {parameter for group in self._groups() for parameter in group["params"]}
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step(self, loss: Callable[[], Tensor]) -> Tensor:
        """One step: gradients of a loss that is a function of the model, and the optimizer's step; returns the loss."""
        measured = self.control.due(self._steps, self._rate() / self._peak if self._peak else 0.0)
        probe = StepProbe(self._model, self._parameters) if measured else None
        self._optimizer.zero_grad()
        before = loss()
        before.backward()  # type: ignore[no-untyped-call]
        if probe is not None:
            probe.take_gradients()
        self._optimizer.step()
        if probe is not None:
            after = probe.loss_again(loss)
            self.control.update(self._steps, probe.report(before.detach(), after, self._matrices))
            for group in self._groups():
                group["radius_scale"] = self.control.scale
        self._steps += 1
        return before.detach()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for group in self._optimizer.param_groups if group["rule"] == "matrix"]

    def _rate(self) -> float:
        return max((float(group["lr"]) for group in self._groups()), default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {**self.control.state_dict(), "steps": self._steps, "peak": self._peak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._steps, self._peak = state["steps"], state["peak"]
        self.control.load_state_dict({key: value for key, value in state.items() if key not in ("steps", "peak")})
