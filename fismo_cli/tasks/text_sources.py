"""Where text comes from: every source ends as collections of documents, a part each.

Text is read in chunks, so that memory stays bounded.
"""

import codecs
import hashlib
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fismo_cli.errors import DataError
from fismo_cli.preset.schema import TextDataConfig
from fismo_cli.tasks.identity import Identity, group, group_files
from fismo_cli.tasks.randomness import held_out_count
from fismo_cli.tasks.text_files import find_text_files
from fismo_cli.words import counted, listed

__all__ = ["Documents", "FileDocuments", "TextSource", "load_text"]

CHUNK_BYTES = 1 << 20
_STDLIB_BYTES = 4_000_000
_STDLIB_SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}


class Documents(Protocol):
    """Some documents; `chunks` reads them in order, in pieces, each with whether a document ends with it."""

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """What identifies the text."""
        ...

    def chunks(self, *, utf8: bool = False) -> Iterator[tuple[bytes, bool]]:
        """The text, in order, in pieces; with `utf8` whatever is not UTF-8 is refused."""
        ...

    def subset(self, indices: NDArray[np.int64]) -> "Documents":
        """The documents at these indices."""
        ...


@dataclass(frozen=True)
class FileSpan:
    """The bytes from `start` to `end` of a file, and the hash of all of its bytes."""

    path: Path
    start: int
    end: int
    sha256: str


@dataclass(frozen=True)
class FileDocuments:
    """Documents that are files, or one span of each."""

    spans: tuple[FileSpan, ...]

    def __len__(self) -> int:
        return len(self.spans)

    def fingerprint(self) -> str:
        """A hash of the contents, in order."""
        return group(f"{span.sha256} {span.start} {span.end}" for span in self.spans)["sha256"]

    def chunks(self, *, utf8: bool = False) -> Iterator[tuple[bytes, bool]]:
        """The text of each file in pieces of about 1 MiB, cut after a line or at least after a character.

        Raises:
            DataError: A file cannot be read or, with `utf8`, holds anything that is not UTF-8.
        """
        for span in self.spans:
            left = span.end - span.start
            try:
                with span.path.open("rb") as stream:
                    stream.seek(span.start)
                    while left > 0:
                        data = stream.read(min(left, CHUNK_BYTES))
                        if not data:
                            raise DataError(f"{span.path}: became shorter while it was read")
                        if len(data) < left:
                            extra = stream.readline(min(left - len(data), CHUNK_BYTES))
                            while extra and len(data) + len(extra) < left and not extra.endswith(b"\n"):
                                following = stream.read(1)
                                if not 0x80 <= following[0] < 0xC0:  # a character begins: end before it
                                    stream.seek(-1, 1)
                                    break
                                extra += following
                            data += extra
                        if utf8:
                            _check_utf8(data, span.path, span.end - left)
                        left -= len(data)
                        yield data, left == 0
            except OSError as error:
                raise DataError(f"{span.path}: cannot be read ({error.strerror})") from error

    def subset(self, indices: NDArray[np.int64]) -> "FileDocuments":
        """The documents at these indices."""
        return FileDocuments(tuple(self.spans[i] for i in indices.tolist()))


def _check_utf8(data: bytes, path: Path, offset: int) -> None:
    """Refuse bytes, those of a file from `offset` on, that are not UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {offset + error.start}; convert the file, or train on bytes (data.tokenizer: "
            "bytes)"
        ) from error


@dataclass(frozen=True)
class TextSource:
    """The parts of a source (train, unless it is to be measured on), what to record, its identity, and notes."""

    parts: dict[str, Documents]
    record: dict[str, Any]
    identity: Identity
    notes: tuple[str, ...] = ()


def load_text(data: TextDataConfig, *, split: bool = True) -> TextSource:
    """Open the source that `data` names and cut off the parts that it does not have itself.

    Without `split` nothing is cut off: what is not for training is measured, and a source that is all one part is a
    test.

    Documents are drawn from `data.split_seed` alone; both fractions are of the training documents that the source
    has. A source with a single file is cut by position instead: train, validation, test.

    Raises:
        DataError: The source is missing, empty or has too few documents.
    """
    match data.source:
        case "stdlib-source":
            source = _load_stdlib()
        case "text-files":
            source = _load_files([data.path] if isinstance(data.path, str) else list(data.path or []))
        case "huggingface":
            from fismo_cli.tasks.huggingface import load_hub_text

            source = load_hub_text(data, training=split)
    if not split:
        return _to_measure(source)
    missing = {
        name: fraction
        for name, fraction in (("validation", data.validation_fraction), ("test", data.test_fraction))
        if name not in source.parts and fraction > 0
    }
    if not missing:
        return source
    everything = source.parts["train"]
    if isinstance(everything, FileDocuments) and len(everything) == 1:
        return replace(source, parts={**source.parts, **_split_by_position(everything.spans[0], missing)})
    order = np.random.default_rng(data.split_seed).permutation(len(everything))
    parts = dict(source.parts)
    for name, fraction in missing.items():
        count = held_out_count(len(everything), fraction, f"data.{name}_fraction")
        parts[name], order = everything.subset(np.sort(order[:count])), order[count:]
    if len(order) == 0:
        raise DataError(f"data.source {data.source}: {len(everything)} documents are too few for its parts")
    parts["train"] = everything.subset(np.sort(order))
    return replace(source, parts=parts, notes=(*source.notes, *_copies(parts)))


def _to_measure(source: TextSource) -> TextSource:
    parts = {name: part for name, part in source.parts.items() if name != "train"}
    if parts:
        return replace(source, parts=parts)
    everything = source.parts["train"]
    documents = "the one document is" if len(everything) == 1 else f"all {len(everything):,} documents are"
    note = f"the data has no test part of its own: {documents} the test"
    return replace(source, parts={"test": everything}, notes=(*source.notes, note))


def _copies(parts: Mapping[str, Documents]) -> Iterator[str]:
    """A note on each pair of parts that have the same files: a loss on text that was trained on says little."""
    known = {
        name: {span.sha256: span.path for span in part.spans}
        for name, part in parts.items()
        if isinstance(part, FileDocuments)
    }
    for first, second in combinations(known, 2):
        common = known[first].keys() & known[second].keys()
        if common:
            one = min(common)
            files = counted(len(common), f"file of the {second} part is", f"files of the {second} part are")
            pair = f"{known[second][one]} and {known[first][one]}"
            yield f"{files} in the {first} part too, byte for byte (such as {pair})"


def _split_by_position(span: FileSpan, fractions: dict[str, float]) -> dict[str, Documents]:
    """Consecutive spans of one file, each beginning with a line (or, in a file of one line, a character)."""
    length = span.end - span.start
    ends, share = [], 1 - sum(fractions.values())
    for fraction in fractions.values():
        ends.append(span.start + round(length * share))
        share += fraction
    with span.path.open("rb") as stream:
        for i, end in enumerate(ends):
            stream.seek(end)
            line = stream.readline(CHUNK_BYTES)
            if line.endswith(b"\n") and end + len(line) < (ends[i + 1] if i + 1 < len(ends) else span.end):
                ends[i] = end + len(line)
            else:
                ends[i] = end + next((n for n, byte in enumerate(line) if not 0x80 <= byte < 0xC0), 0)
    borders = [span.start, *ends, span.end]
    names = ["train", *fractions]
    return {
        name: FileDocuments((FileSpan(span.path, start, end, span.sha256),))
        for name, start, end in zip(names, borders[:-1], borders[1:], strict=True)
    }


def _load_stdlib() -> TextSource:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not _STDLIB_SKIPPED & set(path.relative_to(root).parts[:-1]) and path.stat().st_size > 0
    ]
    # Which files make up the few megabytes is decided by their names' hashes: the same everywhere, and of all kinds.
    chosen, total = [], 0
    for path in sorted(files, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()):
        total += path.stat().st_size
        if total > _STDLIB_BYTES:
            break
        chosen.append(path)
    if not chosen:
        raise DataError(f"data.source stdlib-source: no source files in {root}; this Python is installed without them")
    names = {path: path.relative_to(root).as_posix() for path in chosen}
    return _from_files(sorted(chosen, key=lambda path: names[path]), names, [], record="name")


def _load_files(patterns: list[str]) -> TextSource:
    names, notes = find_text_files(patterns)
    return _from_files(list(names), names, notes)


def _from_files(files: list[Path], names: Mapping[Path, str], notes: list[str], *, record: str = "path") -> TextSource:
    spans, empty, hashes = [], [], {}
    for path in files:
        span = _examine(path)
        if span.end > span.start:
            spans.append(span)
            hashes[names[path]] = span.sha256
        else:
            empty.append(path)
    if not spans:
        raise DataError(f"data.path: all files are empty ({listed(empty)})")
    if empty:
        notes = [*notes, f"left out {counted(len(empty), 'empty file')} ({listed(empty)})"]
    documents = FileDocuments(tuple(spans))
    return TextSource(
        {"train": documents},
        {
            "files": [names[span.path] if record == "name" else str(span.path) for span in spans],
            "file_count": len(spans),
            "bytes": sum(span.end - span.start for span in spans),
            "sha256": documents.fingerprint(),
        },
        {"text": group_files(hashes)},
        tuple(notes),
    )


def _examine(path: Path) -> FileSpan:
    """The text of a file, without the mark of UTF-8 that some editors begin it with.

    Raises:
        DataError: The file cannot be read, or is no text in UTF-8 or any other encoding that extends ASCII.
    """
    digest, size, start = hashlib.sha256(), 0, 0
    try:
        with path.open("rb") as stream:
            while data := stream.read(CHUNK_BYTES):
                if size == 0:
                    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
                    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        wide = "UTF-32" if data.startswith(codecs.BOM_UTF32_LE) else "UTF-16"
                        raise DataError(f"{path}: {wide} text; convert it by iconv -f {wide} -t UTF-8")
                nul = data.find(b"\0")
                if nul >= 0:
                    raise DataError(f"{path}: not a text file (byte {size + nul} is NUL); give plain text in UTF-8")
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return FileSpan(path, start, size, digest.hexdigest())
