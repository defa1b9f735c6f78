"""Adapts the trust radius by what steps achieve against what they promise. Knows no presets, models or schedules.

The classical rule for trust regions (Conn, Gould, Toint, "Trust-Region Methods", 2000): where the loss falls as its
linear model promises, the radius may grow; where it falls much less, it must shrink. What is ours: how far (in
proportion to what is missed, with a gain that falls), and that a plateau at the start is no licence to grow.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["RadiusControl"]

GROW_ABOVE = 0.75
"""The radius grows if, at the schedule's full share, the loss would fall by more than this share of the promise."""

SHRINK_BELOW = 0.6
"""It shrinks if the loss falls by less than this share of the promise, in two measurements or more together."""

SHRINK_AT_ONCE = 0.35
"""It shrinks after a single measurement below this share."""

MISSED = 1 - (GROW_ABOVE + SHRINK_BELOW) / 2
"""The share of the promise that a good radius misses. To first order what is missed grows with the radius."""

LEAST_PART = 0.05
"""Only the matrices' part of the promise grows with the radius, so that where it is small, the radius grows by more to
miss as much. Below this share the others miss what is missed, which is nothing against a longer radius."""

FACTOR = 4.0
"""A change multiplies or divides the radius by this at most, to the power of the gain."""

LEAST_GAIN = 0.25
"""Each turn from growing to shrinking or back halves the gain; here that ends."""

WAIT = 3
"""Steps from a change until it may grow again: a step that is too long shows only in those that follow it."""

MEMORY = 0.5
"""What a measurement still counts for at the next one; a change of the radius makes all of them forgotten."""

MIN_SHARE = 0.09
"""It grows only while the schedule gives this share of the peak: at smaller steps the promise holds at any radius."""

LAST_GROWTH = 0.95
"""In the schedule's decay it does not grow below this share."""

LAST_SHARE = 0.5
"""In the schedule's decay nothing is measured below this share: small steps keep any promise there too."""

FALL = 0.05
"""The plateau at the start ends when the loss has fallen by this share of the first one."""

LONGEST_CHANGE = 0.05
"""On the plateau, where any radius keeps its small promises, and where the matrices hardly count in the promise, it
grows only as far as a step at full share changes the matrices by this share of their norm."""

LEAST_ROOM = 1.1
"""It is left alone there, if it could grow by less than this factor."""

MOVED = 0.2
"""Once the matrices have moved by this share and the plateau goes on, a radius over twice too large is cut at once."""

HELD_GAIN = 0.125
"""Each measurement in which it is held back there halves the gain too, down to this: what is good after a plateau is
not far off, and while a network leaves it, steps keep more of their promise than they will later."""


@dataclass
class RadiusControl:
    """What the radius is multiplied by, and when the next step is measured.

    After each change the next step is measured, then with gaps of 2, 4, ... up to `every` steps.

    Attributes:
        every: steps between measurements in the long run; None: the radius is never changed.
        scale: what the radius is multiplied by.
        gain: the power of what the next change does.
        direction: of the last change: 1 growing, -1 shrinking, 0 none yet.
        next_step: the step to measure next, from 0.
        gap: steps from that one to the next.
        changed: the first step with the present radius.
        seen: steps measured with it.
        actual: by how much they lowered the loss, summed with weights that fade.
        predicted: by how much they promised to.
        of_matrices: what the change of the matrices promised of that.
        share: of the schedule's peak, at the last step that was asked about.
        falling: whether the schedule had fallen there.
        measured: how many steps have been measured in all.
        first_loss: of the first step measured.
        loss: of the last ones, with weights that fade.
        plateau: whether the loss is still that of the start.
        moved: how far the matrices have moved, as a share of their norm, the steps between measurements included.
        last_step: the last one measured.
    """

    every: int | None
    scale: float = 1.0
    gain: float = 1.0
    direction: int = 0
    next_step: int = 0
    gap: int = 1
    changed: int = 0
    seen: int = 0
    actual: float = 0.0
    predicted: float = 0.0
    of_matrices: float = 0.0
    share: float = 0.0
    falling: bool = False
    measured: int = 0
    first_loss: float = 0.0
    loss: float = 0.0
    plateau: bool = True
    moved: float = 0.0
    last_step: int = -1

    def due(self, step: int, share: float) -> bool:
        """Whether the step (from 0) is to be measured, at this share of the schedule's peak."""
        self.falling, self.share = share < self.share, share
        return self.every is not None and step >= self.next_step and not (self.falling and share < LAST_SHARE)

    def update(
        self, step: int, *, actual: float, predicted: float, of_matrices: float, loss: float, change: float
    ) -> None:
        """Take in a measured step, the one last asked about; the scale is then right for the next one.

        Args:
            step: its number, from 0.
            actual: by how much it lowered the loss of its own samples; anything not finite makes the radius shrink.
            predicted: by how much the gradient on these samples said it would: minus its product with the change.
            of_matrices: how much of that by the change of the matrices; the other parameters have no radius.
            loss: of its samples, before it.
            change: the norm of what it did to the matrices, as a share of their norm.
        """
        assert self.every is not None
        if predicted == 0:  # no step was taken, as where float16 overflowed
            self.next_step = step + 1
            return
        self._follow_loss(step, loss, change)
        self.measured += 1
        self.seen += 1
        self.actual = MEMORY * self.actual + actual
        self.predicted = MEMORY * self.predicted + predicted
        self.of_matrices = MEMORY * self.of_matrices + of_matrices
        usable = self.predicted > 0 and math.isfinite(self.actual)
        ratio = self.actual / self.predicted if usable else -math.inf
        part = min(self.of_matrices / self.predicted, 1.0) if usable else 1.0
        hardly_used = 0 < part < LEAST_PART and ratio > SHRINK_BELOW
        # What a step at full share would do, if what is missed, and what is changed, grow with the share.
        ratio_at_peak = 1 - (1 - ratio) / self.share if self.share > 0 else -math.inf
        change_at_peak = change / self.share if self.share > 0 else math.inf
        room = LONGEST_CHANGE / change_at_peak if (self.plateau or hardly_used) and change_at_peak > 0 else math.inf
        if self.plateau and room < 0.5 and self.moved > MOVED:
            self._multiply(room, step)
        elif ratio < SHRINK_AT_ONCE or (ratio < SHRINK_BELOW and self.seen > 1):
            self._multiply(self._factor(ratio), step)
        elif (hardly_used or ratio_at_peak > GROW_ABOVE) and self._may_grow(step) and room > LEAST_ROOM:
            self._multiply(min(self._factor(1.0 if hardly_used else ratio_at_peak, part), room), step)
        else:
            if room <= LEAST_ROOM:
                self._lower_gain(HELD_GAIN)
            self.gap = min(2 * self.gap, self.every)
        self.next_step = step + self.gap

    def _follow_loss(self, step: int, loss: float, change: float) -> None:
        if self.measured == 0:
            self.first_loss = self.loss = loss
        self.loss += MEMORY * (loss - self.loss)
        self.plateau = self.plateau and not self.loss < self.first_loss - FALL * abs(self.first_loss)
        self.moved += change * (step - self.last_step)
        self.last_step = step

    def _may_grow(self, step: int) -> bool:
        decayed = self.falling and self.share < LAST_GROWTH
        return self.share >= MIN_SHARE and not decayed and step + 1 - self.changed >= WAIT and self.of_matrices > 0

    def _factor(self, ratio: float, part: float = 1.0) -> float:
        """What takes a radius that keeps this share of the promise, of which it makes this part, to a good one."""
        by = MISSED / (1 - ratio) if ratio < 1 else math.inf
        if by > 1:
            by = 1 + (by - 1) / part
        return float(min(max(by, 1 / FACTOR), FACTOR) ** self.gain)

    def _lower_gain(self, least: float) -> None:
        self.gain = min(self.gain, max(self.gain / 2, least))

    def _multiply(self, by: float, step: int) -> None:
        direction = 1 if by > 1 else -1
        if self.direction == -direction:
            self._lower_gain(LEAST_GAIN)
        self.scale *= by
        self.direction, self.changed, self.gap, self.seen = direction, step + 1, 1, 0
        self.actual = self.predicted = self.of_matrices = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "every"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name, value in state.items():
            setattr(self, name, value)
