"""What a look at all images before training finds: those that cannot be read, depths, transparency, copies."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from fismo_cli.errors import DataError
from fismo_cli.tasks.image_collections import FileImages, ImageFile
from fismo_cli.tasks.image_files import Look
from fismo_cli.words import counted

__all__ = ["check_looks", "note_copies"]

_MOST_LISTED = 10


def check_looks(names: Sequence[str], looks: Sequence[Look], *, skip: bool) -> tuple[list[int], list[str]]:
    """Which images can be used, and notes on them.

    Args:
        names: What each image is called.
        looks: What was seen of each.
        skip: Leave out those that cannot be read.

    Raises:
        DataError: Some cannot be read, and `skip` is False.
    """
    bad = [i for i, look in enumerate(looks) if look.problem is not None]
    notes = []
    if bad:
        listed = [f"{names[i]}: {looks[i].problem}" for i in bad[:_MOST_LISTED]]
        if len(bad) > _MOST_LISTED:
            listed.append(f"and {len(bad) - _MOST_LISTED} more")
        if not skip:
            many = f"{counted(len(bad), 'image')} cannot be read"
            remedy = f"remove or replace {'it' if len(bad) == 1 else 'them'}, or set data.skip_unreadable=true"
            raise DataError(
                f"{names[bad[0]]}: not a readable image ({looks[bad[0]].problem}); {remedy}"
                if len(bad) == 1
                else "\n  ".join((f"{many}; {remedy}:", *listed))
            )
        notes.append(f"left out: {counted(len(bad), 'image')} that cannot be read ({'; '.join(listed)})")
    kept = [i for i, look in enumerate(looks) if look.problem is None]
    deep, transparent = (sum(getattr(looks[i], name) for i in kept) for name in ("deep", "transparent"))
    if 0 < deep < len(kept):
        notes.append(
            f"{counted(deep, 'image has', 'images have')} more than 8 bits a pixel, {len(kept) - deep} have 8: each is "
            "scaled by the depth of its file"
        )
    if transparent:
        notes.append(
            f"{counted(transparent, 'image has', 'images have')} transparency, which is dropped: the colours below "
            "are seen"
        )
    return kept, notes


def note_copies(parts: Mapping[str, FileImages]) -> list[str]:
    """A note on each pair of parts that have files in common, byte by byte."""
    suspects = {name: {file[1:] for file in part.files} for name, part in parts.items()}
    times = Counter(chain.from_iterable(suspects.values()))
    hashes: dict[str, dict[str, str]] = {}
    for name, part in parts.items():
        alike = [file for file in part.files if times[file[1:]] > 1]
        hashes[name] = {digest: file.path for file in alike if (digest := _digest(file)) is not None}
    notes = []
    order = list(parts)
    for i, first in enumerate(order):
        for second in order[i + 1 :]:
            common = sorted(hashes[first].keys() & hashes[second].keys(), key=lambda key: hashes[first][key])
            if common:
                example = f"{hashes[first][common[0]]} is {hashes[second][common[0]]}"
                verb = "is" if len(common) == 1 else "are"
                notes.append(f"{counted(len(common), 'image')} of {first} {verb} in {second}, too: {example}")
    return notes


def _digest(file: ImageFile) -> str | None:
    try:
        with Path(file.path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:  # whoever trains on it will say so
        return None
