"""Parts of image data: in memory as far as possible, each sample a function of its key alone."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fismo_cli.preset.schema import ImageDataConfig
from fismo_cli.tasks.base import Batch, Part
from fismo_cli.tasks.image_collections import ArrayImages, Images
from fismo_cli.tasks.image_transforms import (
    Transform,
    evaluation_side,
    is_random,
    normalise,
    pad_width,
    plain_transform,
    resized,
    training_transform,
)
from fismo_cli.tasks.randomness import key_numbers, preserved_generators, seed_generators

__all__ = ["CropFlipPart", "LazyPart", "TensorPart", "build_part"]

_IN_MEMORY_BYTES = 1 << 30
"""Largest part, as float32, that is converted once and kept; beyond it images are converted when they are used."""


class TensorPart:
    """A part that is in memory, already as the model sees it: a batch is one `index_select`."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        indices = torch.tensor([index for _, index in keys])
        return {"images": self.images.index_select(0, indices), "labels": self.labels.index_select(0, indices)}


class LazyPart:
    """A part whose images are transformed when they are fetched.

    Args:
        images: The images.
        transform: From an image to a tensor.
        seed: Seeds a random transform, together with the epoch and the index; None where nothing is random.
    """

    def __init__(self, images: Images, transform: Transform, seed: int | None) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.labels = torch.from_numpy(images.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        if self.seed is None:
            images = [self.transform(self.images.image(index)) for _, index in keys]
        else:
            images = []
            with preserved_generators():
                for epoch, index in keys:
                    seed_generators(self.seed, epoch, index)
                    images.append(self.transform(self.images.image(index)))
        return {"images": torch.stack(images), "labels": self.labels[[index for _, index in keys]]}


class CropFlipPart:
    """A part that is in memory, with a random crop of the padded image and a random flip as its only augmentation.

    Much faster than transforming images one by one (by about 30 times for 32 x 32 pixels).

    Args:
        pixels: uint8 (N, H, W, C) of the size and channels that the model sees.
        labels: the label of each.
        padding: black pixels added on each side before the crop; 0 for no crop.
        flip: probability of a horizontal flip.
        mean: per-channel mean.
        std: per-channel deviation.
        seed: seeds the crops and flips, together with the epoch and the index.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: Tensor,
        *,
        padding: int,
        flip: float,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ) -> None:
        sides = (padding, padding)
        self.size = pixels.shape[1:3]
        self.padded = np.pad(pixels, ((0, 0), sides, sides, (0, 0))) if padding else pixels
        self.labels = labels
        self.padding = padding
        self.flip = flip
        self.mean, self.std = tuple(mean), tuple(std)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Batch:
        height, width = self.size
        numbers = key_numbers(self.seed, keys, 3)
        offsets = (numbers[:, :2] * (2 * self.padding + 1)).astype(int).tolist()
        flips = (numbers[:, 2] < self.flip).tolist()
        pixels = np.empty((len(keys), height, width, self.padded.shape[3]), np.uint8)
        for slot, ((_, index), (top, left), flipped) in enumerate(zip(keys, offsets, flips, strict=True)):
            window = self.padded[index, top : top + height, left : left + width]
            pixels[slot] = window[:, ::-1] if flipped else window
        return {"images": normalise(pixels, self.mean, self.std), "labels": self.labels[[index for _, index in keys]]}


def build_part(
    images: Images,
    data: ImageDataConfig,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    training_seed: int | None,
) -> Part:
    """The quickest part that does what `data` asks for.

    Args:
        images: The images.
        data: How they reach the model.
        mean: Per-channel mean of pixels in 0..1.
        std: Per-channel deviation.
        training_seed: The training seed for the training part; None for a part to evaluate on.

    Raises:
        UsageError: timm does not know the augmentation policy.
    """
    labels = torch.from_numpy(images.labels)
    numbers = math.prod((len(labels), data.channels, data.image_size, data.image_size))
    in_memory = isinstance(images, ArrayImages) and 4 * numbers <= _IN_MEMORY_BYTES
    if training_seed is None or not is_random(data):
        side = evaluation_side(data) if training_seed is None else data.image_size
        if not in_memory:
            return LazyPart(images, plain_transform(data, side, mean, std), None)
        return TensorPart(normalise(_resized_pixels(images, data, side), mean, std), labels)
    transform = training_transform(data, mean, std)  # built in any case: it checks the policy's name
    simple = data.crop != "random-resized" and data.auto_augment is None and data.random_erasing == 0
    if not (in_memory and simple):
        return LazyPart(images, transform, training_seed)
    return CropFlipPart(
        _resized_pixels(images, data, data.image_size),
        labels,
        padding=pad_width(data) if data.crop == "pad" else 0,
        flip=data.horizontal_flip,
        mean=mean,
        std=std,
        seed=training_seed,
    )


def _resized_pixels(images: Images, data: ImageDataConfig, side: int) -> NDArray[np.uint8]:
    """All images as uint8 (N, image_size, image_size, channels); the shorter side is scaled to `side`."""
    shape = (data.image_size, data.image_size, data.channels)
    if isinstance(images, ArrayImages) and side == data.image_size and images.pixels.shape[1:] == shape:
        return np.ascontiguousarray(images.pixels)
    transform = resized(data, side)
    pixels = np.stack([np.asarray(transform(images.image(index))) for index in range(len(images.labels))])
    return pixels.reshape(len(pixels), *shape)
