"""Which samples a step sees: the order depends on (seed, epoch) alone.

Nothing here draws from a global generator, so that a run resumed at any step sees the same samples.
"""

import hashlib
from collections.abc import Iterator, Sized

import torch
from torch import Tensor

from fismo_cli.training.schedule import steps_per_epoch
from fismo_cli.training.seeding import derive_seed

__all__ = ["Keys", "MicroBatchKeys", "epoch_order", "order_hash", "sequential_keys"]

Keys = list[tuple[int, int]]


def epoch_order(seed: int, epoch: int, samples: int) -> Tensor:
    """The order of all samples in an epoch: a permutation, int64, shape (samples,)."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(samples, generator=generator)


def order_hash(seed: int, samples: int) -> str:
    """SHA-256 of the first epoch's order: equal in two runs that see the same samples in the same order."""
    return hashlib.sha256(epoch_order(seed, 0, samples).numpy().tobytes()).hexdigest()


class MicroBatchKeys:
    """The keys of every micro-batch from one step to the end, in order; a `DataLoader` takes it as batch sampler.

    Args:
        seed: the run's seed.
        samples: size of the training part.
        batch_size: samples of one optimizer step.
        accumulate: micro-batches a batch is cut into.
        start: the first step.
        total: one past the last step.
        rank: which part of each micro-batch to give, of `parts` equal ones.
        parts: processes that share each micro-batch; must divide it.

    Raises:
        UsageError: if the training part is smaller than one batch.
    """

    def __init__(
        self,
        *,
        seed: int,
        samples: int,
        batch_size: int,
        accumulate: int,
        start: int,
        total: int,
        rank: int = 0,
        parts: int = 1,
    ) -> None:
        self.seed, self.samples, self.batch_size, self.start, self.total = seed, samples, batch_size, start, total
        self.accumulate, self.rank, self.parts = accumulate, rank, parts
        self.per_epoch = steps_per_epoch(samples, batch_size)

    def __len__(self) -> int:
        return (self.total - self.start) * self.accumulate

    def __iter__(self) -> Iterator[Keys]:
        micro_size = self.batch_size // self.accumulate
        share = micro_size // self.parts
        epoch, order = -1, torch.empty(0)
        for step in range(self.start, self.total):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = epoch_order(self.seed, epoch, self.samples)
            first = (step % self.per_epoch) * self.batch_size
            for begin in range(first, first + self.batch_size, micro_size):
                own = begin + self.rank * share
                yield [(epoch, index) for index in order[own : own + share].tolist()]


def sequential_keys(part: Sized, batch_size: int) -> list[Keys]:
    """Every sample of a part once, in order, the last batch shorter where it does not divide."""
    return [
        [(0, index) for index in range(begin, min(begin + batch_size, len(part)))]
        for begin in range(0, len(part), batch_size)
    ]
