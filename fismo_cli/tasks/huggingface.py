"""Hugging Face data sets, from the hub or from a local folder. The extra `hub` is needed here and nowhere else.

Knows nothing of transforms, tokenizers or models.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fismo_cli.errors import UsageError
from fismo_cli.hub import reachable
from fismo_cli.preset.schema import ImageDataConfig, TextDataConfig
from fismo_cli.tasks.identity import Group, group
from fismo_cli.tasks.image_collections import Images, ImageSource, IndexedImages
from fismo_cli.tasks.image_sources import numbered_classes
from fismo_cli.tasks.splits import split_names
from fismo_cli.tasks.text_sources import CHUNK_BYTES, Documents, TextSource

__all__ = ["ColumnDocuments", "load_hub_images", "load_hub_text"]

_USUAL = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UsageError("data.source huggingface needs the extra hub: pip install 'fismo[hub]'") from error
    return datasets


def _load_splits(data: ImageDataConfig | TextDataConfig) -> dict[str, Any]:
    """The splits of a data set by part: from a `save_to_disk` folder, any folder, a builder and its folder, the hub."""
    datasets = _library()
    name = str(data.name)
    folder = Path(name)
    if data.path is not None and not isinstance(data.path, str):
        raise UsageError("data.path: with source huggingface it must be one folder")
    if data.path is not None and not Path(data.path).exists():
        raise UsageError(f"data.path: {data.path} does not exist")
    with reachable(
        f"the data set {name}",
        "data.name",
        "give a folder that has it as data.name, or run this once with a network",
        local=data.path is not None or folder.is_dir(),
    ):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(name)
        elif data.path is not None:
            loaded = datasets.load_dataset(name, data.config_name, data_dir=data.path)
        else:
            loaded = datasets.load_dataset(name, data.config_name)
    found = {str(split): part for split, part in loaded.items()} if isinstance(loaded, dict) else {"train": loaded}
    splits: dict[str, Any] = {}
    for part, usual in _USUAL.items():
        wanted = data.splits.get(part)  # type: ignore[call-overload]
        if wanted is not None and wanted not in found:
            raise UsageError(f"data.splits.{part}: {name} has no split {wanted}; it has {', '.join(found)}")
        for split in split_names(part, data.splits, usual):  # type: ignore[arg-type]
            if split in found:
                splits[part] = found[split]
                break
    if "train" not in splits:
        raise UsageError(f"data.splits.train: {name} has no split train; name one of {', '.join(found)}")
    return splits


def _require_column(dataset: Any, column: str, key: str) -> None:
    if column not in dataset.column_names:
        raise UsageError(f"data.{key}: no column {column}; the data set has {', '.join(dataset.column_names)}")


def load_hub_images(data: ImageDataConfig) -> ImageSource:
    """Images and labels of a data set.

    Raises:
        UsageError: The data set cannot be loaded, or lacks the columns.
    """
    datasets = _library()
    splits = _load_splits(data)
    classes: tuple[str, ...] | None = None
    parts: dict[str, Images] = {}
    for part, original in splits.items():
        _require_column(original, data.image_column, "image_column")
        _require_column(original, data.label_column, "label_column")
        dataset = original
        if not isinstance(dataset.features[data.image_column], datasets.Image):
            dataset = dataset.cast_column(data.image_column, datasets.Image())
        feature = dataset.features[data.label_column]
        raw = dataset.with_format("numpy", columns=[data.label_column])[:][data.label_column]
        if isinstance(feature, datasets.ClassLabel):
            names = tuple(feature.names)
            labels = np.asarray(raw, np.int64)
        elif np.issubdtype(np.asarray(raw).dtype, np.integer):
            labels = np.asarray(raw, np.int64)
            whole = IndexedImages(dataset, data.image_column, labels, np.arange(len(labels)))
            names = numbered_classes([whole], f"data.label_column: the {part} part")
        else:
            strings = [str(value) for value in raw]
            names = classes or tuple(sorted(set(strings)))
            number = {name: i for i, name in enumerate(names)}
            unknown = sorted(set(strings) - set(names))
            if unknown:
                raise UsageError(f"data.label_column: {part} has the class {unknown[0]}, which train does not have")
            labels = np.array([number[value] for value in strings], np.int64)
        classes = classes or names
        parts[part] = IndexedImages(dataset, data.image_column, labels, np.arange(len(labels)))
    return ImageSource(parts, classes or (), _record(data, splits))


@dataclass(frozen=True)
class ColumnDocuments:
    """Documents that are rows of a data set's text column; `sha256` is of all rows, see `_read_column`."""

    dataset: Any
    column: str
    indices: NDArray[np.int64]
    sha256: str

    def __len__(self) -> int:
        return len(self.indices)

    def fingerprint(self) -> str:
        """A hash of the column, and of which rows."""
        return group((self.sha256, self.indices.tobytes()))["sha256"]

    def chunks(self, *, utf8: bool = False) -> Iterator[tuple[bytes, bool]]:
        """The rows' text, long ones in pieces; it is UTF-8 in any case."""
        rows = 256
        for first in range(0, len(self.indices), rows):
            for text in self.dataset[self.indices[first : first + rows].tolist()][self.column]:
                pieces = [text[i : i + CHUNK_BYTES] for i in range(0, len(text), CHUNK_BYTES)] or [""]
                for i, piece in enumerate(pieces):
                    yield piece.encode("utf-8", errors="replace"), i == len(pieces) - 1

    def subset(self, indices: NDArray[np.int64]) -> "ColumnDocuments":
        """The documents at these indices."""
        return ColumnDocuments(self.dataset, self.column, self.indices[indices], self.sha256)


def _read_column(dataset: Any, name: str) -> tuple[str, NDArray[np.int64]]:
    """A hash of a column of text, and the length of each row in bytes; -1 where a row has none.

    The data set's own fingerprint would not do: it has the time at which files were written in it.
    """
    import pyarrow as arrow
    from pyarrow import compute

    digest, lengths = hashlib.sha256(), [np.zeros(0, np.int64)]
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        for text in table.column(name).chunks:
            lengths.append(compute.fill_null(compute.binary_length(text), -1).to_numpy(False).astype(np.int64))
            if text.null_count:
                text = text.drop_null()
            wide = arrow.types.is_large_string(text.type)
            _, offsets, data = text.buffers()
            if data is not None and len(text):
                borders = np.frombuffer(offsets, np.int64 if wide else np.int32)[
                    text.offset : text.offset + len(text) + 1
                ]
                digest.update(memoryview(data)[int(borders[0]) : int(borders[-1])])
    all_lengths = np.concatenate(lengths)
    return group((digest.digest(), all_lengths.tobytes()))["sha256"], all_lengths


def load_hub_text(data: TextDataConfig) -> TextSource:
    """Documents of a data set.

    Raises:
        UsageError: The data set cannot be loaded, lacks the column, or has no rows.
    """
    datasets = _library()
    splits = _load_splits(data)
    parts: dict[str, Documents] = {}
    identity: dict[str, dict[str, Group]] = {}
    notes: list[str] = []
    for part, dataset in splits.items():
        _require_column(dataset, data.text_column, "text_column")
        feature = dataset.features[data.text_column]
        if not (isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")):
            raise UsageError(f"data.text_column: {data.text_column} is {feature}; a column of text is needed")
        column = dataset.select_columns([data.text_column])
        sha256, lengths = _read_column(column, data.text_column)
        kept = np.flatnonzero(lengths > 0)
        if len(kept) == 0:
            raise UsageError(f"data.name: the {part} part of {data.name} has no rows with text")
        if len(kept) < len(lengths):
            notes.append(f"left out {len(lengths) - len(kept):,} of {len(lengths):,} rows of the {part} part: no text")
        parts[part] = ColumnDocuments(column, data.text_column, kept, sha256)
        identity[part] = {data.text_column: {"count": len(lengths), "sha256": sha256}}
    return TextSource(parts, _record(data, splits), identity, tuple(notes))


def _record(data: ImageDataConfig | TextDataConfig, splits: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": data.name,
        "config_name": data.config_name,
        "fingerprints": {part: dataset._fingerprint for part, dataset in splits.items()},
    }
