"""Recall, precision and what is confused, against scikit-learn; in the files, the page and the answer of a run."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fismo_cli.app import main
from fismo_cli.preset.loading import load_preset
from fismo_cli.reporting.class_report import class_sections
from fismo_cli.runs.class_counts import ClassCounts, classes_document, read_classes
from fismo_cli.runs.directory import RunDirectory, write_json
from fismo_cli.runs.preparation import prepare
from fismo_cli.runs.record import RunRecord
from fismo_cli.tasks.base import CONFUSION
from fismo_cli.tasks.images import ImageTask
from fismo_cli.training.checkpoints.store import CheckpointStore

SMALL = ["train.epochs=null", "train.steps=12", "evaluate.every=4", "checkpoint.every=4", "checkpoint.keep=9"]


def guesses(classes, samples=400):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes - 1, samples)  # of the last class there is none
    return labels, np.where(rng.random(samples) < 0.6, labels, rng.integers(0, classes, samples))


def test_recall_and_precision_are_those_of_scikit_learn():
    labels, taken_for = guesses(5)
    matrix = confusion_matrix(labels, taken_for, labels=range(5))
    rows = ClassCounts.from_matrix("abcde", matrix).rows
    precision, recall, _, support = precision_recall_fscore_support(
        labels, taken_for, labels=range(5), zero_division=np.nan
    )
    assert [row.support for row in rows] == support.tolist()
    assert [row.precision for row in rows] == pytest.approx(precision.tolist())
    assert rows[4].recall is None
    assert [row.recall for row in rows[:4]] == pytest.approx(recall[:4].tolist())


def test_the_most_confused_pairs_come_first_and_files_keep_all(tmp_path):
    counts = ClassCounts.from_matrix(("a", "b", "c"), [[5, 1, 0], [4, 6, 0], [0, 1, 0]])
    most = counts.most_confused(2)
    assert [(pair.name, pair.taken_for, pair.count, pair.share) for pair in most] == [
        ("b", "a", 4, 0.4), ("a", "b", 1, 1 / 6),
    ]  # fmt: skip
    write_json(tmp_path / "classes.json", classes_document({"test": counts}))
    assert read_classes(tmp_path / "classes.json") == {"test": counts}
    for broken in ('{"test": 3}', '{"test": {"classes": [{"class": "a"}], "confusion": [[0, 1, 2]]}}', "{"):
        (tmp_path / "classes.json").write_text(broken)
        assert read_classes(tmp_path / "classes.json") == {}


def test_the_sums_of_batches_are_the_matrix():
    task = ImageTask(train=None, validation=None, test=None, classes=tuple("0123456789"))
    labels, taken_for = guesses(10)
    logits = torch.nn.functional.one_hot(torch.from_numpy(taken_for), 10).float()
    total = torch.zeros(10, 10, dtype=torch.float64)
    for part in (slice(0, 150), slice(150, 400)):
        batch = {"images": logits[part], "labels": torch.from_numpy(labels[part])}
        total += task.measure(torch.nn.Identity(), batch)[CONFUSION]
    assert np.array_equal(total, confusion_matrix(labels, taken_for, labels=range(10)))


def test_they_are_the_final_model_s_also_if_it_is_the_best_or_its_evaluation_was_before_a_resumption(tmp_path):
    loaded = load_preset("digits-vit", [*SMALL, "train.final_model=best", "train.schedule.name=constant"])
    store = CheckpointStore(tmp_path, keep=9)
    trainer = prepare(loaded).trainer
    summary = list(trainer.fit(store))[-1].summary
    assert accuracies(trainer) == pytest.approx(
        {part: summary["metrics"][part]["top1"] for part in ("validation", "test")}
    )
    again = prepare(loaded).trainer
    assert list(again.fit(store, store.load(12)))[-1].summary["metrics"] == summary["metrics"]
    assert all(torch.equal(matrix, trainer.confusions[part]) for part, matrix in again.confusions.items())
    assert len(again.confusions) == 2


def accuracies(trainer):
    return {part: float(matrix.trace() / matrix.sum()) for part, matrix in trainer.confusions.items()}


def test_a_run_its_evaluation_and_its_page_say_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("train", "digits-vit", *SMALL, "checkpoint.every=null", "--name", "a") == 0
    run = RunDirectory(tmp_path / "runs" / "digits-vit" / "a")
    saved = json.loads(run.classes.read_text())
    capsys.readouterr()
    assert call("evaluate", run.path, "--per-class", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["classes"] == saved
    assert "test: most confused" in err
    top1 = json.loads(run.summary.read_text())["metrics"]["test"]["top1"]
    test = read_classes(run.classes)["test"]
    assert sum(row.support * row.recall for row in test.rows) / 359 == pytest.approx(top1)
    assert call("report", run.path) == 0
    page = (run.path / "report.html").read_text()
    assert "Classes: test" in page
    assert '"confusion-test"' in page
    (tmp_path / "x.txt").write_text("some words to learn from\n" * 200)
    text = ["data.source=text-files", "data.path=x.txt", "train.steps=1", "data.block_size=16", "train.batch_size=2"]
    assert call("train", "stdlib-gpt2", *text, "model.args={n_layer: 1, n_embd: 8, n_head: 2}", "--name", "b") == 0
    run = RunDirectory(tmp_path / "runs" / "stdlib-gpt2" / "b")
    assert not run.classes.exists()
    assert call("evaluate", run.path, "--per-class") == 2
    assert "the task language-modelling has no classes" in capsys.readouterr().err


def call(*arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


@pytest.mark.parametrize("classes", [2, 1000])
def test_the_page_can_be_read_for_two_classes_and_for_a_thousand(tmp_path, classes):
    names = [f"<{number}>" for number in range(classes - 1)] + ["a class with a long name in the end"]
    matrix = np.eye(classes, dtype=int) * 5
    matrix[0, 1] = 3
    write_json(
        RunDirectory(tmp_path).classes, classes_document({"test": ClassCounts.from_matrix(names, matrix.tolist())})
    )
    page = "".join(class_sections({"a": RunRecord(tmp_path, {}, ())}))
    assert ("confusion-test" in page) == (classes == 2)
    assert ("in the end" in page.replace(names[-1], "")) == (classes == 2)  # shortened at the axes
    taken_for = "&lt;1&gt;" if classes > 2 else names[-1]
    assert f"<td>&lt;0&gt;</td><td>{taken_for}</td><td>3</td><td>37.50 %</td>" in page
    assert page.count("<tr>") == (1 + 2 + 1 + 1 if classes == 2 else 1 + 20 + 1 + 1000 + 1 + 1)
    assert "".join(class_sections({"a": RunRecord(tmp_path, {}, ()), "b": RunRecord(tmp_path, {}, ())})) == ""
