"""When a batch should grow: the norm test. Pure; knows numbers only."""

from fismo_cli.preset.schema import BatchGrowthConfig
from fismo_cli.training.events import NoiseMeasured

__all__ = ["grown"]


def grown(growth: int, noise: NoiseMeasured, batch_size: int, config: BatchGrowthConfig) -> int:
    """How many batches the next step should take: twice as many where the norm test fails, up to the largest allowed.

    The test is that the variance of the batch's mean gradient is at most theta^2 of its squared mean:
    tr(S) / B <= theta^2 |G|^2. Source: Byrd, Chin, Nocedal, Wu, "Sample size selection in optimization methods for
    machine learning" (2012), Mathematical Programming 134. A signal that cannot be told from zero fails it.

    Args:
        growth: how many a step takes now.
        noise: the last measurement.
        batch_size: samples of one of them.
        config: the test's theta, and the largest batch.
    """
    passed = noise.signal > 0 and noise.noise / (growth * batch_size) <= config.theta**2 * noise.signal
    return growth if passed else min(2 * growth, config.max_batch_size // batch_size)
