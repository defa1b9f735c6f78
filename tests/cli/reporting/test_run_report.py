"""The page and the tables of training runs, in whatever state they are."""

import json
import subprocess
import sys

import pytest

from fismo_cli.app import main
from fismo_cli.reporting.jsonl import JsonlSink
from fismo_cli.runs.directory import RunDirectory, write_json
from fismo_cli.runs.record import read_run
from fismo_cli.training.events import Evaluated, NoiseMeasured, RunStarted, StepLogged
from tests.end_to_end.conftest import browser, open_page

SUMMARY = {
    "preset": "p", "optimizer": "fismo", "seed": 0, "status": "completed", "reason": None, "steps": 20,
    "total_steps": 20, "resumed_from_step": None,
    "metrics": {"train": {"loss": 1.5}, "validation": {"loss": 1.25, "top1": 0.5}, "test": {"loss": None}},
    "seconds": 2.0, "optimizer_seconds": 0.5, "samples_per_second": 80.0, "noise_scale": None,
    "fisher_noise_scale": None, "peak_memory_bytes": 2**20, "optimizer_state_bytes": 2**19,
}  # fmt: skip


@pytest.fixture
def make_run(tmp_path):
    def make(name="r1", summary=None, steps=(10, 20), loss=1.5):
        run = RunDirectory(tmp_path / "runs" / "p" / name)
        run.path.mkdir(parents=True)
        run.preset.write_text("task: <image-classification>\n")
        sink = JsonlSink(run.metrics)
        sink.write(RunStarted("p", "fismo", 0, "cpu", 20, None, 99, 64, 160))
        for step in steps:
            sink.write(StepLogged(step, loss, {"matrix": 0.02 / step, "adamw": 1e-3}, 0.5, 8 * step, 80.0))
            sink.write(NoiseMeasured(step, 8, 1.0, 4.0, None if step == 10 else 4.0, None, {}))
        sink.write(Evaluated(step, "validation", {"loss": 1.25, "top1": 0.5}, 0.1, 2.0, True, 160))
        sink.close()
        if summary is not None:
            write_json(run.summary, {**SUMMARY, **summary})
        return run

    return make


def report(*arguments):
    with pytest.raises(SystemExit) as left:
        main(["report", *map(str, arguments)])
    return left.value.code


def traces(page):
    """Name of a figure -> the lines that plotly is asked to draw."""
    found = {}
    for part in page.read_text().split("Plotly.newPlot(")[1:]:
        name, rest = part.split(",", 1)
        found[json.loads(name)] = json.JSONDecoder().raw_decode(rest.strip())[0]
    return found


def test_the_page_of_one_run_draws_what_was_measured(make_run, capsys):
    run = make_run(summary={})
    assert report(run.path) == 0
    out, err = capsys.readouterr()
    assert "status      completed after 20 of 20 steps" in out
    assert "validation  loss 1.2500  top1 50.00 %" in out
    assert "test        loss not finite" in out
    assert f"report: {run.path / 'report.html'}" in out
    assert err == ""
    drawn = traces(run.path / "report.html")
    assert list(drawn) == ["loss", "validation-top1", "learning-rate", "gradient-norm", "gradient-noise", "seconds"]
    assert [(line["name"], line["y"]) for line in drawn["loss"]] == [("validation", [1.25]), ("training", [1.5, 1.5])]
    assert [line["name"] for line in drawn["learning-rate"]] == ["matrix", "adamw"]
    assert drawn["gradient-noise"][0]["y"] == [None, 4.0]
    assert (drawn["seconds"][0]["x"], drawn["seconds"][0]["y"]) == ([0, 10, 20], [0.0, 1.0, 2.0])
    assert "task: &lt;image-classification&gt;" in (run.path / "report.html").read_text()
    assert report(run.path, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {**SUMMARY, "run_dir": str(run.path), "report": str(run.path / "report.html")}
    assert "status" in err


def test_runs_that_have_not_ended_well_have_a_page_too(make_run, capsys):
    unfinished = make_run("killed", steps=(10,))
    with unfinished.metrics.open("a") as file:
        file.write('{"event": "StepLogged", "step": 2')  # the machine went off in the middle of a line
    assert report(unfinished.path) == 0
    assert "unfinished after 10 of 20 steps" in capsys.readouterr().out
    with unfinished.lock():
        assert read_run(unfinished.path).summary["status"] == "running"
        assert report(unfinished.path) == 0
    assert "running after 10 of 20 steps" in capsys.readouterr().out
    diverged = make_run("diverged", {"status": "diverged", "reason": "the loss is nan"}, loss=float("nan"))
    assert report(diverged.path) == 0
    assert "diverged after 20 of 20 steps: the loss is nan" in capsys.readouterr().out
    assert [line["name"] for line in traces(diverged.path / "report.html")["loss"]] == ["validation"]
    begun = RunDirectory(diverged.path.with_name("begun"))
    begun.path.mkdir()
    begun.preset.write_text("task: x\n")
    assert report(begun.path) == 0
    assert "unfinished after 0 steps" in capsys.readouterr().out
    assert "No step has been logged yet" in (begun.path / "report.html").read_text()


def test_several_runs_side_by_side(make_run, capsys):
    first, second = make_run("r1", {}), make_run("r2", {"optimizer": "muon", "seed": 3}, loss=1.75)
    assert report(first.path, second.path) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["r1", "r2"]
    assert "p with muon, seed 3" in out[1]
    page = first.path / "side-by-side.html"
    assert out[-1] == f"report: {page}"
    assert [line["name"] for line in traces(page)["loss"]] == [
        "r1 validation", "r1 training", "r2 validation", "r2 training",
    ]  # fmt: skip
    assert len({line["line"]["color"] for line in traces(page)["loss"]}) == 2
    assert report(first.path, second.path, "--json") == 0
    assert [run["optimizer"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["fismo", "muon"]


def test_a_reader_of_the_answer_that_leaves_is_no_failure(make_run):
    """As in `fismo report RUN | head -1`."""
    run = make_run(summary={})
    command = [sys.executable, "-m", "fismo_cli", "report", str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, "")
    assert (run.path / "report.html").is_file()


def test_what_is_no_run_is_refused(make_run, tmp_path, capsys):
    run = make_run(summary={})
    (tmp_path / "study" / "trials").mkdir(parents=True)
    for directories, message in [
        (
            [tmp_path / "nowhere"],
            "nowhere: not a directory of fismo train, fismo tune or fismo compare (there is no su",
        ),
        ([tmp_path], "(it has no preset.yaml, trials or plan.json); give a run (runs/PRESET/NAME), a study"),
        ([run.path, tmp_path / "study"], "study: several directories must be runs of fismo train, all of them"),
    ]:
        assert report(*directories) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert out == ""
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.slow
def test_the_page_in_a_browser(make_run):
    first, second = make_run("r1", {}), make_run("r2", {"optimizer": "muon"}, loss=1.75)
    assert report(first.path) == 0
    assert report(first.path, second.path) == 0
    with browser() as driver:
        for name, lines, figures in (("report.html", 2, 6), ("side-by-side.html", 4, 7)):
            assert open_page(driver, first.path / name, figures, "#loss", least=lines) == lines
            assert "completed after 20 of 20 steps" in driver.find_element("css selector", "table").text
        assert driver.get_log("browser") == []
