"""Token streams of a part: in memory for bytes, otherwise tokenised once into a memory-mapped file.

A cached stream is named by a hash of text and tokenizer, written under a temporary name and renamed, and checked before
use: one that is broken or partial is made again.
"""

import hashlib
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fismo_cli.errors import DataError
from fismo_cli.files import whole_file
from fismo_cli.tasks.text_sources import Documents
from fismo_cli.tasks.tokenizers import ByteTokenizer, Tokenizer, token_type

__all__ = ["TokenStream", "tokenise"]

_SAMPLES, _SAMPLE_BYTES = 4096, 1 << 16
_VERSION = 3


@dataclass
class TokenStream:
    """Tokens of all documents, one after the other, and how many bytes of text they stand for.

    `spelled` is how often the text itself has what a special token is written as; `specials` how many of its tokens are
    special ones all the same.

    Pickled (for data workers that are not forked) a memory-mapped stream is its path, not its contents.
    """

    tokens: NDArray[Any]
    text_bytes: int
    path: Path | None = None
    spelled: dict[str, int] = field(default_factory=dict)
    specials: int = 0

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.path is not None:
            state["tokens"] = self.tokens.dtype.name
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None:
            self.tokens = np.memmap(self.path, dtype=state["tokens"], mode="r")


def tokenise(documents: Documents, tokenizer: Tokenizer, cache_dir: Path | None) -> TokenStream:
    """The token stream of some documents.

    Args:
        documents: The documents.
        tokenizer: Its `end` follows every document.
        cache_dir: Folder of the cache; None is ~/.cache/fismo. The byte tokenizer needs none.

    Raises:
        DataError: The cache cannot be written, or the text is not UTF-8.
    """
    if isinstance(tokenizer, ByteTokenizer):
        tokens = np.concatenate([np.zeros(0, np.uint16), *tokenizer.encode(documents.chunks())])
        return TokenStream(tokens, int((tokens != tokenizer.end).sum()))
    folder = cache_dir if cache_dir is not None else Path.home() / ".cache" / "fismo"
    name = hashlib.sha256(f"{_VERSION}\n{documents.fingerprint()}\n{tokenizer.fingerprint()}".encode()).hexdigest()[:32]
    path = folder / f"{name}.tokens"
    record_path = folder / f"{name}.json"
    record = _valid_record(path, record_path)
    if record is None:
        try:
            record = _write(documents, tokenizer, path, record_path)
        except OSError as error:
            raise DataError(
                f"data.cache_dir: cannot write {path} ({error.strerror}); give a folder that can be"
            ) from error
    dtype = np.dtype(record["dtype"])
    if record["tokens"] == 0:  # an empty file cannot be mapped
        return TokenStream(np.zeros(0, dtype), record["text_bytes"])
    tokens = np.memmap(path, dtype=dtype, mode="r")
    return TokenStream(tokens, record["text_bytes"], path, record["spelled"], record["specials"])


def _write(documents: Documents, tokenizer: Tokenizer, path: Path, record_path: Path) -> dict[str, Any]:
    text_bytes = ends = 0
    found: Counter[bytes] = Counter()
    special_texts = sorted(tokenizer.special_texts, key=len, reverse=True)
    special = re.compile(b"|".join(re.escape(text.encode()) for text in special_texts))

    def counted() -> Any:
        nonlocal text_bytes, ends
        for data, last in documents.chunks(utf8=True):
            text_bytes += len(data)
            found.update(special.findall(data))
            ends += last
            yield data, last

    count = specials = 0
    special_ids = sorted(tokenizer.special_ids)
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        for tokens in tokenizer.encode(counted()):
            stream.write(tokens.tobytes())
            count += len(tokens)
            specials += int(np.isin(tokens, special_ids).sum())
    record = {
        "tokens": count,
        "dtype": token_type(tokenizer.vocab_size).__name__,
        "text_bytes": text_bytes,
        "spelled": {text.decode(): times for text, times in found.most_common()},
        "specials": specials - ends,
        "check": _check_sum(path),
        "tokenizer": tokenizer.name,
    }
    # The record comes last: without it the tokens do not count.
    with whole_file(record_path) as temporary:
        temporary.write_text(json.dumps(record), encoding="utf-8")
    return record


def _valid_record(path: Path, record_path: Path) -> dict[str, Any] | None:
    """The record of a cached stream, or None where it is missing or anything about it is wrong."""
    try:
        record = json.loads(record_path.read_text(encoding="utf-8"))
        size = record["tokens"] * np.dtype(record["dtype"]).itemsize
        intact = path.stat().st_size == size and _check_sum(path) == record["check"] and record["text_bytes"] >= 0
        intact = intact and record["specials"] >= 0 and isinstance(record["spelled"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if intact else None


def _check_sum(path: Path) -> int:
    """CRC of 4096 samples spread over a file (of all of one up to 256 MiB): quick also for one of many gigabytes."""
    size = path.stat().st_size
    stride = max(_SAMPLE_BYTES, (size - _SAMPLE_BYTES) // (_SAMPLES - 1)) if size else 1
    check = 0
    with path.open("rb") as stream:
        for offset in range(0, size, stride):
            stream.seek(offset)
            check = zlib.crc32(stream.read(_SAMPLE_BYTES), check)
    return check
