"""From a PIL image to what the model sees: the evaluation transform and the training transform.

timm's and torchvision's building blocks. Random transforms draw from the global generators, which the caller seeds from
the sample's key.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import ImageDataConfig

__all__ = [
    "evaluation_side",
    "is_random",
    "match_channels",
    "normalise",
    "pad_width",
    "plain_transform",
    "resized",
    "training_transform",
]

Transform = Callable[[Image.Image], Tensor]

_INTERPOLATION = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
_PIL_MODE = {1: "L", 3: "RGB"}


class _ToChannels:
    """Convert to grey or colour."""

    def __init__(self, channels: int) -> None:
        self.mode = _PIL_MODE[channels]

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.mode == self.mode else image.convert(self.mode)


def match_channels(statistics: Sequence[float], channels: int) -> tuple[float, ...]:
    """Per-channel statistics for another number of channels: the mean of all, repeated."""
    if len(statistics) == channels:
        return tuple(float(value) for value in statistics)
    return (float(sum(statistics) / len(statistics)),) * channels


def is_random(data: ImageDataConfig) -> bool:
    """Whether training images differ from epoch to epoch."""
    return data.crop != "none" or data.horizontal_flip > 0 or data.auto_augment is not None or data.random_erasing > 0


def normalise(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (N, H, W, C) of uint8 as normalised float32 (N, C, H, W)."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    shape = (1, -1, 1, 1)
    return images.div_(255).sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def resized(data: ImageDataConfig, side: int) -> Callable[[Image.Image], Image.Image]:
    """What nothing random is in: channels, the shorter side scaled to `side`, the centre of `data.image_size`."""
    composed: Callable[[Image.Image], Image.Image] = transforms.Compose(
        [
            _ToChannels(data.channels),
            transforms.Resize(side, _INTERPOLATION[data.interpolation]),
            transforms.CenterCrop(data.image_size),
        ]
    )
    return composed


def evaluation_side(data: ImageDataConfig) -> int:
    """To what the shorter side is scaled for evaluation, rounded as timm does."""
    return math.floor(data.image_size / data.eval_crop_ratio)


def pad_width(data: ImageDataConfig) -> int:
    """Pixels that the crop `pad` adds on each side."""
    return max(1, data.image_size // 8)


def plain_transform(data: ImageDataConfig, side: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """`resized`, normalised: of evaluation, and of training without augmentation."""
    composed: Transform = transforms.Compose(
        [resized(data, side), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    return composed


def training_transform(data: ImageDataConfig, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The training transform: crop, flip, timm's policy, normalise, erase.

    Policies work on colour; grey images become colour for them and grey again afterwards.

    Raises:
        UsageError: timm does not know the policy.
    """
    size, interpolation = data.image_size, _INTERPOLATION[data.interpolation]
    steps: list[Callable[..., object]] = []
    if data.crop == "random-resized":
        steps.append(_ToChannels(data.channels))
        steps.append(transforms.RandomResizedCrop(size, scale=data.crop_scale, interpolation=interpolation))
    else:
        steps.append(resized(data, size))
    if data.crop == "pad":
        steps.append(transforms.RandomCrop(size, padding=pad_width(data)))
    if data.horizontal_flip > 0:
        steps.append(transforms.RandomHorizontalFlip(data.horizontal_flip))
    if data.auto_augment is not None:
        steps += [_ToChannels(3), _policy(data, mean), _ToChannels(data.channels)]
    steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
    if data.random_erasing > 0:
        from timm.data.random_erasing import RandomErasing

        erasing: Any = RandomErasing
        steps.append(erasing(data.random_erasing, mode="pixel", device="cpu"))
    composed: Transform = transforms.Compose(steps)
    return composed


_POLICY = re.compile(r"^(rand|augmix|original|originalr|v0|v0r|3a)(-[a-z]+[0-9.]*)*$")


def _policy(data: ImageDataConfig, mean: Sequence[float]) -> Any:
    from timm.data.auto_augment import (
        augment_and_mix_transform,
        auto_augment_transform,
        posterize,
        rand_augment_transform,
    )

    name = str(data.auto_augment)
    colour = match_channels(mean, 3)
    # The same parameters that timm's own transform factory passes.
    parameters = {
        "translate_const": int(data.image_size * 0.45),
        "img_mean": tuple(min(255, max(0, round(255 * value))) for value in colour),
        "interpolation": {"nearest": 0, "bilinear": 2, "bicubic": 3}[data.interpolation],
    }
    policy: Any
    try:
        if not _POLICY.match(name):
            raise ValueError("unknown form")
        if name.startswith("rand"):
            policy = rand_augment_transform(name, parameters)
            operations = policy.ops
        elif name.startswith("augmix"):
            policy = augment_and_mix_transform(name, parameters | {"translate_pct": 0.3})
            operations = policy.ops
        else:
            policy = auto_augment_transform(name, parameters)
            operations = [operation for choice in policy.policy for operation in choice]
    except (AssertionError, ValueError, KeyError) as error:
        raise UsageError(
            f"data.auto_augment: timm does not know the policy {name!r}; examples are rand-m9-mstd0.5-inc1, original, "
            "augmix-m5-w4"
        ) from error
    for operation in operations:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return policy


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's posterize, also for the 0 bits that its low magnitudes ask for: Pillow 13 refuses them, once black."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)
