"""Runs after training: `fismo runs`, names, `latest`, and `results.csv`."""

import csv
import json
import shutil

import pytest

from fismo_cli.app import main
from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.directory import RunDirectory, link_latest
from fismo_cli.runs.execution import execute
from fismo_cli.runs.record import read_run
from fismo_cli.runs.results_csv import write_results

SHORT = ["train.epochs=null", "train.steps=4", "train.log_every=2", "evaluate.every=2", "train.noise_every=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("here") / "runs"
    for name, changes in {"one": [], "two": ["optimizer.name=adamw"], "three": ["train.seed=3"]}.items():
        overrides = [*SHORT, *changes, "optimizer.lr=0.01"]
        execute(load_preset("digits-vit", overrides), runs_dir=root, name=name, link=True)
    (root / "digits-vit" / "two" / "summary.json").unlink()
    (root / "digits-vit" / "broken").mkdir()
    (root / "digits-vit" / "broken" / "preset.yaml").write_text("}")
    return root


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(list(map(str, arguments)))
    return leaving.value.code, *capsys.readouterr()


def listed(capsys, *arguments):
    code, out, err = command(capsys, "runs", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)["runs"]


def test_runs_are_listed_once_whatever_links_lead_to_them(root, capsys):
    found = listed(capsys, root)
    assert sorted(run["path"].rsplit("/", 1)[1] for run in found) == ["broken", "one", "three", "two"]
    by_name = {run["path"].rsplit("/", 1)[1]: run for run in found}
    summary = json.loads((root / "digits-vit" / "one" / "summary.json").read_text())
    one = by_name["one"]
    assert one["metrics"] == summary["metrics"]["validation"]
    assert (one["status"], one["steps"], one["optimizer"], one["seed"]) == ("completed", 4, "fismo", 0)
    two = by_name["two"]
    assert (two["status"], two["steps"], two["optimizer"], two["seconds"]) == ("unfinished", 4, "adamw", None)
    assert by_name["broken"]["status"] == "unfinished"


def test_runs_are_chosen_and_sorted(root, capsys):
    best = listed(capsys, root, "--sort", "loss")
    values = [run["metrics"]["loss"] for run in best if run["metrics"]]
    assert values == sorted(values)
    assert best[-1]["metrics"] == {}
    highest = [run["metrics"]["top1"] for run in listed(capsys, root, "--sort", "top1") if run["metrics"]]
    assert highest == sorted(highest, reverse=True)
    assert [run["seed"] for run in listed(capsys, root, "--optimizer", "adamw")] == [0]
    assert len(listed(capsys, root, "--status", "completed", "--last", "1")) == 1
    assert listed(capsys, root / "latest")[0]["seed"] == 3
    assert command(capsys, "runs", root, "--preset", "other")[1:] == ("", "no such run among 4\n")
    code, _, err = command(capsys, "runs", root, "--sort", "nonsense")
    assert (code, err) == (2, "error: --sort nonsense: these runs have loss, top1, top5\n")
    assert command(capsys, "runs", root / "nowhere")[0] == 2
    code, out, _ = command(capsys, "runs", root, "--status", "completed")
    assert code == 0
    assert " ".join(out.splitlines()[0].split()) == "run optimizer status steps loss top1 top5 time written"


def test_latest_leads_to_the_newest_run(root, tmp_path):
    assert (root / "latest").resolve() == (root / "digits-vit" / "three").resolve()
    assert not (root / "latest").readlink().is_absolute()
    link_latest(RunDirectory(root / "digits-vit" / "two"), root)
    assert (root / "latest" / "preset.yaml").samefile(root / "digits-vit" / "two" / "preset.yaml")
    link_latest(RunDirectory(root / "digits-vit" / "three"), root)
    taken = tmp_path / "latest"
    taken.mkdir()
    (tmp_path / "p" / "run").mkdir(parents=True)
    link_latest(RunDirectory(tmp_path / "p" / "run"), tmp_path)
    assert taken.is_dir()
    assert not taken.is_symlink()


def test_a_name_that_is_taken_or_no_name_is_refused_before_anything_is_written(root, capsys):
    before = sorted(root.rglob("*"))
    for name, reason in (("one", "is there already"), ("a/b", "must be of letters"), ("latest", "not be latest")):
        code, _, err = command(capsys, "train", "digits-vit", "--name", name, "--runs-dir", root)
        assert code == 2
        assert reason in err
    code, _, err = command(capsys, "train", "digits-vit", "--name", "x", "--resume", root / "latest")
    assert (code, "keeps its name" in err) == (2, True)
    assert sorted(root.rglob("*")) == before


def test_a_named_run_is_found_again_by_its_name_alone(root, tmp_path):
    loaded = load_preset("digits-vit", [*SHORT, "checkpoint.every=2"])
    for name in ("first", "second"):
        summary = execute(loaded, runs_dir=tmp_path, name=name)
        (tmp_path / "digits-vit" / name / "summary.json").unlink()
    again = execute(loaded, runs_dir=tmp_path, name="first", resume="auto")
    assert again["run_dir"].endswith("/first")
    assert again["resumed_from_step"] == 4
    assert again["metrics"] == summary["metrics"]
    with pytest.raises(UsageError, match="is there already, and cannot be continued"):
        execute(loaded, runs_dir=tmp_path, name="first", resume="auto")
    with pytest.raises(UsageError, match="is there already; choose another name"):  # two at the same time
        execute(loaded, runs_dir=tmp_path, name="first")
    again_by_torchrun = execute(loaded, runs_dir=tmp_path, name="first", resume="auto", attempt=1)
    assert again_by_torchrun["run_dir"].endswith("/first-2")
    new = execute(loaded, runs_dir=tmp_path, name="third", resume="auto")
    assert (new["run_dir"].rsplit("/", 1)[1], new["resumed_from_step"]) == ("third", None)


def test_results_csv_has_what_metrics_jsonl_has(root):
    run = RunDirectory(root / "digits-vit" / "one")
    events = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    rows = list(csv.DictReader(run.results.open()))
    logged = [event for event in events if event["event"] == "StepLogged"]
    assert [float(row["train_loss"]) for row in rows] == [event["loss"] for event in logged]
    assert [float(row["lr_matrix"]) for row in rows] == [event["lr"]["matrix"] for event in logged]
    for split in ("validation", "test"):
        evaluated = [event for event in events if event["event"] == "Evaluated" and event["split"] == split]
        measured = {event["step"]: event["metrics"]["top1"] for event in evaluated}
        assert {int(row["step"]): float(row[f"{split}_top1"]) for row in rows if row[f"{split}_top1"]} == measured
    run.results.unlink()
    write_results(read_run(run.path))
    assert list(csv.DictReader(run.results.open())) == rows


def test_a_picture_of_two_runs(root, tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("kaleido")
    runs = [root / "digits-vit" / name for name in ("one", "three")]
    code, _, err = command(capsys, "report", *runs, "--png", tmp_path / "runs.png")
    if "Chrome or Chromium" in err:
        pytest.skip("no browser on this machine")
    assert code == 0, err
    with Image.open(tmp_path / "runs.png") as image:
        assert image.width == 2240
        assert len(image.convert("L").getcolors()) > 20
    assert command(capsys, "report", runs[0], "--png", tmp_path / "runs.jpg")[0] == 2
    copy = shutil.copytree(runs[0], tmp_path / "copy")
    (copy / "report.html").unlink(missing_ok=True)
    assert command(capsys, "report", copy, "--png", tmp_path / "runs.png" / "no-folder.png")[0] == 1
    assert not (copy / "report.html").exists()
