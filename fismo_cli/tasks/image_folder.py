"""Folders of image files, one folder a class, in a folder for each part or in one for all."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fismo_cli.errors import DataError
from fismo_cli.preset.schema import ImageDataConfig
from fismo_cli.tasks.base import Progress
from fismo_cli.tasks.image_checks import check_looks
from fismo_cli.tasks.image_collections import FileImages, ImageFile, Images, ImageSource
from fismo_cli.tasks.image_files import image_endings, look_at_all
from fismo_cli.tasks.splits import split_names
from fismo_cli.words import counted, listed

__all__ = ["image_files_below", "load_image_folder"]

_USUAL = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def load_image_folder(data: ImageDataConfig, known: Sequence[str] | None, progress: Progress) -> ImageSource:
    """The images of a folder. Hidden files and folders are no data; neither is what Pillow does not read.

    Args:
        data: `path`, `splits`, `skip_unreadable`.
        known: The classes of a model that is measured, for which there need not be a training part.
        progress: Told how many files have been looked at.

    Raises:
        DataError: There is no such folder or no image in it, or a file cannot be read.
    """
    root = Path(str(data.path)).expanduser()
    if not root.is_dir():
        raise DataError(f"data.path: {root} is not a folder")
    folders = _part_folders(root, data.splits, training=known is None)
    found, notes = _find(root, folders, training=known is None)
    looks = look_at_all([partial(_open, path) for _, _, path in found], progress)
    kept, seen = check_looks([path for _, _, path in found], looks, skip=data.skip_unreadable)
    files = [(*found[i][:2], ImageFile(found[i][2], looks[i].size, looks[i].tail)) for i in kept]
    parts, classes = _labelled(files, folders, training=known is None)
    return ImageSource(parts, classes, {"path": str(root)}, (*notes, *seen))


def _find(root: Path, folders: dict[str, Path], *, training: bool) -> tuple[list[tuple[str, str, str]], list[str]]:
    """The part, the class and the path of each image file, and notes on what is none."""
    notes = []
    strange = sorted(
        entry.name for entry in _visible(root) if entry.is_dir() and root / entry.name not in folders.values()
    )
    if strange and root not in folders.values():
        notes.append(f"left out: {listed(strange, 5)} in {root}, which data.splits does not name as parts")
    found: list[tuple[str, str, str]] = []
    left_out: Counter[str] = Counter()
    for part, folder in folders.items():
        classes = sorted(entry.name for entry in _visible(folder) if entry.is_dir())
        if not classes:
            remedy = f"; if {folder.name} is a class itself: data.splits={{train: .}}" if folder != root else ""
            raise DataError(f"{folder}: needs one folder a class, with its images inside{remedy}")
        samples = {name: list(image_files_below(folder / name, left_out)) for name in classes}
        if not any(samples.values()):
            raise DataError(f"{folder}: no images in its class folders ({listed(classes, 5)})")
        if folder == root and training:
            _refuse_parts_as_classes(root, samples)
        empty = [name for name in classes if not samples[name]]
        if empty:
            notes.append(f"left out: {listed(empty, 5)} in {folder}, without an image")
        loose = sum(_ending(entry.name) in image_endings() for entry in _visible(folder) if entry.is_file())
        if loose:
            notes.append(f"left out: {counted(loose, 'image')} in {folder} itself, in no class's folder")
        found += [(part, name, path) for name in classes for path in samples[name]]
    if left_out:
        kinds = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in left_out.most_common())
        notes.append(f"left out: {kinds} (no images)")
    return found, notes


def _labelled(
    files: list[tuple[str, str, ImageFile]], folders: dict[str, Path], *, training: bool
) -> tuple[dict[str, Images], tuple[str, ...]]:
    """The files of each part with their labels, and the classes: those of the training part."""
    by_part = {part: [(name, file) for of, name, file in files if of == part] for part in folders}
    for part, own in by_part.items():
        if not own:
            raise DataError(f"{folders[part]}: none of its images can be read")
    counting = [by_part["train"]] if training else by_part.values()
    classes = tuple(sorted({name for own in counting for name, _ in own}))
    number = {name: i for i, name in enumerate(classes)}
    parts: dict[str, Images] = {}
    for part, own in by_part.items():
        unknown = sorted({name for name, _ in own} - set(classes))
        if unknown:
            raise DataError(f"{folders[part] / unknown[0]}: the training part has no class {unknown[0]}")
        labels = np.array([number[name] for name, _ in own], np.int64)
        parts[part] = FileImages(tuple(file for _, file in own), labels, str(folders[part]))
    return parts, classes


def _part_folders(root: Path, names: dict[Any, str], *, training: bool) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for part, usual in _USUAL.items():
        if training and part in names and not (root / names[part]).is_dir():
            raise DataError(f"data.splits.{part}: {root / names[part]} is not a folder")
        if part not in names and root / names.get("train", "train") == root:  # all folders are said to be classes
            continue
        for name in split_names(part, names, usual):
            if (root / name).is_dir():
                folders[part] = root / name
                break
    if "train" not in folders and folders and training:
        raise DataError(
            f"{root}: has {', '.join(sorted(folders))} but no train folder; name it by data.splits.train, or write "
            "data.splits={train: .} if all folders are classes"
        )
    return folders or {"train": root}


def _refuse_parts_as_classes(root: Path, samples: dict[str, list[str]]) -> None:
    """Refuse folders such as Training and Testing, taken for classes because their names are not the usual ones."""
    inside = [{path.relative_to(root).parts[1:-1][:1] for path in map(Path, files)} for files in samples.values()]
    if len(inside) > 1 and inside[0] != {()} and len(inside[0]) > 1 and all(names == inside[0] for names in inside):
        raise DataError(
            f"{root}: {', '.join(samples)} look like parts, not like classes: each has the same folders; say which is "
            f"which by data.splits, such as {{train: {max(samples, key=lambda name: len(samples[name]))}}}"
        )


def _open(path: str) -> BinaryIO:
    return Path(path).open("rb")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def image_files_below(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    """Image files below a folder in torchvision's order; others that are not hidden are counted by their endings."""
    for place, files in sorted(_walk(str(folder), ())):
        for name in sorted(files):
            if _ending(name) in image_endings():
                yield str(Path(place) / name)
            else:
                left_out[_ending(name)] += 1


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Folders and their files, links followed but not around in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    visible = _visible(folder)
    # A link to nothing is a file that cannot be read, and will be named so.
    yield folder, [entry.name for entry in visible if entry.is_file() or (entry.is_symlink() and not entry.is_dir())]
    for entry in visible:
        if entry.is_dir():
            yield from _walk(entry.path, (*above, real))
