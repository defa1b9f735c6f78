"""Where images come from: every source ends as labelled collections for train, validation and test.

Knows nothing of transforms, models or training. Pixels stay as they are stored: uint8 arrays or files.
"""

import importlib.util
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import ImageDataConfig
from fismo_cli.tasks.randomness import held_out_count, split_stratified
from fismo_cli.tasks.splits import split_names

__all__ = ["ArrayImages", "ImageSource", "Images", "IndexedImages", "load_images", "numbered_classes"]

Labels = NDArray[np.int64]

_NPZ_REMEDY = "write it with numpy.savez(path, x_train=..., y_train=...), images as uint8 and labels as whole numbers"


class Images(Protocol):
    """Labelled images; `image(i)` reads one."""

    @property
    def labels(self) -> Labels:
        """The label of each image."""
        ...

    def image(self, index: int) -> Image.Image:
        """Image `index`."""
        ...

    def subset(self, indices: NDArray[np.int64]) -> "Images":
        """The images at these indices."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: uint8 of shape (N, H, W, C), C one of 1, 3, 4."""

    pixels: NDArray[np.uint8]
    labels: Labels

    def image(self, index: int) -> Image.Image:
        """Image `index`."""
        pixels = self.pixels[index]
        return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)

    def subset(self, indices: NDArray[np.int64]) -> "ArrayImages":
        """The images at these indices."""
        return ArrayImages(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True)
class FileImages:
    """Images that are read from files when they are needed."""

    paths: tuple[str, ...]
    labels: Labels

    def image(self, index: int) -> Image.Image:
        """Image `index`."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image.load()
                return image
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise UsageError(f"{path}: not a readable image ({error}); remove or replace the file") from error

    def subset(self, indices: NDArray[np.int64]) -> "FileImages":
        """The images at these indices."""
        return FileImages(tuple(self.paths[i] for i in indices.tolist()), self.labels[indices])


@dataclass(frozen=True)
class IndexedImages:
    """Images behind another library's indexing: `dataset[i][key]` is a PIL image."""

    dataset: Any
    key: int | str
    labels: Labels
    indices: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        """Image `index`."""
        position = int(self.indices[index])
        try:
            image = self.dataset[position][self.key]
        except (OSError, UnidentifiedImageError, SyntaxError) as error:
            raise UsageError(f"image {position} of the data set cannot be read ({error})") from error
        if not isinstance(image, Image.Image):
            raise UsageError(f"sample {position}, {self.key!r}: expected an image, got {type(image).__name__}")
        return image

    def subset(self, indices: NDArray[np.int64]) -> "IndexedImages":
        """The images at these indices."""
        return IndexedImages(self.dataset, self.key, self.labels[indices], self.indices[indices])


@dataclass(frozen=True)
class ImageSource:
    """The parts that a source has (train always), the names of its classes, and what to record about it."""

    parts: dict[str, Images]
    classes: tuple[str, ...]
    record: dict[str, Any] = field(default_factory=dict)


def load_images(data: ImageDataConfig) -> ImageSource:
    """Open the source that `data` names and cut off the parts that it does not have itself.

    The test part is `data.test_fraction` of all, the validation part then `data.validation_fraction` of what is left
    for training, both stratified by label and drawn from `data.split_seed` alone. A fraction of 0 makes no part.

    Raises:
        UsageError: The source is missing, empty or not of the form that it must have.
    """
    match data.source:
        case "digits":
            source = _load_digits()
        case "npz":
            source = _load_npz(Path(str(data.path)).expanduser())
        case "image-folder":
            source = _load_image_folder(Path(str(data.path)).expanduser(), data.splits)
        case "torchvision":
            from fismo_cli.tasks.torchvision_images import load_torchvision

            source = load_torchvision(data)
        case "huggingface":
            from fismo_cli.tasks.huggingface import load_hub_images

            source = load_hub_images(data)
    _check_labels(source, f"data.source {data.source}")
    parts = dict(source.parts)
    for name, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if name not in parts:
            count = held_out_count(len(parts["train"].labels), fraction, f"data.{name}_fraction")
            if count > 0:
                kept, held_out = split_stratified(parts["train"].labels, count, data.split_seed)
                parts["train"], parts[name] = parts["train"].subset(kept), parts["train"].subset(held_out)
    for name, part in parts.items():
        if len(part.labels) == 0:
            raise UsageError(f"data.source {data.source}: the {name} part is empty")
    return ImageSource(parts, source.classes, source.record)


def _check_labels(source: ImageSource, what: str) -> None:
    """Refuse labels that are no class, and those that training never shows to the model."""
    trained = np.unique(source.parts["train"].labels)
    for name, part in source.parts.items():
        found = np.unique(part.labels)
        outside = found[(found < 0) | (found >= len(source.classes))]
        if len(outside):
            raise UsageError(
                f"{what}: label {outside[0]} of the {name} part is out of range; labels must be 0 to "
                f"{len(source.classes) - 1}"
            )
        unknown = np.setdiff1d(found, trained)
        if len(unknown):
            label, class_name = int(unknown[0]), source.classes[int(unknown[0])]
            called = f"{label}" if class_name == str(label) else f"{label} ({class_name})"
            raise UsageError(f"{what}: the {name} part has the label {called}, which the training part does not have")


def numbered_classes(parts: Iterable[Images], what: str) -> tuple[str, ...]:
    """Names of classes that have none: their numbers.

    Raises:
        UsageError: The largest label is not below the number of images, so that labels cannot count classes from 0.
    """
    labels = [part.labels for part in parts]
    largest, images = max(int(part.max(initial=-1)) for part in labels), sum(len(part) for part in labels)
    if largest >= max(images, 1):
        raise UsageError(
            f"{what} has the label {largest} but only {images} images; labels must count the classes from 0"
        )
    return tuple(str(i) for i in range(largest + 1))


def _load_digits() -> ImageSource:
    images, labels = read_digits()
    # scikit-learn keeps the 4-bit pixels as floats from 0 to 16.
    pixels = np.round(images * (255 / 16)).astype(np.uint8)[..., None]
    return ImageSource({"train": ArrayImages(pixels, labels)}, tuple(str(i) for i in range(10)))


def read_digits() -> tuple[NDArray[np.float64], Labels]:
    """scikit-learn's digits, (1797, 8, 8) and (1797,), read from its file: importing it takes more than a second."""
    package = importlib.util.find_spec("sklearn")
    file = Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz" if package else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)


def _load_npz(path: Path) -> ImageSource:
    if not path.is_file():
        raise UsageError(f"data.path: {path} is not a file; an .npz file with x_train and y_train is needed")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError(f"{path}: holds one bare array; {_NPZ_REMEDY}")
        with archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError, EOFError, RuntimeError) as error:
        raise UsageError(f"{path}: not a readable .npz file of plain arrays; {_NPZ_REMEDY}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise UsageError(f"{path}: holds files that are no arrays; {_NPZ_REMEDY}")
    suffix = "_train" if "x_train" in arrays or "y_train" in arrays else ""
    parts: dict[str, Images] = {"train": _npz_part(path, arrays, suffix)}
    for name, other in (("validation", "_val"), ("validation", "_validation"), ("test", "_test")):
        if suffix and (f"x{other}" in arrays or f"y{other}" in arrays):
            parts[name] = _npz_part(path, arrays, other)
    return ImageSource(parts, numbered_classes(parts.values(), str(path)))


def _npz_part(path: Path, arrays: dict[str, NDArray[Any]], suffix: str) -> ArrayImages:
    x_key, y_key = f"x{suffix}", f"y{suffix}"
    for key in (x_key, y_key):
        if key not in arrays:
            found = ", ".join(sorted(arrays)) or "nothing"
            raise UsageError(f"{path}: {key} is missing (x_train and y_train, or x and y, are needed); it has {found}")
    pixels, labels = arrays[x_key], arrays[y_key]
    if pixels.dtype != np.uint8:
        raise UsageError(f"{path}: {x_key} is {pixels.dtype}; images must be uint8, 0 to 255")
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4)):
        raise UsageError(
            f"{path}: {x_key} has shape {pixels.shape}; images must be N x H x W or N x H x W x C with C of 1, 3 or 4"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:  # CIFAR's labels often come as a column
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(pixels) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(
            f"{path}: {y_key} has shape {labels.shape} and type {labels.dtype}; {len(pixels)} whole numbers are "
            f"needed, one a row of {x_key}"
        )
    if len(pixels) == 0:
        raise UsageError(f"{path}: {x_key} is empty")
    return ArrayImages(pixels if pixels.ndim == 4 else pixels[..., None], labels.astype(np.int64))


def _load_image_folder(root: Path, names: dict[Any, str]) -> ImageSource:
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise UsageError(f"data.path: {root} is not a folder")
    folders: dict[str, Path] = {}
    for part, usual in (("train", ("train",)), ("validation", ("validation", "val", "valid")), ("test", ("test",))):
        if part in names and not (root / names[part]).is_dir():
            raise UsageError(f"data.splits.{part}: {root / names[part]} is not a folder")
        for name in split_names(part, names, usual):
            if (root / name).is_dir():
                folders[part] = root / name
                break
    if "train" not in folders:
        if folders:
            raise UsageError(f"{root}: has {', '.join(sorted(folders))} but no train folder")
        folders = {"train": root}
    parts: dict[str, Images] = {}
    classes: list[str] = []
    for part, folder in folders.items():
        try:
            found = ImageFolder(str(folder), allow_empty=True)
        except FileNotFoundError as error:
            raise UsageError(f"{folder}: needs one folder a class, with its images inside") from error
        classes = classes or found.classes
        unknown = sorted(set(found.classes) - set(classes))
        if unknown:
            raise UsageError(f"{folder / unknown[0]}: the training part has no class {unknown[0]}")
        # A part may lack classes, so its own numbering cannot be used.
        number = {index: classes.index(name) for name, index in found.class_to_idx.items()}
        if not found.samples:
            raise UsageError(f"{folder}: no images in its class folders ({', '.join(found.classes[:5])} ...)")
        parts[part] = FileImages(
            tuple(path for path, _ in found.samples), np.array([number[label] for _, label in found.samples], np.int64)
        )
    return ImageSource(parts, tuple(classes), {"path": str(root)})
