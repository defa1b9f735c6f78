"""Labelled images, in memory, in files or behind another library's indexing: what all sources end as."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fismo_cli.errors import DataError
from fismo_cli.tasks.identity import Group, group
from fismo_cli.tasks.image_files import displayed, read_image, unreadable

__all__ = ["ArrayImages", "FileImages", "ImageFile", "ImageSource", "Images", "IndexedImages", "Labels", "identity_of"]

Labels = NDArray[np.int64]


class Images(Protocol):
    """Labelled images; `image(i)` reads one."""

    @property
    def labels(self) -> Labels:
        """The label of each image."""
        ...

    def image(self, index: int) -> Image.Image:
        """Image `index`, with 8 bits a channel."""
        ...

    def key(self, index: int) -> bytes:
        """What image `index` is known by, found without decoding it."""
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

    def key(self, index: int) -> bytes:
        """The position and the pixels."""
        return bytes(index.to_bytes(8, "little") + self.pixels[index].tobytes())

    def subset(self, indices: NDArray[np.int64]) -> "ArrayImages":
        """The images at these indices."""
        return ArrayImages(self.pixels[indices], self.labels[indices])


class ImageFile(NamedTuple):
    """A file, its bytes and the last of them."""

    path: str
    size: int
    tail: bytes


@dataclass(frozen=True)
class FileImages:
    """Images that are read from files when they are needed; `root` is the folder of their part."""

    files: tuple[ImageFile, ...]
    labels: Labels
    root: str

    def image(self, index: int) -> Image.Image:
        """Image `index`."""
        return read_image(self.files[index].path)

    def key(self, index: int) -> bytes:
        """The name in the part's folder, the size and the last bytes."""
        path, size, tail = self.files[index]
        return f"{PurePath(path).relative_to(self.root).as_posix()}\0{size}\0".encode(errors="surrogateescape") + tail

    def subset(self, indices: NDArray[np.int64]) -> "FileImages":
        """The images at these indices."""
        return FileImages(tuple(self.files[i] for i in indices.tolist()), self.labels[indices], self.root)


@dataclass(frozen=True)
class IndexedImages:
    """Images behind another library's indexing: `dataset[i][key]` is a PIL image.

    Attributes:
        dataset: The library's data set.
        column: Where in a sample the image is.
        labels: The label of each.
        indices: The sample that each is.
        names: What each is known by, of all samples of the data set; None where that is the position alone.
    """

    dataset: Any
    column: int | str
    labels: Labels
    indices: NDArray[np.int64]
    names: Sequence[str] | None = None

    def image(self, index: int) -> Image.Image:
        """Image `index`."""
        position = int(self.indices[index])
        try:
            image = self.dataset[position][self.column]
            if isinstance(image, Image.Image):
                return displayed(image)
        except MemoryError:
            raise
        except Exception as error:  # whatever a data set's own code raises for a file that it cannot read
            raise DataError(f"image {position} of the data set cannot be read ({unreadable(error)})") from error
        raise DataError(f"sample {position}, {self.column!r}: expected an image, got {type(image).__name__}")

    def key(self, index: int) -> bytes:
        """The position, and the name where there is one."""
        position = int(self.indices[index])
        return f"{position}\0{self.names[position] if self.names else ''}".encode("utf-8", errors="surrogateescape")

    def subset(self, indices: NDArray[np.int64]) -> "IndexedImages":
        """The images at these indices."""
        return IndexedImages(self.dataset, self.column, self.labels[indices], self.indices[indices], self.names)


@dataclass(frozen=True)
class ImageSource:
    """The parts that a source has, the names of its classes, what to record about it, and notes for the user."""

    parts: dict[str, Images]
    classes: tuple[str, ...]
    record: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def identity_of(images: Images, classes: Sequence[str]) -> dict[str, Group]:
    """What these images are known by, class by class."""
    order = np.argsort(images.labels, kind="stable")
    labels, first = np.unique(images.labels[order], return_index=True)
    parts = np.split(order, first[1:])
    return {
        classes[label]: group(images.key(index) for index in part.tolist())
        for label, part in zip(labels.tolist(), parts, strict=True)
    }
