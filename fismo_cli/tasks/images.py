"""Image classification: loss, mixing and metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import ImageDataConfig, ImagePreset
from fismo_cli.tasks.base import CONFUSION, Batch, Progress, Sums, Task
from fismo_cli.tasks.class_balance import class_weights
from fismo_cli.tasks.image_parts import build_part
from fismo_cli.tasks.image_sources import load_images
from fismo_cli.tasks.image_transforms import match_channels
from fismo_cli.tasks.randomness import preserved_generators, seed_generators

__all__ = ["ImageTask", "build_image_task"]

MOST_CONFUSION_CLASSES = 2000
"""Of more classes no confusion matrix is counted: it would take memory and time as their number squared."""


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """Classification with cross-entropy; training labels may be soft after mixing.

    Attributes:
        classes: names of the classes, by label.
        label_smoothing: of the training loss.
        mixers: torchvision's mixup and cutmix, as far as they are on.
        mix_probability: share of the training batches that are mixed.
        class_weights: of the training loss, by label; none: all classes weigh alike.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    mixers: tuple[Callable[..., tuple[Tensor, Tensor]], ...] = ()
    mix_probability: float = 1.0
    class_weights: tuple[float, ...] = ()

    @property
    def confusion_classes(self) -> Sequence[str]:
        """All classes, unless they are very many."""
        return self.classes if len(self.classes) <= MOST_CONFUSION_CLASSES else ()

    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy, with label smoothing, of hard (N,) or soft (N, classes) labels.

        A class's weight multiplies its share of every label. The mean is over samples, not over weights as torch's is:
        so that the mean over micro-batches and processes is that of the batch.
        """
        logits, labels = _logits(model, batch["images"]), batch["labels"]
        if self.class_weights:
            weight = _on_device(self.class_weights, logits.device)
            return functional.cross_entropy(
                logits, labels, weight, label_smoothing=self.label_smoothing, reduction="none"
            ).mean()
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Mix a training batch by mixup or cutmix (an even choice where both are on); labels become soft."""
        if not self.mixers:
            return batch
        key = torch.randint(2**31, (2,), generator=generator, device=generator.device).tolist()
        with preserved_generators():
            seed_generators(*key)
            if torch.rand(()).item() >= self.mix_probability:
                return batch
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            images, labels = mixer(batch["images"], batch["labels"])
        return {**batch, "images": images, "labels": labels}

    def measure(self, model: nn.Module, batch: Batch) -> Sums:
        """Sums of plain cross-entropy, of correct first guesses, of labels among the first five, and the count.

        And how often each class is taken for each, unless there are very many.
        """
        labels = batch["labels"]
        logits = _logits(model, batch["images"])
        exact = torch.float32 if logits.device.type == "mps" else torch.float64  # mps has no float64
        guesses = logits.argmax(dim=1)
        sums = {
            "loss": functional.cross_entropy(logits, labels, reduction="none").sum(dtype=exact),
            "top1": (guesses == labels).sum().to(exact),
            "count": torch.full((), len(labels), dtype=exact, device=logits.device),
        }
        if len(self.classes) > 5:
            sums["top5"] = (logits.topk(5, dim=1).indices == labels[:, None]).sum().to(exact)
        if count := len(self.confusion_classes):
            pairs = torch.bincount(labels * count + guesses, minlength=count * count)
            sums[CONFUSION] = pairs.reshape(count, count).to(exact)
        return sums

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """`loss` in nats; `top1` and (with more than five classes) `top5` as shares in 0..1."""
        return {name: value / sums["count"] for name, value in sums.items() if name != "count"}


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Class scores (N, classes) in float32.

    Raises:
        UsageError: The model gives something else, such as those of two heads: one of them would not be trained.
    """
    output = model(images)
    if isinstance(output, Tensor) and output.ndim == 2:
        return output.float()
    found = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"of type {type(output).__name__}"
    raise UsageError(
        f"model.args: with these the model gives an output {found} instead of one row of class scores an image; leave "
        "out what adds heads to it (such as aux_logits) or takes the classifier away"
    )


@lru_cache(maxsize=4)
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied once: a copy in every step would make the host wait for the device."""
    return torch.tensor(weights, device=device)


def _mixers(data: ImageDataConfig, classes: int) -> tuple[Callable[..., tuple[Tensor, Tensor]], ...]:
    from torchvision.transforms import v2

    mixers: list[Callable[..., tuple[Tensor, Tensor]]] = []
    if data.mixup_alpha > 0:
        mixers.append(v2.MixUp(alpha=data.mixup_alpha, num_classes=classes))
    if data.cutmix_alpha > 0:
        mixers.append(v2.CutMix(alpha=data.cutmix_alpha, num_classes=classes))
    return tuple(mixers)


def build_image_task(
    preset: ImagePreset,
    *,
    known: Sequence[str] | None = None,
    split: bool = True,
    progress: Progress = lambda done, total: None,
) -> ImageTask:
    """Open the images of a preset.

    Args:
        preset: The preset.
        known: The classes of a model that is to be measured on them, in its order; None for training.
        split: Cut off the parts that the source does not have.
        progress: Told how many files have been looked at.

    Raises:
        UsageError: The data cannot be used, or contradicts what the preset says of the model.
    """
    from fismo_cli.timm_models import model_statistics, size_arguments

    if preset.model.library != "timm":
        raise UsageError("model.library: image-classification takes its models from timm; write library: timm")
    data = preset.data
    size = size_arguments(preset.model, data.image_size)
    own_mean, own_std = model_statistics(preset.model) if data.mean is None or data.std is None else ((), ())
    mean = data.mean or match_channels(own_mean, data.channels)
    std = data.std or match_channels(own_std, data.channels)
    source = load_images(data, known=known, split=split, progress=progress)
    if len(source.classes) < 2:
        raise UsageError(f"data.source {data.source}: found {len(source.classes)} class; at least 2 are needed")
    model_args: dict[str, Any] = {"num_classes": len(source.classes), "in_chans": data.channels, **size}
    for key in ("num_classes", "in_chans"):
        if preset.model.args.get(key, model_args[key]) != model_args[key]:
            raise UsageError(
                f"model.args.{key} is {preset.model.args[key]}, but the data gives {model_args[key]}; leave it out"
            )
    parts = {
        name: build_part(images, data, mean, std, training_seed=preset.train.seed if name == "train" else None)
        for name, images in source.parts.items()
        if name != "train" or known is None or len(source.parts) == 1
    }
    labels = source.parts["train"].labels if "train" in source.parts else np.empty(0, np.int64)
    return ImageTask(
        train=parts.get("train") or next(iter(parts.values())),
        validation=parts.get("validation"),
        test=parts.get("test"),
        classes=source.classes,
        label_smoothing=data.label_smoothing,
        mixers=_mixers(data, len(source.classes)),
        mix_probability=data.mix_probability,
        class_weights=() if known is not None else class_weights(data.class_weights, labels, source.classes),
        balance=torch.from_numpy(labels) if data.balanced_sampling else None,
        model_args=model_args,
        description={
            "source": data.source,
            **source.record,
            "samples": {name: len(part.labels) for name, part in source.parts.items()},
            "classes": list(source.classes),
            "mean": list(mean),
            "std": list(std),
        },
        notes=source.notes,
    )
