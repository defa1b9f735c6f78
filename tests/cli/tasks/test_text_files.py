"""Which files are text, and what text becomes: what is left out is said, what looks like a special token is text."""

import codecs
import json
import os

import numpy as np
import pytest

from fismo_cli.errors import UsageError
from fismo_cli.tasks import build_task
from fismo_cli.tasks.text_files import find_text_files
from fismo_cli.tasks.text_sources import load_text
from tests.cli.tasks.test_text import END, preset, read_all

WHOLE = {"validation_fraction": 0, "test_fraction": 0}


def names(*patterns):
    return list(find_text_files(map(str, patterns))[0].values())


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_hidden_files_are_no_text_unless_they_are_named(tmp_path):
    hidden = {".c.txt": "c", "sub/.ipynb_checkpoints/b.txt": "b", ".git/x.txt": "x"}
    folder = write(tmp_path / ".data", {"a.txt": "a", "sub/b.txt": "b", **hidden})
    # The folder that is named may be hidden itself.
    assert names(folder) == ["a.txt", "sub/b.txt"]
    assert names(folder / "**" / "*.txt") == ["a.txt", "sub/b.txt"]
    assert names(folder / ".*.txt") == [".c.txt"]
    assert names(folder / "sub" / ".ipynb_checkpoints" / "*.txt") == ["b.txt"]
    assert names(folder / ".c.txt", folder) == [".c.txt", "a.txt", "sub/b.txt"]


def test_what_a_folder_leaves_out_is_counted_by_kind(tmp_path):
    folder = write(
        tmp_path / "texts", dict.fromkeys(["a.txt", "b.TXT", "c.md", "d.md", "e.json", "f.JSON", "README"], "x")
    )
    found, notes = find_text_files([str(folder)])
    assert list(found.values()) == ["a.txt", "b.TXT"]
    [note] = notes
    assert note.startswith(f"{folder}: 2 .txt files are the text; left out ")
    assert sorted(note.partition("left out ")[2].partition(". For")[0].split(", ")) == [
        "1 without an ending", "2 .json", "2 .md"
    ]  # fmt: skip
    for path in found:
        path.unlink()
    with pytest.raises(UsageError, match=r"has no \*.txt files \(it has 2 .*such as .*/\*\*/\*.md"):
        find_text_files([str(folder)])
    write(tmp_path, {"only/folders/x.txt": "x"})
    with pytest.raises(UsageError, match="matches no file, only folders"):
        find_text_files([str(tmp_path / "only" / "*")])


def test_links_are_followed_once_and_a_link_to_nothing_is_named(tmp_path):
    folder = write(tmp_path / "texts", {"a.txt": "a"})
    write(tmp_path / "elsewhere", {"b.txt": "b"})
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "around").symlink_to(folder)
    assert names(folder) == ["a.txt", "linked/b.txt"]
    (folder / "c.txt").symlink_to("annexed")
    with pytest.raises(UsageError, match=r"c.txt is a link to annexed, which is not there"):
        names(folder)


def test_names_do_not_depend_on_the_place_and_are_unique(tmp_path):
    one, two = write(tmp_path / "one", {"a.txt": "a", "b.txt": "b"}), write(tmp_path / "two", {"a.txt": "c"})
    assert names(one, two, two / "a.txt") == ["a.txt", "b.txt", "two/a.txt"]
    assert names(one / "a.txt", two / "*.txt") == ["a.txt", "two/a.txt"]
    config = preset(path=[str(one), str(two)], block_size=2, **WHOLE).data
    identity = load_text(config).identity
    moved = (tmp_path / "moved").absolute()
    moved.mkdir()
    os.utime(one.rename(moved / "one") / "a.txt", (1, 1))
    two.rename(moved / "two")
    moved_config = preset(path=[str(moved / "one"), str(moved / "two")], block_size=2, **WHOLE).data
    assert load_text(moved_config).identity == identity
    (moved / "one" / "a.txt").write_text("x")
    assert load_text(moved_config).identity != identity


def test_marks_of_encodings(tmp_path, tokenizer_folder):
    marked = codecs.BOM_UTF8 + "größer\r\n".encode()
    source = load_text(preset(path=str(write(tmp_path / "a", {"a.txt": marked})), **WHOLE).data)
    assert read_all(source.parts["train"]) == ["größer\r\n".encode()]  # line ends are left as they are
    assert source.record["bytes"] == len(marked) - 3
    for encoding, called in (("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-be", "UTF-16")):
        data = codecs.BOM_UTF16_BE if encoding.endswith("be") else b""
        folder = write(tmp_path / encoding, {"a.txt": data + "text".encode(encoding)})
        with pytest.raises(UsageError, match=rf"a.txt: {called} text; convert it by iconv -f {called} -t UTF-8"):
            load_text(preset(path=str(folder), **WHOLE).data)
    options = {"tokenizer": str(tokenizer_folder), "cache_dir": str(tmp_path / "cache"), **WHOLE}
    folder = write(tmp_path / "crlf", {"a.txt": codecs.BOM_UTF8 + b"one\r\ntwo\r\n" * 9})
    task = build_task(preset(path=str(folder), block_size=2, **options))
    tokens = [*task.train.stream.tokens]
    assert task.tokenizer._tokenizer.decode(tokens[:-1]) == "one\r\ntwo\r\n" * 9


def test_empty_files_are_left_out_and_said(tmp_path):
    folder = write(tmp_path, {"a.txt": "text" * 9, "b.txt": "", "c.txt": codecs.BOM_UTF8})
    task = build_task(preset(path=str(folder), **WHOLE))
    assert task.train.stream.tokens.tolist().count(END) == 1
    assert task.notes == (f"left out 2 empty files ({folder}/b.txt, {folder}/c.txt)",)


def test_the_same_file_in_two_parts_is_said(tmp_path):
    folder = write(tmp_path, {f"{name}.txt": f"document {name} " * 9 for name in "abcdefg"})
    fractions = {"validation_fraction": 0.25, "test_fraction": 0.25}
    assert build_task(preset(path=str(folder), **fractions)).notes == ()
    (folder / "z.txt").write_bytes((folder / "a.txt").read_bytes())
    told = set()
    for split_seed in range(9):
        config = preset(path=str(folder), split_seed=split_seed, **fractions)
        parts = load_text(config.data).parts
        of = {span.path.name: name for name, part in parts.items() for span in part.spans}
        notes = build_task(config).notes
        assert len(notes) == (of["a.txt"] != of["z.txt"])
        assert all(str(folder / name) in note and of[name] in note for note in notes for name in ("a.txt", "z.txt"))
        told.add(len(notes))
    assert told == {0, 1}


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder = write(tmp_path, {"a.txt": "text" * 9, "b.txt": "text" * 9})
    opened = type(folder).open

    def refusing(path, *arguments, **named):
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(type(folder), "open", refusing)
    with pytest.raises(UsageError, match=r"b.txt: cannot be read \(Permission denied\)"):
        build_task(preset(path=str(folder), **WHOLE))


def test_a_place_that_cannot_be_looked_at_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"data.path: .*xxx cannot be read \(File name too long\)"):
        find_text_files([str(tmp_path / ("x" * 300))])


def test_the_vocabulary_is_the_largest_id_plus_one(tmp_path, tokenizer_folder):
    content = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    gap = tmp_path / "gap"
    gap.mkdir()
    (gap / "tokenizer_config.json").write_bytes((tokenizer_folder / "tokenizer_config.json").read_bytes())
    changed = json.loads(content)
    changed["added_tokens"][0]["id"] = changed["model"]["vocab"]["<eos>"] = 70_000
    (gap / "tokenizer.json").write_text(json.dumps(changed))
    folder = write(tmp_path / "texts", {"a.txt": "document says\n" * 9})
    task = build_task(preset(path=str(folder), tokenizer=str(gap), cache_dir=str(tmp_path / "cache"), **WHOLE))
    assert task.model_args["vocab_size"] == 70_001
    assert task.train.stream.tokens.dtype == np.uint32
    assert task.train.stream.tokens[-1] == task.model_args["eos_token_id"] == 70_000


def test_what_spells_a_special_token_is_text(tmp_path, tokenizer_folder):
    text = "document <eos> says <eos>\n"
    folder = write(tmp_path / "texts", {"a.txt": text * 3, "b.txt": text})
    config = preset(
        path=str(folder), tokenizer=str(tokenizer_folder), cache_dir=str(tmp_path / "cache"), block_size=2, **WHOLE
    )
    for _ in range(2):  # made, and from the cache
        task = build_task(config)
        tokens = task.train.stream.tokens.tolist()
        end = task.tokenizer.end
        assert tokens.count(end) == 2
        assert tokens.index(end) > 20
        assert task.tokenizer._tokenizer.decode(tokens[: tokens.index(end)]) == text * 3
        assert task.notes == (
            "the text of the train part spells special tokens in 8 places (<eos> 8): that stays text; an end of text "
            "follows each document (text-files: each file)",
        )


def test_a_tokenizer_that_cannot_keep_text_and_special_tokens_apart_says_so(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "▁abcdefghijk")]
    unigram = Tokenizer(models.Unigram(pieces, unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    saved = tmp_path / "unigram"
    PreTrainedTokenizerFast(tokenizer_object=unigram, eos_token="</s>", unk_token="<unk>").save_pretrained(saved)
    folder = write(tmp_path / "texts", {"a.txt": "abc </s> def ?? " * 4})
    task = build_task(
        preset(path=str(folder), tokenizer=str(saved), cache_dir=str(tmp_path / "c"), block_size=2, **WHOLE)
    )
    ends = task.train.stream.tokens.tolist().count(1)
    assert ends > 1
    assert f"makes special tokens of {ends - 1} places in the text of the train part" in task.notes[1]


def test_a_tokenizer_is_known_by_what_it_does(tmp_path, tokenizer_folder):
    from tokenizers import normalizers
    from transformers import AutoTokenizer

    from fismo_cli.tasks.tokenizers import ByteTokenizer, HubTokenizer

    first = HubTokenizer(str(tokenizer_folder))
    AutoTokenizer.from_pretrained(str(tokenizer_folder)).save_pretrained(tmp_path / "copy")
    other = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    other.save_pretrained(tmp_path / "other")
    assert first.identity() == HubTokenizer(str(tmp_path / "copy")).identity()
    assert len({first.identity(), HubTokenizer(str(tmp_path / "other")).identity(), ByteTokenizer().identity()}) == 3


def test_rows_without_text_are_left_out_and_the_rows_are_what_a_data_set_is_known_by(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [None, "", *(f"row {i} of the table, größer\n" for i in range(30)), None]
    options = {"source": "huggingface", "block_size": 4, **WHOLE}

    def saved(name, values, **how):
        datasets.Dataset.from_dict({"text": values, "other": list(range(len(values)))}).save_to_disk(
            str(tmp_path / name), **how
        )
        return build_task(preset(name=str(tmp_path / name), **options))

    task = saved("one", rows)
    assert task.description["documents"] == {"train": 30}
    assert task.notes == ("left out 3 of 33 rows of the train part: no text",)
    tokens = task.train.stream.tokens
    assert bytes(tokens[tokens != END].astype(np.uint8)).decode() == "".join(filter(None, rows))
    identity = task.description["identity"]["train"]
    assert identity["text"]["count"] == 33
    # The same rows in other files are the same data; None is not the empty text; other rows are others.
    assert saved("two", rows, num_shards=3).description["identity"]["train"] == identity
    assert saved("three", ["", "", *rows[2:]]).description["identity"]["train"] != identity
    assert saved("four", [*rows[:2], "row", " 0", *rows[4:]]).description["identity"]["train"] != identity
    chosen = datasets.Dataset.from_dict({"text": [*rows, "more"]}).select(range(33))
    chosen.save_to_disk(str(tmp_path / "five"))
    assert build_task(preset(name=str(tmp_path / "five"), **options)).description["identity"]["train"] == identity
    with pytest.raises(UsageError, match="no rows with text"):
        saved("six", ["", None])
