"""Classes of image files by a trained model, which sees them as in evaluation."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fismo_cli import timm_models
from fismo_cli.errors import DataError, UsageError
from fismo_cli.preset.schema import ImageDataConfig
from fismo_cli.tasks.image_files import read_image
from fismo_cli.tasks.image_folder import image_files_below
from fismo_cli.tasks.image_transforms import Transform, evaluation_side, plain_transform
from fismo_cli.training.device import choose_device, explain_memory

__all__ = ["Prediction", "Predictor", "image_files"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        file: The image.
        classes: The likeliest classes, the likeliest one first, each with its probability.
        problem: Why there are none: the image cannot be read.
    """

    file: str
    classes: tuple[tuple[str, float], ...] = ()
    problem: str | None = None


def image_files(given: Sequence[str]) -> list[str]:
    """The files that are meant: files, and all images in folders.

    Raises:
        UsageError: One of them is not there, or has no image in it; all of them are named.
    """
    found: dict[str, None] = {}
    problems = []
    for name in given:
        own = list(_images(name))
        found.update(dict.fromkeys(own))
        if not own:
            there = "has no image in it" if Path(name).is_dir() else "there is no such file or folder"
            problems.append(f"{name}: {there}")
    if problems:
        raise UsageError.of(problems)
    return list(found)


def _images(name: str) -> Iterator[str]:
    path = Path(name)
    if path.is_dir():
        yield from image_files_below(path, Counter())
    elif path.is_file():
        yield name


class Predictor:
    """A trained model and the transform of its evaluation.

    Args:
        path: A run directory, its `model/`, or another folder that timm has written.
        device: Where to predict: auto, cpu, cuda, cuda:N or mps.

    Raises:
        UsageError: There is no complete image model, or the device is not there.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        network, record = timm_models.load_saved(path)
        self._device = choose_device(device, key="--device ")
        self._network = network.float().eval().to(self._device)
        seen = record["pretrained_cfg"]
        channels, height, width = seen["input_size"]
        if height != width or channels not in (1, 3):
            raise UsageError(f"{path}: the model sees images of {channels} x {height} x {width}; they must be square")
        self.classes = [str(name) for name in record.get("label_names") or range(record["num_classes"])]
        data = ImageDataConfig(
            source="image-folder",
            path=".",
            image_size=height,
            channels=channels,
            interpolation=seen["interpolation"],
            eval_crop_ratio=seen["crop_pct"],
        )
        self._transform: Transform = plain_transform(data, evaluation_side(data), seen["mean"], seen["std"])

    def predict(self, files: Sequence[str], *, top: int = 1, batch_size: int = 64) -> Iterator[Prediction]:
        """What the model says of each file, in their order; only a batch of them is in memory.

        Raises:
            FismoError: Memory runs out.
        """
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for first in range(0, len(files), batch_size):
                batch = files[first : first + batch_size]
                yield from self._of(batch, list(pool.map(self._read, batch)), top)

    def _read(self, file: str) -> Tensor | str:
        """The image as the model sees it, or why it cannot be read."""
        try:
            return self._transform(read_image(file))
        except DataError as error:
            return str(error)

    def _of(self, files: Sequence[str], images: Sequence[Tensor | str], top: int) -> Iterator[Prediction]:
        tensors = [image for image in images if isinstance(image, Tensor)]
        likeliest = iter(self._likeliest(torch.stack(tensors), top) if tensors else [])
        for file, image in zip(files, images, strict=True):
            if isinstance(image, str):
                yield Prediction(file, problem=image)
            else:
                yield Prediction(file, next(likeliest))

    @torch.no_grad()
    def _likeliest(self, images: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
        with explain_memory(self._device, lambda: f"with {len(images)} images at once; give a smaller --batch-size"):
            probabilities = functional.softmax(self._network(images.to(self._device)).float(), dim=1)
            best = probabilities.topk(min(top, len(self.classes)), dim=1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [tuple((self.classes[index], value) for index, value in zip(*row, strict=True)) for row in rows]
