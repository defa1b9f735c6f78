"""Where images come from: every source ends as labelled collections for train, validation and test.

Pixels stay as they are stored: uint8 arrays or files.
"""

import importlib.util
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fismo_cli.errors import DataError
from fismo_cli.preset.schema import ImageDataConfig
from fismo_cli.tasks.base import Progress
from fismo_cli.tasks.image_checks import note_copies
from fismo_cli.tasks.image_collections import ArrayImages, FileImages, Images, ImageSource, Labels, identity_of
from fismo_cli.tasks.image_folder import load_image_folder
from fismo_cli.tasks.randomness import held_out_count, split_stratified
from fismo_cli.words import counted, listed

__all__ = ["load_images", "numbered_classes", "read_digits"]

_NPZ_REMEDY = "write it with numpy.savez(path, x_train=..., y_train=...), images as uint8 and labels as whole numbers"


def load_images(
    data: ImageDataConfig,
    *,
    known: Sequence[str] | None = None,
    split: bool = True,
    progress: Progress = lambda done, total: None,
) -> ImageSource:
    """Open the source that `data` names and cut off the parts that it does not have itself.

    The test part is `data.test_fraction` of all, the validation part then `data.validation_fraction` of what is left
    for training, both stratified by label and drawn from `data.split_seed` alone. A fraction of 0 makes no part.

    Args:
        data: The preset's data section.
        known: The classes of a model that is to be measured. They number the labels then; the data may lack some of
            them, and a training part.
        split: Cut off missing parts; without, a source that is all one part is a test.
        progress: Told how many files have been looked at.

    Returns:
        The parts; their record has the identity of what was read, before anything was cut off.

    Raises:
        DataError: The source is missing, empty or not of the form that it must have.
    """
    source = _open(data, known, progress)
    what = f"data.source {data.source}"
    source = _without_unlabelled(source)
    if known is not None:
        if not split and len(source.parts) > 1:  # other data's training part is not measured
            source = replace(source, parts={name: part for name, part in source.parts.items() if name != "train"})
        source = _numbered_as(source, known, what)
    else:
        _check_labels(source, what)
    for name, part in source.parts.items():
        if len(part.labels) == 0:
            raise DataError(f"{what}: the {name} part is empty")
    identity = {name: identity_of(part, source.classes) for name, part in source.parts.items()}
    parts, notes = dict(source.parts), list(source.notes)
    if split:
        _cut_off(parts, data)
    elif set(parts) == {"train"}:
        parts = {"test": parts["train"]}
        notes.append(f"the data has no test part of its own: all {len(parts['test'].labels)} images are the test")
    if known is None:
        notes += _note_unseen(source)
    notes += note_copies({name: part for name, part in parts.items() if isinstance(part, FileImages)})
    return ImageSource(parts, source.classes, {**source.record, "identity": identity}, tuple(notes))


def _open(data: ImageDataConfig, known: Sequence[str] | None, progress: Progress) -> ImageSource:
    match data.source:
        case "digits":
            return _load_digits()
        case "npz":
            return _load_npz(Path(str(data.path)).expanduser(), known)
        case "image-folder":
            return load_image_folder(data, known, progress)
        case "torchvision" if data.name == "ImageFolder":  # whose own way takes hidden files, and parts for classes
            return load_image_folder(data, known, progress)
        case "torchvision":
            from fismo_cli.tasks.torchvision_images import load_torchvision

            return load_torchvision(data, known)
        case "huggingface":
            from fismo_cli.tasks.huggingface_images import load_hub_images

            return load_hub_images(data, known, progress)


def _cut_off(parts: dict[str, Images], data: ImageDataConfig) -> None:
    for name, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if name not in parts and "train" in parts:
            count = held_out_count(len(parts["train"].labels), fraction, f"data.{name}_fraction")
            if count > 0:
                kept, held_out = split_stratified(parts["train"].labels, count, data.split_seed)
                parts["train"], parts[name] = parts["train"].subset(kept), parts["train"].subset(held_out)
                if len(kept) == 0:
                    raise DataError(
                        f"data.{name}_fraction: {fraction:g} of {len(held_out)} images leaves none for training"
                    )


def _note_unseen(source: ImageSource) -> list[str]:
    unseen = np.setdiff1d(np.arange(len(source.classes)), source.parts["train"].labels).tolist()
    if not unseen:
        return []
    named = listed([source.classes[label] for label in unseen], 5)
    return [f"{counted(len(unseen), 'class', 'classes')} of {len(source.classes)} without a training image: {named}"]


def _without_unlabelled(source: ImageSource) -> ImageSource:
    """Leave out parts whose labels are all -1, as public test sets with hidden labels have them."""
    hidden = [name for name, part in source.parts.items() if len(part.labels) and (part.labels == -1).all()]
    if not hidden or hidden == ["train"] or len(hidden) == len(source.parts):
        return source
    parts = {name: part for name, part in source.parts.items() if name not in hidden}
    notes = [f"left out: the {name} part, which has no labels (all are -1)" for name in hidden]
    return replace(source, parts=parts, notes=(*source.notes, *notes))


def _numbered_as(source: ImageSource, known: Sequence[str], what: str) -> ImageSource:
    """The same images with labels that count a model's classes, found by their names."""
    number = {name: i for i, name in enumerate(known)}
    parts = {}
    for name, part in source.parts.items():
        found = np.unique(part.labels)
        _check_range(found, source.classes, name, what)
        strange = [source.classes[label] for label in found.tolist() if source.classes[label] not in number]
        if strange:
            where = f"the {name} part" if len(source.parts) > 1 else "the data"
            raise DataError(
                f"{what}: {where} has the class {strange[0]}, which the model does not know; it knows "
                f"{listed(known, 10)}"
            )
        table = np.array([number.get(class_name, -1) for class_name in source.classes], np.int64)
        parts[name] = replace(part, labels=table[part.labels])  # type: ignore[type-var]
    return replace(source, parts=parts, classes=tuple(known))


def _check_range(found: Labels, classes: Sequence[str], part: str, what: str) -> None:
    outside = found[(found < 0) | (found >= len(classes))]
    if len(outside):
        raise DataError(
            f"{what}: label {outside[0]} of the {part} part is out of range; labels must be 0 to {len(classes) - 1}"
        )


def _check_labels(source: ImageSource, what: str) -> None:
    """Refuse labels that are no class, and those that training never shows to the model."""
    trained = np.unique(source.parts["train"].labels)
    for name, part in source.parts.items():
        found = np.unique(part.labels)
        _check_range(found, source.classes, name, what)
        unknown = np.setdiff1d(found, trained)
        if len(unknown):
            label, class_name = int(unknown[0]), source.classes[int(unknown[0])]
            called = f"{label}" if class_name == str(label) else f"{label} ({class_name})"
            raise DataError(f"{what}: the {name} part has the label {called}, which the training part does not have")


def numbered_classes(labels: Iterable[Labels], what: str, known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of classes that have none: their numbers.

    Args:
        labels: Those of each part.
        what: What they are of, for an error.
        known: The classes of a model that is measured.

    Raises:
        DataError: The largest label is not one of the model's or, without a model, not below the number of images, so
            that labels cannot count classes from 0.
    """
    every = list(labels)
    largest, images = max(int(part.max(initial=-1)) for part in every), sum(len(part) for part in every)
    if known is not None and largest >= len(known):
        raise DataError(f"{what} has the label {largest}, but the model has {len(known)} classes")
    if known is None and largest >= max(images, 1):
        raise DataError(
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


def _load_npz(path: Path, known: Sequence[str] | None) -> ImageSource:
    if not path.is_file():
        raise DataError(f"data.path: {path} is not a file; an .npz file with x_train and y_train is needed")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: holds one bare array; {_NPZ_REMEDY}")
        with archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, AttributeError, EOFError, RuntimeError) as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays; {_NPZ_REMEDY}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise DataError(f"{path}: holds files that are no arrays; {_NPZ_REMEDY}")
    suffix = "_train" if any(key in arrays for key in ("x_train", "y_train")) else ""
    others = (("validation", "_val"), ("validation", "_validation"), ("test", "_test"))
    if known is not None and not suffix and "x" not in arrays:  # a model can be measured on a test part alone
        suffix = next((other for _, other in others if f"x{other}" in arrays), "")
    parts: dict[str, Images] = {}
    if suffix in ("", "_train"):
        parts["train"] = _npz_part(path, arrays, suffix)
    for name, other in others:
        if suffix and (f"x{other}" in arrays or f"y{other}" in arrays):
            parts[name] = _npz_part(path, arrays, other)
    labels = [part.labels for part in parts.values()]
    return ImageSource(parts, numbered_classes(labels, str(path), known))


def _npz_part(path: Path, arrays: dict[str, NDArray[Any]], suffix: str) -> ArrayImages:
    x_key, y_key = f"x{suffix}", f"y{suffix}"
    for key in (x_key, y_key):
        if key not in arrays:
            found = ", ".join(sorted(arrays)) or "nothing"
            raise DataError(f"{path}: {key} is missing (x_train and y_train, or x and y, are needed); it has {found}")
    pixels, labels = arrays[x_key], arrays[y_key]
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: {x_key} is {pixels.dtype}; images must be uint8, 0 to 255")
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4)):
        raise DataError(
            f"{path}: {x_key} has shape {pixels.shape}; images must be N x H x W or N x H x W x C with C of 1, 3 or 4"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:  # CIFAR's labels often come as a column
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(pixels) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: {y_key} has shape {labels.shape} and type {labels.dtype}; {len(pixels)} whole numbers are "
            f"needed, one a row of {x_key}"
        )
    if pixels.size == 0:
        raise DataError(f"{path}: {x_key} is empty (its shape is {pixels.shape})")
    return ArrayImages(pixels if pixels.ndim == 4 else pixels[..., None], labels.astype(np.int64))
