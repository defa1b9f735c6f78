"""Adapts the trust radius by what steps achieve against what they promise. Knows no presets, models or schedules.

The classical rule for trust regions (Conn, Gould, Toint, "Trust-Region Methods", 2000): where the loss falls as its
linear model promises, the radius may grow; where it falls much less, it must shrink.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["RadiusControl"]

GROW_ABOVE = 0.8
"""The radius grows if, at the schedule's full share, the loss would fall by more than this share of the promise."""

SHRINK_BELOW = 0.6
"""It shrinks if the loss falls by less than this share of the promise, in two measurements or more together."""

SHRINK_AT_ONCE = 0.35
"""It shrinks after a single measurement below this share."""

FACTOR = 2.0
"""What the radius is multiplied or divided by at first; each turn from growing to shrinking or back takes the root."""

LEAST_FACTOR = 2.0**0.25
"""Where that ends."""

MIN_SHARE = 0.2
"""It grows only while the schedule gives this share of the peak: at smaller steps the promise holds at any radius."""

LAST_SHARE = 0.5
"""In the schedule's decay nothing is measured below this share: small steps keep any promise there too."""

WAIT = 3
"""Steps from a change until it may grow again: a step that is too long shows only in those that follow it."""

MEMORY = 0.5
"""What a measurement still counts for at the next one; a change of the radius makes all of them forgotten."""


@dataclass
class RadiusControl:
    """What the radius is multiplied by, and when the next step is measured.

    After each change the next step is measured, then with gaps of 2, 4, ... up to `every` steps.

    Attributes:
        every: steps between measurements in the long run; None: the radius is never changed.
        scale: what the radius is multiplied by.
        factor: what the next change multiplies or divides it by.
        direction: of the last change: 1 growing, -1 shrinking, 0 none yet.
        next_step: the step to measure next, from 0.
        gap: steps from that one to the next.
        changed: the first step with the present radius.
        seen: steps measured with it.
        actual: by how much they lowered the loss, summed with weights that fade.
        predicted: by how much they promised to.
        last_share: of the schedule's peak, at the last step that was asked about.
        measured: how many steps have been measured in all.
    """

    every: int | None
    scale: float = 1.0
    factor: float = FACTOR
    direction: int = 0
    next_step: int = 0
    gap: int = 1
    changed: int = 0
    seen: int = 0
    actual: float = 0.0
    predicted: float = 0.0
    last_share: float = 0.0
    measured: int = 0

    def due(self, step: int, share: float) -> bool:
        """Whether the step (from 0) is to be measured, at this share of the schedule's peak."""
        falling, self.last_share = share < self.last_share, share
        return self.every is not None and step >= self.next_step and not (falling and share < LAST_SHARE)

    def update(self, step: int, share: float, actual: float, predicted: float) -> None:
        """Take in a measured step; the scale is then right for the next one.

        Args:
            step: its number, from 0.
            share: of the schedule's peak that it was taken at.
            actual: by how much it lowered the loss of its own samples; anything not finite makes the radius shrink.
            predicted: by how much the gradient on these samples said it would: minus its product with the change.
        """
        assert self.every is not None
        if predicted == 0:  # no step was taken, as where float16 overflowed
            self.next_step = step + 1
            return
        self.measured += 1
        self.seen += 1
        self.actual = MEMORY * self.actual + actual
        self.predicted = MEMORY * self.predicted + predicted
        ratio = self.actual / self.predicted if self.predicted > 0 and math.isfinite(self.actual) else -math.inf
        # To first order the part of the promise that is missed grows with the radius, so also with the schedule.
        at_full_share = 1 - (1 - ratio) / share if share > 0 else -math.inf
        if ratio < SHRINK_AT_ONCE or (ratio < SHRINK_BELOW and self.seen > 1):
            self._change(-1, step)
        elif at_full_share > GROW_ABOVE and share >= MIN_SHARE and step + 1 - self.changed >= WAIT:
            self._change(1, step)
        else:
            self.gap = min(2 * self.gap, self.every)
        self.next_step = step + self.gap

    def _change(self, direction: int, step: int) -> None:
        if self.direction == -direction:
            self.factor = max(math.sqrt(self.factor), LEAST_FACTOR)
        self.scale *= self.factor**direction
        self.direction, self.changed, self.gap, self.seen = direction, step + 1, 1, 0
        self.actual = self.predicted = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "every"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)
