"""Tokenizers behind one interface: the embedded bytes, or any of transformers'."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fismo_cli.errors import DataError
from fismo_cli.hub import reachable

__all__ = ["ByteTokenizer", "HubTokenizer", "Tokenizer", "load_tokenizer", "same_tokens", "saved_tokenizer"]

_BATCH = 64
_END_TEXT = "<|endoftext|>"
_BYTE_RECORD = "byte_tokenizer.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PROBE = "Two words, 3 Zahlen: 3.14\n\tdef f(x):  # Größe, 漢字, emoji \U0001f600\r\n  if not a==b: {'tokens': [1]}"


class Tokenizer(Protocol):
    """Text to token ids; `vocab_size` is the largest id plus 1.

    `end` is put after every document. Text becomes one of `special_ids` only if that cannot be helped, also where it is
    one of `special_texts`, by which special tokens are written.
    """

    name: str
    vocab_size: int
    bos: int
    end: int
    pad: int | None
    special_texts: tuple[str, ...]
    special_ids: frozenset[int]

    def encode(self, chunks: Iterable[tuple[bytes, bool]]) -> Iterator[NDArray[Any]]:
        """Token ids of the chunks, in order."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        ...

    def fingerprint(self) -> str:
        """A hash of everything that decides the ids, also of what changes with a library's version."""
        ...

    def identity(self) -> str:
        """A hash of what it does, whatever version of a library does it."""
        ...

    def save(self, directory: Path) -> None:
        """Write what loads it again, or says what it is, into a model's folder."""
        ...


class ByteTokenizer:
    """The 256 bytes, and 256 as the end of a text."""

    name = "bytes"
    vocab_size = 257
    bos = 256
    end = 256
    pad: int | None = None
    special_texts: tuple[str, ...] = ()
    special_ids: frozenset[int] = frozenset()

    def encode(self, chunks: Iterable[tuple[bytes, bool]]) -> Iterator[NDArray[Any]]:
        """Token ids of the chunks, in order."""
        for data, last in chunks:
            yield np.frombuffer(data, np.uint8).astype(np.uint16)
            if last:
                yield np.array([self.end], np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens; what is no UTF-8 becomes the replacement character."""
        return bytes(number for number in ids if number != self.end).decode("utf-8", errors="replace")

    def fingerprint(self) -> str:
        """A hash of everything that decides the ids."""
        return "bytes-257"

    def identity(self) -> str:
        """The same."""
        return self.fingerprint()

    def save(self, directory: Path) -> None:
        """Write what transformers' `AutoTokenizer` makes the same ids by, and that they are bytes."""
        record = {"tokenizer": "bytes", "vocab_size": self.vocab_size, "end_of_text_id": self.end}
        (directory / _BYTE_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        bytes_for_transformers(self.end).save_pretrained(str(directory))


class HubTokenizer:
    """A tokenizer of transformers, from a folder or the hub."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        folder = Path(name).expanduser()
        with reachable(
            f"the tokenizer {name}",
            "data.tokenizer",
            "give the folder of a saved tokenizer, or write tokenizer: bytes",
            local=folder.is_dir(),
            unreadable="it holds no tokenizer that transformers can load",
        ):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name)
        self.name = name
        self.vocab_size = max(len(self._tokenizer), *(1 + index for index in self._tokenizer.get_vocab().values()))
        end = self._tokenizer.eos_token_id
        if end is None:
            raise DataError(
                f"data.tokenizer: {name} has no end-of-text token, which goes between documents; set its eos_token"
            )
        self.end = int(end)
        begin = self._tokenizer.bos_token_id
        self.bos = self.end if begin is None else int(begin)
        self.pad: int | None = self._tokenizer.pad_token_id
        self.special_texts: tuple[str, ...] = tuple(self._tokenizer.all_special_tokens)
        self.special_ids = frozenset({self.end, *self._tokenizer.all_special_ids} - self._unknown())

    def encode(self, chunks: Iterable[tuple[bytes, bool]]) -> Iterator[NDArray[Any]]:
        """Token ids of the chunks, in order, without the tokenizer's own special tokens."""
        kind = token_type(self.vocab_size)
        iterator = iter(chunks)
        while batch := list(islice(iterator, _BATCH)):
            texts = [data.decode("utf-8", errors="replace") for data, _ in batch]
            # verbose=False: warns of texts longer than the model's context, which blocks are cut from anyway.
            encoded = self._tokenizer(
                texts,
                add_special_tokens=False,
                split_special_tokens=True,  # what spells one is text
                return_attention_mask=False,
                verbose=False,
            )
            for ids, (_, last) in zip(encoded["input_ids"], batch, strict=True):
                yield np.array([*ids, self.end] if last else ids, kind)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def fingerprint(self) -> str:
        """A hash of everything that decides the ids."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            content = backend.to_str()
        else:
            content = json.dumps(sorted(self._tokenizer.get_vocab().items()))
        return hashlib.sha256(f"{content}\n{self.end}\n{type(self._tokenizer).__name__}".encode()).hexdigest()

    def identity(self) -> str:
        """A hash of what it does: the vocabulary, the end of a text, and the ids of a text that has a bit of all."""
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        probe = self._tokenizer.encode(_PROBE, add_special_tokens=False)
        return hashlib.sha256(json.dumps([vocabulary, self.end, probe]).encode()).hexdigest()

    def _unknown(self) -> set[int]:
        """The id of what is in no vocabulary, which any text may become; nothing where it is the end of a text too."""
        return {self._tokenizer.unk_token_id} - {self.end}

    def makes_the_same(self, other: "HubTokenizer") -> bool:
        """Whether another tokenizer makes the same ids of text, whatever files it was loaded from."""
        mine, others = self._tokenizer, other._tokenizer
        return bool(
            self.end == other.end
            and mine.get_vocab() == others.get_vocab()
            and mine.encode(_PROBE, add_special_tokens=False) == others.encode(_PROBE, add_special_tokens=False)
        )

    def save(self, directory: Path) -> None:
        """Save it beside the model, as transformers expects."""
        self._tokenizer.save_pretrained(str(directory))


def bytes_for_transformers(end: int) -> Any:
    """The bytes as a tokenizer of transformers: the id of a byte is its value.

    Byte-level BPE without a merge. Its vocabulary has a printable letter for each byte; those that are no letter of
    Latin-1 have the next one from U+0100 on. Source: Radford et al., "Language models are unsupervised multitask
    learners" (2019), the code of GPT-2.

    Args:
        end: id of the end of a text.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    vocabulary = {chr(value if value in printable else next(others)): value for value in range(256)}
    backend = Backend(models.BPE(vocab={**vocabulary, _END_TEXT: end}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend, bos_token=_END_TEXT, eos_token=_END_TEXT, clean_up_tokenization_spaces=False)


def token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of `data.tokenizer`.

    Raises:
        DataError: It is not there, cannot be reached, or has no end-of-text token.
    """
    return ByteTokenizer() if name == "bytes" else HubTokenizer(name)


def saved_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer that `save` (or another tool) left in a model's folder; None where there is none."""
    if (directory / _BYTE_RECORD).is_file():
        return ByteTokenizer()
    if any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return HubTokenizer(str(directory))
    return None


def same_tokens(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether two tokenizers give text the same ids."""
    if isinstance(first, HubTokenizer) and isinstance(second, HubTokenizer):
        return first.makes_the_same(second)
    return first.name == second.name == "bytes"
