"""torchvision's data sets of images with one class each."""

import contextlib
import difflib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fismo_cli.errors import DataError, first_line
from fismo_cli.hub import is_offline_error
from fismo_cli.preset.schema import ImageDataConfig
from fismo_cli.tasks.image_collections import ArrayImages, Images, ImageSource, IndexedImages
from fismo_cli.tasks.image_files import read_image
from fismo_cli.tasks.image_sources import numbered_classes
from fismo_cli.tasks.splits import split_names

__all__ = ["load_torchvision"]

_TORCHVISION_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


def load_torchvision(data: ImageDataConfig, known: Sequence[str] | None) -> ImageSource:
    """The data set that `data.name` names, downloaded where that is asked for.

    Args:
        data: Its name, folder and splits.
        known: The classes of a model that is measured, for which there need not be a training part.

    Raises:
        DataError: torchvision has no such data set, or it is not there and cannot be had.
    """
    import torchvision.datasets as library

    kind = getattr(library, str(data.name), None)
    if not (inspect.isclass(kind) and issubclass(kind, library.VisionDataset)):
        known = [name for name in library.__all__ if inspect.isclass(getattr(library, name))]
        close = difflib.get_close_matches(str(data.name), known, n=1, cutoff=0.5)
        raise DataError(
            f"data.name: torchvision has no data set {data.name}" + (f"; did you mean {close[0]}?" if close else "")
        )
    accepted = inspect.signature(kind).parameters
    common: dict[str, Any] = {"root": data.path}
    if "download" in accepted:
        common["download"] = data.download
    if "loader" in accepted:  # the library's own makes colour of 16 bits by cutting them off
        common["loader"] = read_image
    if "train" in accepted:
        options: dict[str, Sequence[dict[str, Any]]] = {"train": [{"train": True}], "test": [{"train": False}]}
    elif "split" in accepted:
        options = {
            part: [{"split": name} for name in split_names(part, data.splits, usual)]  # type: ignore[arg-type]
            for part, usual in _TORCHVISION_SPLITS.items()
        }
    else:
        options = {"train": [{}]}
    required = {"train", *data.splits} if known is None else set(list(options)[-1:])
    parts: dict[str, Images] = {}
    classes: tuple[str, ...] = ()
    for part, choices in options.items():
        dataset = _open_torchvision(kind, common, choices, required=part in required)
        if dataset is not None:
            parts[part] = _from_torchvision(dataset)
            classes = classes or tuple(str(name) for name in getattr(dataset, "classes", ()))
    if not classes:
        labels = [part.labels for part in parts.values()]
        classes = numbered_classes(labels, f"data.name: {data.name}", known)
    return ImageSource(parts, classes, {"name": data.name, "path": data.path})


def _open_torchvision(
    kind: Any, common: dict[str, Any], choices: Sequence[dict[str, Any]], *, required: bool
) -> Any | None:
    problem: Exception | None = None
    for choice in choices:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to --json
                return kind(**common, **choice)
        except ValueError as error:  # torchvision's word for a split that does not exist
            problem = error
        except (RuntimeError, OSError, TypeError, AttributeError, ModuleNotFoundError) as error:
            name, root = kind.__name__, common["root"]
            if is_offline_error(error):
                raise DataError(
                    f"data.path: {name} is not in {root} and cannot be downloaded from here; put its files there, or "
                    "use another source"
                ) from error
            raise DataError(f"data.name: {name} cannot be opened in {root}: {first_line(error)}") from error
    if required:
        raise DataError(f"data.splits: {kind.__name__} has no such split: {problem}") from problem
    return None


def _from_torchvision(dataset: Any) -> Images:
    labels = None
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            labels = np.asarray(getattr(dataset, attribute))
            break
    if labels is None:
        samples = getattr(dataset, "_samples", None) or getattr(dataset, "samples", None)
        pairs = samples if samples is not None else (dataset[i] for i in range(len(dataset)))
        labels = np.array([pair[1] for pair in pairs])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"data.name: {type(dataset).__name__} is not a data set of images with one class each")
    labels = labels.astype(np.int64)
    pixels = getattr(dataset, "data", None)
    if pixels is not None:
        pixels = np.asarray(pixels)
        if pixels.dtype == np.uint8 and pixels.ndim in (3, 4):
            if pixels.ndim == 3:
                pixels = pixels[..., None]
            elif pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 3):  # SVHN and STL10 put channels first
                pixels = pixels.transpose(0, 2, 3, 1)
            return ArrayImages(np.ascontiguousarray(pixels), labels)
    return IndexedImages(dataset, 0, labels, np.arange(len(labels)), _file_names(dataset, len(labels)))


def _file_names(dataset: Any, count: int) -> list[str] | None:
    """The name and the size of each sample's file, where the data set has a list of them."""
    for attribute in ("samples", "_samples", "imgs", "_image_files", "_images", "images"):
        files = getattr(dataset, attribute, None)
        if isinstance(files, Sequence) and len(files) == count and count:
            paths = [file[0] if isinstance(file, tuple | list) else file for file in files]
            if all(isinstance(path, str | Path) and Path(path).is_file() for path in paths):
                return [f"{Path(path).name} {Path(path).stat().st_size}" for path in paths]
    return None
