"""Text parts: sources, splits, packing, tokenizers and their cache, metrics, and what bad data says."""

import math
import pickle
import sysconfig
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import preset_adapter
from fismo_cli.tasks import build_task, text_sources
from fismo_cli.tasks.text_sources import load_text

END = 256


def preset(**data):
    return preset_adapter.validate_python(
        {
            "task": "language-modelling",
            "model": {"library": "transformers", "name": "gpt2"},
            "data": {"source": "text-files", "block_size": 8, **data},
            "optimizer": {"name": "fismo"},
            "train": {"steps": 1},
        }
    )


def everything(part):
    return part.__getitems__([(0, index) for index in range(len(part))])


@pytest.fixture
def texts(tmp_path):
    """Forty files, each of one letter pair, some of it not ASCII."""
    folder = tmp_path / "texts"
    for i in range(40):
        path = folder / f"{i % 4}" / f"{i:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"document {i:02} says héllo\n" * (i + 1), encoding="utf-8")
    (folder / "readme.md").write_text("not text")
    return folder


def test_stdlib_source_is_recorded_and_split_by_document():
    task = build_task(preset(source="stdlib-source", block_size=256))
    record = task.description
    root = Path(sysconfig.get_paths()["stdlib"])
    assert record["file_count"] == len(record["files"]) > 100
    assert record["files"] == sorted(record["files"])
    assert not any({"test", "tests", "site-packages"} & set(name.split("/")) for name in record["files"])
    assert sum((root / name).stat().st_size for name in record["files"]) == record["bytes"]
    assert 2e6 < record["bytes"] <= 4e6
    assert len(record["sha256"]) == 64
    assert sum(record["documents"].values()) == record["file_count"]
    # Every byte is in exactly one part, and one end of text follows every file.
    assert sum(record["tokens"].values()) == record["bytes"] + record["file_count"]
    assert record["samples"]["train"] == (record["tokens"]["train"] - 1) // 256


def test_blocks_are_consecutive_and_targets_are_the_next_token(texts):
    task = build_task(preset(path=str(texts), validation_fraction=0, test_fraction=0))
    stream = list(chain.from_iterable([*path.read_bytes(), END] for path in sorted(texts.rglob("*.txt"))))
    batch = everything(task.train)
    count = (len(stream) - 1) // 8
    assert len(task.train) == count
    assert batch["inputs"].flatten().tolist() == stream[: 8 * count]
    assert batch["targets"].flatten().tolist() == stream[1 : 8 * count + 1]
    assert batch["inputs"].dtype == batch["targets"].dtype == torch.int64
    some = task.train.__getitems__([(3, 5), (0, 2)])
    assert torch.equal(some["inputs"], batch["inputs"][[5, 2]])
    keys = [[(0, 1), (0, 3)], [(1, 0)]]
    loader = DataLoader(task.train, batch_sampler=keys, num_workers=2, collate_fn=lambda batch: batch)
    assert torch.equal(torch.cat([b["targets"] for b in loader]), batch["targets"][[1, 3, 0]])


def read_all(documents):
    """The documents of a part, whole."""
    result, open_document = [], b""
    for data, last in documents.chunks():
        open_document += data
        if last:
            result.append(open_document)
            open_document = b""
    assert open_document == b""
    return result


def test_documents_are_split_without_leak_and_by_seed(texts):
    def split(seed):
        config = preset(path=str(texts), validation_fraction=0.2, test_fraction=0.1, split_seed=seed).data
        return {name: read_all(part) for name, part in load_text(config).parts.items()}

    first = split(0)
    assert {name: len(part) for name, part in first.items()} == {"train": 28, "validation": 8, "test": 4}
    assert sorted(chain.from_iterable(first.values())) == sorted(path.read_bytes() for path in texts.rglob("*.txt"))
    assert first == split(0)
    assert first != split(1)


@pytest.mark.parametrize("text", ["one line follows another\n" * 400, "é" * 4000, "x" * 5000])
def test_single_document_is_split_by_position(tmp_path, text):
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8", newline="")
    config = preset(path=str(path), validation_fraction=0.1, test_fraction=0.2).data
    parts = {name: b"".join(read_all(part)) for name, part in load_text(config).parts.items()}
    assert b"".join(parts[name] for name in ("train", "validation", "test")) == text.encode()
    for part in parts.values():
        part.decode()  # no character is cut in two
    assert len(parts["train"]) / len(text.encode()) == pytest.approx(0.7, abs=0.01)
    assert len(parts["test"]) / len(text.encode()) == pytest.approx(0.2, abs=0.01)


def test_long_documents_are_read_in_pieces_that_end_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(text_sources, "CHUNK_BYTES", 64)
    text = ("a line with ünïcödé\n" * 9) + "é漢" * 200 + "\nshort\n" + "end without a line break é"
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8", newline="")
    documents = load_text(preset(path=str(path), validation_fraction=0, test_fraction=0).data).parts["train"]
    pieces = list(documents.chunks())
    assert b"".join(data for data, _ in pieces) == text.encode()
    assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 5
    for data, _ in pieces:
        data.decode()
        assert len(data) <= 2 * 64 + 4


def test_text_files_may_be_a_pattern_or_a_list(texts):
    def files(path):
        return build_task(preset(path=path, validation_fraction=0, test_fraction=0)).description["files"]

    assert files(str(texts / "**" / "*.md")) == [str(texts / "readme.md")]
    assert files([str(texts / "readme.md"), str(texts / "1"), str(texts / "1" / "01.txt")]) == [
        str(texts / "readme.md"), *(str(texts / "1" / f"{i:02}.txt") for i in range(1, 40, 4))
    ]  # fmt: skip


class Constant(nn.Module):
    """Gives the same logits for every position, as transformers models do."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids, use_cache, labels=None):
        assert use_cache is False
        logits = self.logits.expand(*input_ids.shape, -1)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()) + 7.0
        return SimpleNamespace(logits=logits, loss=loss)


def test_bits_per_byte_is_exact_for_bytes(texts):
    task = build_task(preset(path=str(texts), validation_fraction=0, test_fraction=0))
    logits = torch.zeros(257)
    logits[END] = 2.0
    batch = everything(task.train)
    model = Constant(logits)
    metrics = task.metrics({name: value.item() for name, value in task.measure(model, batch).items()})
    ends = (batch["targets"] == END).sum().item()
    total = batch["targets"].numel()
    log_z = math.log(256 + math.exp(2))
    nats = log_z * total - 2 * ends
    assert metrics["loss"] == pytest.approx(nats / total, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / total), rel=1e-4)
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / (total - ends), rel=1e-5)
    assert task.training_loss(model, batch).item() == pytest.approx(nats / total + 7, rel=1e-5)  # the model's own
    assert task.metrics({"loss": 9e9, "tokens": 1.0, "bytes": 1.0})["perplexity"] == math.inf
    with torch.autocast("cpu", torch.bfloat16):
        assert task.measure(model, batch)["loss"].item() == pytest.approx(nats, rel=1e-2)


def test_transformers_tokenizer(texts, tokenizer_folder, tmp_path):
    from transformers import AutoTokenizer

    options = {"tokenizer": str(tokenizer_folder), "cache_dir": str(tmp_path / "cache")}
    task = build_task(preset(path=str(texts), validation_fraction=0, test_fraction=0, **options))
    reference = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    files = sorted(texts.rglob("*.txt"))
    stream = list(chain.from_iterable([*reference.encode(path.read_text("utf-8")), 0] for path in files))
    batch = everything(task.train)
    assert batch["inputs"].flatten().tolist() == stream[: batch["inputs"].numel()]
    assert task.model_args["vocab_size"] == len(reference)
    assert task.model_args["eos_token_id"] == 0
    # The part's bytes and tokens give the ratio.
    measured = task.measure(Constant(torch.zeros(len(reference))), batch)
    text_bytes = sum(path.stat().st_size for path in files)
    assert measured["bytes"].item() == pytest.approx(batch["targets"].numel() * text_bytes / len(stream))
    task.tokenizer.save(tmp_path)
    assert AutoTokenizer.from_pretrained(str(tmp_path)).encode("document") == reference.encode("document")
    copy = pickle.loads(pickle.dumps(task.train))
    assert torch.equal(everything(copy)["targets"], batch["targets"])
    assert len(pickle.dumps(task.train)) < 1000  # the path, not the tokens


def test_token_cache_is_reused_and_a_broken_one_is_not(texts, tokenizer_folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    config = preset(
        path=str(texts), tokenizer=str(tokenizer_folder), cache_dir=str(cache), validation_fraction=0, test_fraction=0
    )
    batch = everything(build_task(config).train)
    [tokens] = cache.glob("*.tokens")
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".tokens"]
    original = tokens.read_bytes()
    written = tokens.stat().st_mtime_ns
    assert torch.equal(everything(build_task(config).train)["inputs"], batch["inputs"])
    assert tokens.stat().st_mtime_ns == written

    damaged = bytearray(original)
    damaged[len(original) // 2] ^= 1
    for broken in (original[:-2], bytes(damaged), b""):
        tokens.write_bytes(broken)
        assert torch.equal(everything(build_task(config).train)["inputs"], batch["inputs"])
        assert tokens.read_bytes() == original
    tokens.with_suffix(".json").write_text('{"tokens": 3')
    assert torch.equal(everything(build_task(config).train)["inputs"], batch["inputs"])

    (texts / "0" / "00.txt").write_text("changed\n")
    build_task(config)
    assert len(list(cache.glob("*.tokens"))) == 2

    def fail(*_):
        raise KeyboardInterrupt

    (texts / "0" / "00.txt").write_text("changed again\n")
    monkeypatch.setattr(
        "fismo_cli.tasks.tokenizers.HubTokenizer.encode", lambda *_: iter([np.zeros(5, np.uint16), fail()])
    )
    with pytest.raises(KeyboardInterrupt):
        build_task(config)
    assert len(list(cache.iterdir())) == 4  # nothing partial is left


def test_huggingface_parquet_folder_and_saved_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [f"row {i} of the table\n" for i in range(50)]
    folder = tmp_path / "table"
    folder.mkdir()
    datasets.Dataset.from_dict({"content": rows}).to_parquet(str(folder / "train.parquet"))
    datasets.Dataset.from_dict({"content": rows[:5]}).to_parquet(str(folder / "test.parquet"))
    options = {"source": "huggingface", "text_column": "content", "validation_fraction": 0.2}
    task = build_task(preset(name="parquet", path=str(folder), **options))
    assert task.description["documents"] == {"train": 40, "validation": 10, "test": 5}
    text = bytes(token for token in everything(task.test)["inputs"].flatten().tolist() if token != END).decode()
    assert "".join(rows[:5]).startswith(text)
    assert len(text) > 80
    datasets.Dataset.from_dict({"content": rows}).save_to_disk(str(tmp_path / "saved"))
    task = build_task(preset(name=str(tmp_path / "saved"), test_fraction=0, **options))
    assert task.description["documents"] == {"train": 40, "validation": 10}
    with pytest.raises(UsageError, match="text_column: no column text; the data set has content"):
        build_task(preset(source="huggingface", name=str(tmp_path / "saved")))
    with pytest.raises(UsageError, match=r"splits.validation: .* has no split dev; it has train"):
        build_task(preset(name=str(tmp_path / "saved"), splits={"validation": "dev"}, **options))


def test_hub_names_without_network_are_one_sentence(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for data, words in (
        ({"source": "stdlib-source", "tokenizer": "somebody/some-tokenizer"}, "data.tokenizer"),
        ({"source": "huggingface", "name": "somebody/some-text"}, "data.name"),
    ):
        with pytest.raises(UsageError, match=rf"cannot be reached \({words}\)") as caught:
            build_task(preset(**data))
        assert "\n" not in str(caught.value)


def test_bad_input(tmp_path, texts):
    with pytest.raises(UsageError, match="is no file, no folder and matches no file"):
        build_task(preset(path=str(tmp_path / "none*")))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match="all files are empty"):
        build_task(preset(path=str(tmp_path / "empty.txt")))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"has no \*.txt files"):
        build_task(preset(path=str(tmp_path / "folder")))
    with pytest.raises(UsageError, match=r"part has [0-9]+ tokens in [0-9]+ documents, but one block needs 100001"):
        build_task(preset(path=str(texts), block_size=100_000))
    with pytest.raises(UsageError, match=r"test_fraction: 0.01 of 40"):
        build_task(preset(path=str(texts), test_fraction=0.01))
    with pytest.raises(UsageError, match=r"folder: cannot be loaded \(data.tokenizer\): it holds no tokenizer that"):
        build_task(preset(path=str(texts), tokenizer=str(tmp_path / "folder")))


def test_text_that_is_not_utf8_is_for_the_byte_tokenizer_only(tmp_path, tokenizer_folder):
    good = "größer\n".encode() * 300_000  # more than one piece is read
    (tmp_path / "a.txt").write_bytes(good)
    (tmp_path / "b.txt").write_bytes(good + "größer".encode("latin-1"))
    options = {"validation_fraction": 0, "test_fraction": 0, "cache_dir": str(tmp_path / "cache")}
    build_task(preset(path=str(tmp_path / "b.txt"), validation_fraction=0, test_fraction=0))
    with pytest.raises(UsageError, match=rf"b.txt: not UTF-8 at byte {len(good) + 2}; .* \(data.tokenizer: bytes\)"):
        build_task(preset(path=str(tmp_path / "b.txt"), tokenizer=str(tokenizer_folder), **options))
    assert not list((tmp_path / "cache").iterdir())


def test_a_binary_file_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 3_000_000 + b"\0b")
    with pytest.raises(UsageError, match=r"a.txt: not a text file \(byte 3000000 is NUL\)"):
        build_task(preset(path=str(tmp_path / "a.txt")))
