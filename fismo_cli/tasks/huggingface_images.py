"""Images and labels of Hugging Face data sets."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fismo_cli.errors import DataError
from fismo_cli.preset.schema import ImageDataConfig
from fismo_cli.tasks.base import Progress
from fismo_cli.tasks.huggingface import library, load_splits, record, require_column
from fismo_cli.tasks.image_checks import check_looks
from fismo_cli.tasks.image_collections import ImageSource, Labels
from fismo_cli.tasks.image_files import displayed, look_at_all, opened, unreadable
from fismo_cli.tasks.image_sources import numbered_classes

__all__ = ["load_hub_images"]


@dataclass(frozen=True)
class HubImages:
    """Rows of a data set whose column of images is not decoded: `{"bytes": ..., "path": ...}`.

    Attributes:
        dataset: The data set, with this column alone.
        column: The column.
        labels: The label of each image.
        indices: The row of each.
        names: What each row's file was called, if that is known.
        sizes: The bytes of each row; -1 where they are not known.
    """

    dataset: Any
    column: str
    labels: Labels
    indices: NDArray[np.int64]
    names: Sequence[str]
    sizes: Labels

    def image(self, index: int) -> Image.Image:
        """Image `index`."""
        row = int(self.indices[index])
        try:
            with _open_row(self, row) as stream, opened(stream) as image:
                return displayed(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly everything for broken files
            called = _called(row, self.names[row])
            raise DataError(f"{called} of the data set: not a readable image ({unreadable(error)})") from error

    def key(self, index: int) -> bytes:
        """The row, the name and the size."""
        row = int(self.indices[index])
        return f"{row}\0{self.names[row]}\0{self.sizes[row]}".encode(errors="surrogateescape")

    def subset(self, indices: NDArray[np.int64]) -> "HubImages":
        """The images at these indices."""
        return replace(self, labels=self.labels[indices], indices=self.indices[indices])


def load_hub_images(data: ImageDataConfig, known: Sequence[str] | None, progress: Progress) -> ImageSource:
    """Images and labels of a data set.

    Args:
        data: Its name, splits and columns; `skip_unreadable`.
        known: The classes of a model that is measured, for which there need not be a training split.
        progress: Told how many images have been looked at.

    Raises:
        DataError: The data set cannot be loaded, lacks the columns, or has an image that cannot be read.
    """
    splits = load_splits(data, training=known is None)
    for dataset in splits.values():
        require_column(dataset, data.image_column, "image_column")
        require_column(dataset, data.label_column, "label_column")
    labels, classes = _labels(splits, data, known)
    parts: dict[str, HubImages] = {}
    openers: list[Callable[[], BinaryIO]] = []
    for part, dataset in splits.items():
        parts[part] = _undecoded(dataset, data.image_column, labels[part])
        openers += [partial(_open_row, parts[part], row) for row in range(len(dataset))]
    looks = look_at_all(openers, progress)
    names = [
        f"{_called(i, name)} of the {part} part"
        for part, images in parts.items()
        for i, name in enumerate(images.names)
    ]
    kept, notes = check_looks(names, looks, skip=data.skip_unreadable)
    first, whole = 0, np.array(kept, np.int64)
    for part, images in parts.items():
        inside = whole[(whole >= first) & (whole < first + len(images.labels))] - first
        first += len(images.labels)
        parts[part] = images.subset(inside)
    return ImageSource(dict(parts), classes, record(data, splits), tuple(notes))


def _called(row: int, name: str) -> str:
    return f"image {row} ({name})" if name else f"image {row}"


def _undecoded(dataset: Any, column: str, labels: Labels) -> HubImages:
    import pyarrow.compute as pc

    feature = dataset.features[column]
    try:
        images = dataset.select_columns([column]).cast_column(column, library().Image(decode=False))
        table = images.with_format("arrow")[:][column]
        paths, contents = pc.struct_field(table, "path").to_pylist(), pc.struct_field(table, "bytes")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(f"data.image_column: {column} is {feature}; a column of images is needed") from error
    sizes = pc.fill_null(pc.binary_length(contents), -1).to_numpy().astype(np.int64)
    for i in np.flatnonzero(sizes < 0).tolist():
        if paths[i] is not None and Path(paths[i]).is_file():
            sizes[i] = Path(paths[i]).stat().st_size
    names = tuple(PurePath(path).name if path else "" for path in paths)
    return HubImages(images, column, labels, np.arange(len(labels)), names, sizes)


def _open_row(images: HubImages, row: int) -> BinaryIO:
    """A row's image as it is stored; one in an archive or far away is fetched, as it will be in training."""
    value = images.dataset[row][images.column]
    if value is None or value["bytes"] is value["path"]:
        raise OSError("the row has no image")
    if value["bytes"] is None and not Path(value["path"]).is_file():
        from datasets.utils.file_utils import xopen

        return io.BytesIO(xopen(value["path"], "rb").read())
    return io.BytesIO(value["bytes"]) if value["bytes"] is not None else Path(value["path"]).open("rb")


def _labels(
    splits: dict[str, Any], data: ImageDataConfig, known: Sequence[str] | None
) -> tuple[dict[str, Labels], tuple[str, ...]]:
    """The labels of each part, and the names of their classes, by which parts agree."""
    datasets = library()
    column = data.label_column
    numbers: dict[str, Labels] = {}
    words: dict[str, list[str]] = {}
    for part, dataset in splits.items():
        feature = dataset.features[column]
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise DataError(f"data.label_column: {column} is {feature}; one class an image is needed")
        values = dataset.with_format("arrow")[:][column]
        if 0 < values.null_count < len(values):
            raise DataError(f"data.label_column: {values.null_count} images of the {part} part have no label")
        if values.null_count or len(values) == 0:
            numbers[part] = np.full(len(values), -1)
        elif isinstance(feature, datasets.ClassLabel) or np.issubdtype(
            np.dtype(feature.pa_type.to_pandas_dtype()), np.integer
        ):
            numbers[part] = values.to_numpy().astype(np.int64)
        elif feature.dtype.startswith("float"):  # whole numbers, as pandas writes them beside missing ones
            fractions = values.to_numpy().astype(np.float64)
            if not (np.isfinite(fractions) & (fractions % 1 == 0)).all():
                raise DataError(f"data.label_column: {column} is {feature.dtype}; whole numbers or words are needed")
            numbers[part] = fractions.astype(np.int64)
        else:
            words[part] = [str(value) for value in values.to_pylist()]
    if words:
        counted = {part for part, labels in numbers.items() if (labels >= 0).any()}
        if counted:
            raise DataError(f"data.label_column: {', '.join(words)} has words, {', '.join(counted)} has numbers")
        naming = words.values() if known is not None else [words.get("train", [])]
        classes = tuple(sorted({value for values in naming for value in values}))
        number = {name: i for i, name in enumerate(classes)}
        for part, values in words.items():
            unknown = sorted(set(values) - set(classes))
            if unknown:
                raise DataError(f"data.label_column: {part} has the class {unknown[0]}, which train does not have")
            numbers[part] = np.array([number[value] for value in values], np.int64)
        return numbers, classes
    named = {part: tuple(getattr(dataset.features[column], "names", ())) for part, dataset in splits.items()}
    classes = tuple(dict.fromkeys(name for names in named.values() for name in names))
    if not classes:
        what = f"data.label_column: {column}"
        return numbers, numbered_classes(numbers.values(), what, known)
    for part, names in named.items():
        if names and names != classes[: len(names)]:
            table = np.array([*(classes.index(name) for name in names), -1], np.int64)
            inside = (numbers[part] >= 0) & (numbers[part] < len(names))
            numbers[part] = np.where(inside, table[np.where(inside, numbers[part], -1)], numbers[part])
    return numbers, classes
