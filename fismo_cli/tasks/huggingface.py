"""Hugging Face data sets, from the hub or from a local folder. The extra `hub` is needed here and nowhere else."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fismo_cli.errors import DataError
from fismo_cli.hub import reachable
from fismo_cli.preset.schema import ImageDataConfig, TextDataConfig
from fismo_cli.tasks.identity import Group, group
from fismo_cli.tasks.splits import split_names
from fismo_cli.tasks.text_sources import CHUNK_BYTES, Documents, TextSource

__all__ = ["ColumnDocuments", "library", "load_hub_text", "load_splits", "record", "require_column"]

_USUAL = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def library() -> Any:
    """The package `datasets`.

    Raises:
        DataError: It is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError("data.source huggingface needs the extra hub: pip install 'fismo[hub]'") from error
    return datasets


def load_splits(data: ImageDataConfig | TextDataConfig, *, training: bool = True) -> dict[str, Any]:
    """The splits of a data set by part: from a `save_to_disk` folder, any folder, a builder and its folder, the hub.

    With `training` there must be one to train on; without, any one will do.

    Raises:
        DataError: The data set cannot be loaded, or lacks a split.
    """
    datasets = library()
    folder = Path(str(data.name)).expanduser()
    name = str(folder) if folder.is_dir() else str(data.name)
    if data.path is not None and not isinstance(data.path, str):
        raise DataError("data.path: with source huggingface it must be one folder")
    path = None if data.path is None else Path(data.path).expanduser()
    if path is not None and not path.exists():
        raise DataError(f"data.path: {path}, the folder for {name}, does not exist; write null if it needs none")
    with reachable(
        f"the data set {name}",
        "data.name",
        "give a folder that has it as data.name, or run this once with a network",
        local=path is not None or folder.is_dir(),
    ):
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(name)
        elif path is not None:
            loaded = datasets.load_dataset(name, data.config_name, data_dir=str(path))
        else:
            loaded = datasets.load_dataset(name, data.config_name)
    found = {str(split): part for split, part in loaded.items()} if isinstance(loaded, dict) else {"train": loaded}
    splits: dict[str, Any] = {}
    for part, usual in _USUAL.items():
        wanted = data.splits.get(part)  # type: ignore[call-overload]
        if training and wanted is not None and wanted not in found:
            raise DataError(f"data.splits.{part}: {name} has no split {wanted}; it has {', '.join(found)}")
        for split in split_names(part, data.splits, usual):  # type: ignore[arg-type]
            if split in found:
                splits[part] = found[split]
                break
    if "train" not in splits and (training or not splits):
        raise DataError(f"data.splits.train: {name} has no split train; name one of {', '.join(found)}")
    return splits


def require_column(dataset: Any, column: str, key: str) -> None:
    """Refuse a data set without a column that `data.<key>` names."""
    if column not in dataset.column_names:
        raise DataError(f"data.{key}: no column {column}; the data set has {', '.join(dataset.column_names)}")


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


def load_hub_text(data: TextDataConfig, *, training: bool = True) -> TextSource:
    """Documents of a data set; without `training` it need not have a split to train on.

    Raises:
        DataError: The data set cannot be loaded, lacks the column, or has no rows.
    """
    datasets = library()
    splits = load_splits(data, training=training)
    parts: dict[str, Documents] = {}
    identity: dict[str, dict[str, Group]] = {}
    notes: list[str] = []
    for part, dataset in splits.items():
        require_column(dataset, data.text_column, "text_column")
        feature = dataset.features[data.text_column]
        if not (isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")):
            raise DataError(f"data.text_column: {data.text_column} is {feature}; a column of text is needed")
        column = dataset.select_columns([data.text_column])
        sha256, lengths = _read_column(column, data.text_column)
        kept = np.flatnonzero(lengths > 0)
        if len(kept) == 0:
            raise DataError(f"data.name: the {part} part of {data.name} has no rows with text")
        if len(kept) < len(lengths):
            notes.append(f"left out {len(lengths) - len(kept):,} of {len(lengths):,} rows of the {part} part: no text")
        parts[part] = ColumnDocuments(column, data.text_column, kept, sha256)
        identity[part] = {data.text_column: {"count": len(lengths), "sha256": sha256}}
    return TextSource(parts, record(data, splits), identity, tuple(notes))


def record(data: ImageDataConfig | TextDataConfig, splits: dict[str, Any]) -> dict[str, Any]:
    """What to record about a data set."""
    return {
        "name": data.name,
        "config_name": data.config_name,
        "fingerprints": {part: dataset._fingerprint for part, dataset in splits.items()},
    }
