"""Random numbers of the data: splits, and augmentation that depends on a sample's key alone.

The training process's own generators are never disturbed.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from fismo_cli.errors import DataError

__all__ = ["held_out_count", "key_numbers", "preserved_generators", "seed_generators", "split_stratified"]


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global CPU generators of Python, numpy and torch on the way out.

    timm draws from `random` and `numpy.random`, torchvision from torch's default generator; none of them takes a
    generator of its own.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.default_generator.set_state(torch_state)


def seed_generators(*key: int) -> None:
    """Seed the three global CPU generators from a key of non-negative integers; use inside `preserved_generators`."""
    python_seed, numpy_seed, torch_seed = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(python_seed)
    np.random.seed(numpy_seed)
    # Not torch.manual_seed: it would reseed the accelerators as well, which nothing here draws from.
    torch.default_generator.manual_seed(torch_seed)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key_numbers(seed: int, keys: Sequence[tuple[int, int]], count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of shape (len(keys), count), each row a function of the seed and its key alone.

    Positions of one splitmix64 stream per epoch (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
    generators"): the stream can be entered anywhere, so a whole batch is drawn at once, without a generator per sample.
    """
    starts = {
        epoch: np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
        for epoch in {key[0] for key in keys}
    }
    start = np.array([starts[epoch] for epoch, _ in keys], np.uint64)[:, None]
    index = np.array([index for _, index in keys], np.uint64)[:, None]
    position = index * np.uint64(count) + np.arange(1, count + 1).astype(np.uint64)
    mixed: NDArray[np.uint64] = start + position * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    numbers: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def held_out_count(total: int, fraction: float, key: str) -> int:
    """How many of `total` a fraction holds out: at least one, unless the fraction is 0.

    Raises:
        DataError: The fraction is not 0 but too small to hold out anything.
    """
    count = round(total * fraction)
    if fraction > 0 and count == 0:
        raise DataError(f"{key}: {fraction:g} of {total} leaves nothing to hold out; give 0 or a larger fraction")
    return count


def split_stratified(labels: NDArray[np.int64], count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices that are kept and `count` indices that are held out, with every label's share about the same.

    Each sample gets its quantile within its label, in random order, and the lowest quantiles are held out. A label
    with a single sample (quantile one half) stays in the kept part unless more than half is held out.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, first, sizes = np.unique(labels[by_label], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(first, sizes)
    quantile = np.empty(len(labels))
    quantile[by_label] = (rank + 0.5) / np.repeat(sizes, sizes)
    order = shuffled[np.argsort(quantile[shuffled], kind="stable")]
    return np.sort(order[count:]), np.sort(order[:count])
