"""What data is known by: how much of what each part had as its source gave it, and a hash of it.

It says nothing of where the data is or when it was written: the same data on another host, or in a folder that was
moved, is the same. Pure; imports no library but the standard one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypedDict

from fismo_cli.words import counted

__all__ = ["TOKENIZER", "Group", "Identity", "changes", "group", "group_files", "identity_hash"]

TOKENIZER = "tokenizer"
"""The part of a text's identity that says what makes tokens of it."""

MOST_FILES = 1000
"""With more files than this, a text's groups are folders."""

MOST_CHANGES = 10
"""Changes that are told one by one."""


class Group(TypedDict):
    """The samples of a class, a file or the files of a folder: how many, and a hash of them in order."""

    count: int
    sha256: str


Identity = Mapping[str, Mapping[str, Group]]
"""Part, as the source gave it before splitting -> group (a class of images, a file of text) -> what it has."""


def group(hashes: Iterable[str | bytes]) -> Group:
    """A group of what these hashes (or anything else that tells samples apart) stand for, in order."""
    digest, count = hashlib.sha256(), 0
    for value in hashes:
        data = value.encode("utf-8", errors="surrogateescape") if isinstance(value, str) else value
        digest.update(len(data).to_bytes(8, "little") + data)
        count += 1
    return {"count": count, "sha256": digest.hexdigest()}


def group_files(hashes: Mapping[str, str]) -> dict[str, Group]:
    """Groups of files by their relative names and hashes: each file is one, or, of more than 1000, each folder."""
    if len(hashes) <= MOST_FILES:
        return {name: {"count": 1, "sha256": value} for name, value in hashes.items()}
    folders: dict[str, list[str]] = {}
    for name, value in hashes.items():
        folders.setdefault(str(PurePosixPath(name).parent), []).extend((name, value))
    found: dict[str, Group] = {}
    for name, values in folders.items():
        found[name] = {"count": len(values) // 2, "sha256": group(values)["sha256"]}
    return found


def identity_hash(identity: Identity | None) -> str:
    """One hash for all of it: equal exactly for data in which `changes` finds nothing."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def changes(before: Identity, now: Identity) -> list[str]:
    """What has changed between two identities of one preset's data, in words; empty if nothing has."""
    text = TOKENIZER in before or TOKENIZER in now
    found: list[str] = []
    for part in dict.fromkeys((*before, *now)):
        old, new = before.get(part), now.get(part)
        if part == TOKENIZER:
            found += [] if old == new else ["the tokenizer"]
        elif old is None or new is None:
            found.append(f"the part {part} is {'new' if old is None else 'gone'}")
        else:
            found += [f"{part}: {words}" for words in _group_changes(old, new, text)]
    more = len(found) - MOST_CHANGES
    return found if more <= 0 else [*found[:MOST_CHANGES], counted(more, "more change")]


def _group_changes(before: Mapping[str, Any], now: Mapping[str, Any], text: bool) -> Iterable[str]:
    unit = "documents" if text else "images"
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name), now.get(name)
        called = name if text else f"class {name}"
        if old == new:
            continue
        if old is None or new is None:
            yield f"{called} is {'new' if old is None else 'gone'}"
        elif old["count"] != new["count"]:
            yield f"{called} has {new['count']} {unit}, it had {old['count']}"
        else:
            yield f"{called} has changed" if text else f"other {unit} in {called}"
