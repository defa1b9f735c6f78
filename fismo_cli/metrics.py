"""Which way metrics go: the top-k accuracies are better when higher, all others when lower."""

__all__ = ["called", "cost", "higher_is_better", "shown"]


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of a metric is the better one."""
    return metric.startswith("top")


def cost(metric: str, value: float) -> float:
    """A value so that lower is better: itself, or its negative. Of a cost, the value again."""
    return -value if higher_is_better(metric) else value


def called(metric: str) -> str:
    """A metric's name for people."""
    return f"top-{metric.removeprefix('top')}" if metric.startswith("top") else metric.replace("_", " ")


def shown(metric: str, value: float) -> str:
    """A value for people: accuracies in per cent."""
    return f"{100 * value:.2f} %" if metric.startswith("top") else f"{value:.4f}"
