"""What the trainer knows of a task: data parts, a training loss and metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["CONFUSION", "Batch", "Part", "Progress", "Sums", "Task"]

Progress = Callable[[int, int], None]
"""Told how many samples have been looked at before training, and of how many."""

Batch = dict[str, Tensor]
Sums = dict[str, Tensor]

CONFUSION = "confusion"
"""The one of the sums that is a matrix: samples by class (rows) and by the class that they are taken for (columns)."""


class Part(Protocol):
    """One part of the data (train, validation or test): a map-style data set that fetches whole batches.

    A key is `(epoch, index)`. What is returned depends on the key alone (augmentation is seeded from it), never on
    worker processes or on what was fetched before, so that a resumed run sees the same samples to the last bit.
    `DataLoader` calls `__getitems__` when it is there, with `collate_fn` returning its argument unchanged.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch: ...


@dataclass(frozen=True)
class Task:
    """Data, loss and metrics of one preset.

    Attributes:
        train: the training part.
        validation: the validation part, or None.
        test: the test part, or None.
        model_args: what the data fixes about the model (timm: num_classes, in_chans, img_size where the model takes
            it; transformers: vocab_size, special token ids).
        description: what the data is, for the run's record (source, samples a part, classes, files); `identity` is
            what it is known by, see `tasks.identity`.
        balance: the class of each training sample, where each class is to be drawn equally often; None: each sample is.
        notes: what a user should know of the data (what was left out, what looks wrong); one sentence each.
    """

    train: Part
    validation: Part | None
    test: Part | None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    balance: Tensor | None = None

    @property
    def confusion_classes(self) -> Sequence[str]:
        """The classes of the confusion matrix among the sums of `measure`; none where there is no such matrix."""
        return ()

    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch on the model's device: a scalar to call `backward` on."""
        raise NotImplementedError

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Batch-level augmentation of a training batch (mixup, cutmix); the generator is the batch's own."""
        return batch

    def measure(self, model: nn.Module, batch: Batch) -> Sums:
        """Sums over an evaluation batch, on the device, to be added up over batches."""
        raise NotImplementedError

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Metrics of a part from its sums, without the confusion matrix: `loss` (nats, always) and the task's own."""
        raise NotImplementedError
