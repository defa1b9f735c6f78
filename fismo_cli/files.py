"""Files and folders that are written whole or not at all."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["encodable", "fsync_path", "link_or_copy", "locked", "sweep", "whole_directory", "whole_file"]

_TEMPORARY = re.compile(r"\..+\.\d+\.(tmp|old)")


def encodable(text: str) -> str:
    """The text with escapes in place of what UTF-8 cannot have: bytes of file names in another encoding."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def fsync_path(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(directory: Path) -> None:
    """Remove what killed processes left in a folder under temporary names. Nobody else may be writing there."""
    for path in directory.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            _remove(path)


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name, without its bytes twice on the disk where that is possible."""
    with whole_file(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # some file systems have no links
            shutil.copyfile(source, temporary)


def _remove(path: Path) -> None:
    """Remove a file or a folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made where there is none; the system frees it however this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; on success it is synchronised and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)  # of a killed process with the same number: in containers it often is 1
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it takes the place of `path`, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(temporary)  # as above
    _remove(replaced)
    temporary.mkdir()
    try:
        yield temporary
        for entry in [*temporary.rglob("*"), temporary]:
            fsync_path(entry)
        if path.exists():  # a folder cannot be renamed onto one that has entries
            path.replace(replaced)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
