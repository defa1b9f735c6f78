"""Image files: from an opened one to what every viewer shows, with 8 bits a channel; and a look at them before use."""

import contextlib
import functools
import io
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fismo_cli.errors import DataError, first_line

__all__ = [
    "Look",
    "displayed",
    "image_endings",
    "look_at",
    "look_at_all",
    "opened",
    "read_image",
    "unreadable",
]

_OTHER_PROGRAMS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow only identifies, or hands to another program."""

_TAIL = 32
_BITS_A_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@functools.cache
def image_endings() -> frozenset[str]:
    """The endings of files that Pillow reads, in lower case, with their dot."""
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _OTHER_PROGRAMS)


_SIGNATURES = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"))


def opened(stream: BinaryIO) -> Image.Image:
    """An image of which only the header is read; the two usual formats without asking some forty others first."""
    start = stream.read(8)
    stream.seek(0)
    return Image.open(stream, formats=[name for mark, name in _SIGNATURES if start.startswith(mark)] or None)


def displayed(image: Image.Image) -> Image.Image:
    """The first frame of an opened image as every viewer shows it: turned as EXIF says, 8 bits a channel.

    Grey images of 16 bits are scaled by their file's depth. Transparency is left to `convert`, which drops it.

    Raises:
        ValueError: The pixels have no known range.
        Exception: Whatever Pillow raises for a broken file.
    """
    largest = _largest(image)
    image.load()
    # Pillow would warn of palettes with several transparent colours each time that one is converted.
    image.info.pop("transparency", None)
    with contextlib.suppress(Exception):  # a broken EXIF block, which viewers ignore
        ImageOps.exif_transpose(image, in_place=True)
    if largest is None:
        return image
    values = np.asarray(image).astype(np.int64)
    if _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = largest - values
    return Image.fromarray(((values * 255 + largest // 2) // largest).clip(0, 255).astype(np.uint8))


def _largest(image: Image.Image) -> int | None:
    """The largest value that a pixel of an opened file can have; None where Pillow has made 8 bits of it.

    Raises:
        ValueError: It is not known.
    """
    if image.mode.startswith("I;16") and image.format != "FITS":
        return int(2 ** _tags(image).get(_BITS_A_SAMPLE, (16,))[0]) - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 65535
    if image.mode.startswith(("I", "F")):
        kind = "floating-point" if image.mode.startswith("F") else "32-bit or signed"
        raise ValueError(f"its {kind} pixels have no known range; convert it to 8 or 16 bits")
    return None


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})


def unreadable(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    text = str(error).strip()
    if isinstance(error, Image.DecompressionBombError) and (numbers := re.findall(r"\d+", text)):
        return f"{int(numbers[0]) / 1e6:.0f} megapixels, more than the {int(numbers[-1]) / 1e6:.0f} that Pillow reads"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)


def read_image(path: str) -> Image.Image:
    """A file's image, as `displayed` makes it.

    Raises:
        DataError: It cannot be read, or has no known range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Path(path).open("rb") as stream, opened(stream) as image:
                return displayed(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything for broken files
        raise DataError(f"{path}: not a readable image ({unreadable(error)}); remove or replace the file") from error


class Look(NamedTuple):
    """What a look at a file's ends and header shows.

    Attributes:
        size: Its bytes.
        tail: The last of them: no two compressed images end alike.
        problem: Why it cannot be used; None if nothing speaks against it.
        deep: More than 8 bits a pixel, of grey.
        transparent: It has transparency.
    """

    size: int
    tail: bytes
    problem: str | None
    deep: bool
    transparent: bool


def look_at(stream: BinaryIO) -> Look:
    """Look at an image without decoding it, unless its end is missing or its format does not tell."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    tail = stream.read(_TAIL)
    stream.seek(0)
    try:
        if size == 0:
            raise ValueError("the file is empty")
        with opened(stream) as image:
            deep = _largest(image) is not None
            transparent = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
            if not _is_whole(image, size, tail, stream):
                displayed(image)
    except MemoryError:
        raise
    except Exception as error:  # as in `read_image`
        return Look(size, tail, unreadable(error), deep=False, transparent=False)
    return Look(size, tail, None, deep, transparent)


def _is_whole(image: Image.Image, size: int, tail: bytes, stream: BinaryIO) -> bool:
    """Whether the file's end is where its format says; False where that is not known."""
    match image.format:
        case "PNG":
            return tail.endswith(b"\0\0\0\0IEND\xaeB`\x82")
        case "JPEG" | "MPO" | "JPEG2000":
            return tail.rstrip(b"\0").endswith(b"\xff\xd9")
        case "GIF":
            return tail.endswith(b"\0;")
        case "WEBP":
            return _number(stream, 4) + 8 <= size
        case "BMP":
            return _number(stream, 2) == size
        case "TIFF":
            tags = _tags(image)
            starts, lengths = ([*tags.get(strip, ()), *tags.get(tile, ())] for strip, tile in ((273, 324), (279, 325)))
            ends = [start + length for start, length in zip(starts, lengths, strict=False)]
            return len(starts) == len(lengths) > 0 and max(ends) <= size
        case "AVIF":
            end = 0
            while end < size and (length := _number(stream, end, "big")) >= 8:  # boxes, one after the other
                end += length
            return end == size
    return False


def _number(stream: BinaryIO, place: int, order: Literal["big", "little"] = "little") -> int:
    stream.seek(place)
    return int.from_bytes(stream.read(4), order)


def look_at_all(
    openers: Sequence[Callable[[], BinaryIO]], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Look]:
    """Look at many images, several at a time: on network disks most of it is waiting.

    Args:
        openers: Open each image.
        progress: Told how many are done, and of how many, now and then.
    """
    batches = [openers[first : first + 256] for first in range(0, len(openers), 256)]
    looks: list[Look] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        warnings.simplefilter("ignore")
        try:
            for batch in pool.map(lambda batch: [_look(opener) for opener in batch], batches):
                looks += batch
                progress(len(looks), len(openers))
        except BaseException:  # Ctrl-C does not wait for what nobody needs any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return looks


def _look(opener: Callable[[], BinaryIO]) -> Look:
    try:
        with opener() as stream:
            return look_at(stream)
    except OSError as error:
        return Look(0, b"", unreadable(error), deep=False, transparent=False)
