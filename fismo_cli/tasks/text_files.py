"""Which files are a source's text, and what is left out of a folder; no hidden ones unless they are named."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fismo_cli.errors import DataError

__all__ = ["find_text_files"]

MOST_KINDS = 4
"""Kinds of files that were left out which a note names."""


def find_text_files(patterns: Iterable[str]) -> tuple[dict[Path, str], list[str]]:
    """Files by what `data.path` names, and notes on what was left out.

    A folder has its *.txt files, at any depth; a pattern what it matches. Both pass over what is hidden (a name that
    begins with a point), unless the pattern itself has the point.

    Args:
        patterns: files, folders and glob patterns.

    Returns:
        Each file, in order, with a name that does not depend on where the data is.

    Raises:
        DataError: A pattern has no file, or a folder or link cannot be followed.
    """
    found: dict[Path, str] = {}
    notes: list[str] = []
    taken: set[str] = set()
    for pattern in patterns:
        try:
            base, matches = _matches(pattern, notes)
        except OSError as error:
            raise DataError(f"data.path: {pattern} cannot be read ({error.strerror})") from error
        for path in matches:
            if path not in found:
                found[path] = _unique(path.relative_to(base).as_posix(), base.name, taken)
                taken.add(found[path])
    return found, notes


def _matches(pattern: str, notes: list[str]) -> tuple[Path, list[Path]]:
    """The files that one pattern names, and the folder from which their names count."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, _of_folder(path, notes)
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
    files = [file for file in map(Path, matches) if _usable(file)]
    if not files:
        folders = ", only folders" if any(map(os.path.isdir, matches)) else ""
        raise DataError(f"data.path: {pattern} is no file, no folder and matches no file{folders}")
    fixed = [i for i, part in enumerate(path.parts) if glob.has_magic(part)][:1]
    return Path(*path.parts[: fixed[0]]) if fixed else path.parent, files


def _of_folder(folder: Path, notes: list[str]) -> list[Path]:
    files = sorted(_walk(folder))
    texts = [file for file in files if file.suffix.lower() == ".txt" and _usable(file)]
    left_out = Counter(file.suffix.lower() or "without an ending" for file in files) - Counter(
        file.suffix.lower() for file in texts
    )
    kinds = [f"{count} {kind}" for kind, count in left_out.most_common(MOST_KINDS)]
    others = left_out.total() - sum(count for _, count in left_out.most_common(MOST_KINDS))
    listed = ", ".join([*kinds, *([f"{others} of other kinds"] if others else [])])
    if not texts:
        has = f" (it has {listed})" if left_out else ""
        raise DataError(
            f"data.path: {folder} has no *.txt files{has}; for others give a pattern such as {folder}/**/*.md"
        )
    if left_out:
        notes.append(
            f"{folder}: {len(texts)} .txt files are the text; left out {listed}. For those give data.path a pattern"
        )
    return texts


def _walk(folder: Path) -> Iterator[Path]:
    """All files of a folder that are not hidden, also through links to folders, each folder once."""

    def refuse(error: OSError) -> None:
        raise DataError(f"data.path: {error.filename} cannot be read ({error.strerror})") from error

    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder around it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _usable(file: Path) -> bool:
    """Whether it is a regular file.

    Raises:
        DataError: It is a link to nothing: the text that was meant is not here.
    """
    if file.is_symlink() and not file.exists():
        raise DataError(f"data.path: {file} is a link to {os.readlink(file)}, which is not there")  # noqa: PTH115
    return file.is_file()


def _unique(name: str, base: str, taken: set[str]) -> str:
    """A name that no file before has."""
    if name in taken:
        name = f"{base}/{name}"
    number, unique = 2, name
    while unique in taken:
        number, unique = number + 1, f"{name} ({number})"
    return unique
