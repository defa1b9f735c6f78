"""Which samples a step sees: the order depends on (seed, epoch) and, where classes are balanced, the labels alone.

Nothing here draws from a global generator, so that a run resumed at any step sees the same samples.
"""

import hashlib
import math
from collections.abc import Iterator, Sized

import torch
from torch import Tensor

from fismo_cli.training.schedule import steps_per_epoch
from fismo_cli.training.seeding import derive_seed

__all__ = ["Keys", "MicroBatchKeys", "balanced_order", "epoch_order", "order_hash", "sequential_keys"]

SECOND_TIME = 1 << 32
"""More than there are epochs. A sample that comes again in an epoch has this added to the epoch of its key, so that it
is augmented in another way."""

Keys = list[tuple[int, int]]


def epoch_order(seed: int, epoch: int, samples: int) -> Tensor:
    """The order of all samples in an epoch: a permutation, int64, shape (samples,)."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(samples, generator=generator)


def balanced_order(seed: int, epoch: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    """An epoch in which each class comes equally often (up to one sample), in random order.

    Of a class that is rare, all samples come once before any comes again; of one that is frequent, some do not come:
    others in every epoch.

    Args:
        seed: the run's.
        epoch: its number.
        labels: of all samples, int64, shape (samples,).

    Returns:
        Samples, and how often each has come before in this epoch: int64, shape (samples,).
    """
    generator = torch.Generator().manual_seed(derive_seed("balanced order", seed, epoch))
    classes = torch.bincount(labels).nonzero().squeeze(1)
    quotas = torch.full((len(classes),), len(labels) // len(classes))
    quotas[torch.randperm(len(classes), generator=generator)[: len(labels) % len(classes)]] += 1
    drawn, before = [], []
    for label, quota in zip(classes, quotas.tolist(), strict=True):
        members = (labels == label).nonzero().squeeze(1)
        rounds = math.ceil(quota / len(members))
        turns = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
        drawn.append(torch.cat(turns)[:quota])
        before.append(torch.arange(quota) // len(members))
    order = torch.randperm(len(labels), generator=generator)
    return torch.cat(drawn)[order], torch.cat(before)[order]


def order_hash(seed: int, samples: int, balance: Tensor | None = None) -> str:
    """SHA-256 of the first epoch's order: equal in two runs that see the same samples in the same order."""
    order = epoch_order(seed, 0, samples) if balance is None else balanced_order(seed, 0, balance)[0]
    return hashlib.sha256(order.numpy().tobytes()).hexdigest()


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
        balance: the class of each sample, where each class is to come equally often.

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
        balance: Tensor | None = None,
    ) -> None:
        self.seed, self.samples, self.batch_size, self.start, self.total = seed, samples, batch_size, start, total
        self.accumulate, self.rank, self.parts = accumulate, rank, parts
        self.balance = balance
        self.per_epoch = steps_per_epoch(samples, batch_size)

    def __len__(self) -> int:
        return (self.total - self.start) * self.accumulate

    def __iter__(self) -> Iterator[Keys]:
        micro_size = self.batch_size // self.accumulate
        share = micro_size // self.parts
        epoch, order, before = -1, torch.empty(0), torch.empty(0)
        for step in range(self.start, self.total):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order, before = self._order(epoch)
            first = (step % self.per_epoch) * self.batch_size
            for begin in range(first, first + self.batch_size, micro_size):
                own = begin + self.rank * share
                samples, times = (values[own : own + share].tolist() for values in (order, before))
                yield [(epoch + n * SECOND_TIME, index) for index, n in zip(samples, times, strict=True)]

    def _order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The samples of an epoch, and how often each has come before in it."""
        if self.balance is not None:
            return balanced_order(self.seed, epoch, self.balance)
        return epoch_order(self.seed, epoch, self.samples), torch.zeros(self.samples, dtype=torch.int64)


def sequential_keys(part: Sized, batch_size: int) -> list[Keys]:
    """Every sample of a part once, in order, the last batch shorter where it does not divide."""
    return [
        [(0, index) for index in range(begin, min(begin + batch_size, len(part)))]
        for begin in range(0, len(part), batch_size)
    ]
