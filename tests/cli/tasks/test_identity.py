"""By what data is known, and what is said when it has changed."""

import json

from fismo_cli.tasks.identity import changes, group, group_files, identity_hash


def images(**classes):
    return {"train": {name: {"count": count, "sha256": sha} for name, (count, sha) in classes.items()}}


def test_changes_of_images_in_words():
    before = {**images(cat=(24, "a"), dog=(24, "b"), fox=(3, "c")), "test": {}}
    now = {**images(cat=(25, "d"), dog=(24, "e"), hen=(3, "c")), "validation": {}}
    assert changes(before, now) == [
        "train: class cat has 25 images, it had 24",
        "train: other images in class dog",
        "train: class fox is gone",
        "train: class hen is new",
        "the part test is gone",
        "the part validation is new",
    ]
    assert changes(now, json.loads(json.dumps(now, sort_keys=True))) == []
    assert identity_hash(now) == identity_hash(json.loads(json.dumps(now, sort_keys=True)))
    assert identity_hash(now) != identity_hash(before) != identity_hash(None)


def test_changes_of_text_in_words_and_at_most_ten_of_them():
    before = {"text": group_files({f"{i}.txt": "x" for i in range(20)}), "tokenizer": group_files({"": "t"})}
    now = {"text": group_files({f"{i}.txt": "xy"[i > 2] for i in range(1, 20)}), "tokenizer": group_files({"": "u"})}
    found = changes(before, now)
    assert found[:2] == ["text: 0.txt is gone", "text: 3.txt has changed"]
    assert found[10:] == ["9 more changes"]
    assert changes({"tokenizer": before["tokenizer"]}, {"tokenizer": now["tokenizer"]}) == ["the tokenizer"]


def test_many_files_are_known_by_their_folders():
    files = {f"{'ab'[i % 2]}/{i}.txt": str(i) for i in range(1002)}
    before = group_files(files)
    assert {name: entry["count"] for name, entry in before.items()} == {"a": 501, "b": 501}
    text = {"text": before, "tokenizer": {}}
    moved = {name.replace("a/0.txt", "a/00.txt"): value for name, value in files.items()}
    assert changes(text, {**text, "text": group_files(moved)}) == ["text: a has changed"]
    more = {**files, "b/new.txt": "?"}
    assert changes(text, {**text, "text": group_files(more)}) == ["text: b has 502 documents, it had 501"]
    # Where one name ends and the next begins counts.
    assert group(["ab", "c"])["sha256"] != group(["a", "bc"])["sha256"]
    group(["caf\udce9.png"])  # a name that is not UTF-8
