"""Whether a comparison can decide anything, known from its numbers of seeds and baselines alone."""

__all__ = ["LEVEL", "seeds_needed", "underpowered"]

LEVEL = 0.05
"""Level of all tests; intervals have the coverage 1 - LEVEL."""


def underpowered(seeds: int, baselines: int) -> bool:
    """Whether no outcome could be significant after the correction: the smallest p is 2^(1 - seeds)."""
    return baselines * 2.0 ** (1 - seeds) > LEVEL


def seeds_needed(baselines: int) -> int:
    """The fewest seeds with which an outcome can be significant."""
    seeds = 1
    while underpowered(seeds, baselines):
        seeds += 1
    return seeds
