"""The value of a metric to which steps and seconds are counted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fismo_cli.errors import UsageError
from fismo_cli.metrics import cost, higher_is_better
from fismo_cli.preset.schema_tune import METRICS

__all__ = ["Target", "parse_target"]


@dataclass(frozen=True)
class Target:
    """A value of a validation metric that is to be reached."""

    metric: str
    value: float

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics reach it."""
        value = metrics.get(self.metric)
        if value is None:
            return False
        return cost(self.metric, value) <= cost(self.metric, self.value)

    @property
    def text(self) -> str:
        """What `parse_target` makes it of."""
        return f"{self.metric}={self.value!r}"

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4g}"


def parse_target(text: str, task: str) -> Target:
    """`0.3` (of the loss) or `top1=0.97`.

    Raises:
        UsageError: if it is neither, or cannot be reached by the metric.
    """
    metric, equals, number = text.rpartition("=")
    metric = metric if equals else "loss"
    try:
        value = float(number)
    except ValueError:
        raise UsageError(f"--target {text}: must be a number, or METRIC=NUMBER such as loss=0.3") from None
    if metric not in METRICS[task]:
        raise UsageError(f"--target {text}: the metrics of {task} are {', '.join(METRICS[task])}")
    low, high = (1.0 if metric == "perplexity" else 0.0), (1.0 if higher_is_better(metric) else math.inf)
    if not low < value <= high or math.isinf(value):
        bounds = f"more than {low:g}" + (f" and at most {high:g}" if higher_is_better(metric) else "")
        raise UsageError(f"--target {text}: cannot be reached, or not be missed; a target for {metric} is {bounds}")
    return Target(metric, value)
