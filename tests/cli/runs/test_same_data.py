"""A run is held to the data that it began with: resumed, measured again, in one process or several."""

import json
import shutil
from pathlib import Path

import pytest

from fismo_cli.app import main
from fismo_cli.errors import DataError, ExitCode, FismoError, UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs import execution
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.measuring import measure
from fismo_cli.runs.same_data import data_of_run
from fismo_cli.tasks.identity import changes

PRESET = """task: language-modelling
model: {library: transformers, name: gpt2, args: {n_layer: 1, n_embd: 16, n_head: 2, n_positions: 16}}
data: {source: text-files, path: text, block_size: 16, validation_fraction: 0.2, test_fraction: 0.2}
optimizer: {name: sgd, lr: 0.1}
train: {steps: 4, batch_size: 2, threads: 1}
checkpoint: {every: 2}
"""


class CutOff(BaseException):
    """The process is killed."""


class CuttingOff:
    """After the first checkpoint."""

    def write(self, event):
        if type(event).__name__ == "CheckpointSaved":
            raise CutOff


class Told(list):
    """The notes of a run."""

    def write(self, event):
        if type(event).__name__ == "Noticed":
            self.append(event.message)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a preset, ten small texts, and a run that was cut off after a checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    for i in range(10):
        Path("text", f"{i}.txt").write_text(f"document {i} says this and that\n" * 9)
    Path("tiny.yaml").write_text(PRESET)
    with pytest.raises(CutOff):
        execution.execute(load_preset("tiny.yaml"), runs_dir=Path("runs"), sinks=[CuttingOff()])
    return tmp_path


def the_run():
    (path,) = (preset.parent for preset in Path("runs").glob("*/*/preset.yaml"))
    return RunDirectory(path)


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_run_whose_data_has_changed_is_not_resumed_unless_that_is_allowed(place):
    loaded, run = load_preset("tiny.yaml"), the_run()
    shutil.copy("text/0.txt", "text/zzz.txt")
    with Path("text/3.txt").open("a") as file:
        file.write("more")
    before = contents("runs")
    words = "text: 3.txt has changed; text: zzz.txt is new"
    for resume in (str(run.path), "auto"):
        with pytest.raises(DataError, match=words) as caught:
            execution.execute(loaded, runs_dir=Path("runs"), resume=resume)
        assert caught.value.exit_code == ExitCode.USAGE
        assert "--allow-changed-data" in str(caught.value)
        assert contents("runs") == before  # nor did auto start another run
    told = Told()
    arguments = {"runs_dir": Path("runs"), "resume": "auto", "allow_changed_data": True}
    with pytest.raises(CutOff):
        execution.execute(loaded, **arguments, sinks=[told, CuttingOff()])
    assert any(words in note for note in told)
    # From now on it is held to what it went on with.
    told = Told()
    summary = execution.execute(loaded, runs_dir=Path("runs"), resume=str(run.path), sinks=[told])
    assert summary["status"] == "completed"
    assert not any("has changed" in note for note in told)
    first, second = json.loads(run.environment.read_text())["resumed"]
    assert (first["changed_data"], second["changed_data"]) == (words.split("; "), [])


def test_what_else_makes_other_data(place, tokenizer_folder):
    from fismo_cli.tasks import build_task

    def identity(*overrides):
        return build_task(load_preset("tiny.yaml", overrides).preset).description["identity"]

    own = identity()
    assert changes(own, identity("data.split_seed=3", "data.block_size=8", "data.workers=1")) == []
    tokenizer = [f"data.tokenizer={tokenizer_folder}", f"data.cache_dir={place / 'cache'}"]
    assert changes(own, identity(*tokenizer)) == ["the tokenizer"]
    stdlib = identity("data.source=stdlib-source", "data.path=null")
    assert changes(stdlib, json.loads(json.dumps(stdlib))) == []
    assert str(place) not in json.dumps([own, stdlib])


def test_a_run_goes_on_with_its_data_in_another_place(place):
    run = the_run()
    shutil.copytree("text", "new place")
    Path("text").rename("gone")
    again = load_preset(str(run.preset), ["data.path=new place"])
    Path("new place/3.txt").write_text("other words\n" * 9)
    with pytest.raises(DataError, match=r"text: 3\.txt has changed"):
        execution.execute(again, runs_dir=Path("runs"), resume=str(run.path))
    assert load_preset(str(run.preset)).preset.data.path == "text"
    shutil.copy("gone/3.txt", "new place/3.txt")
    for override in ("data.block_size=8", "data.path=[new place]"):  # several have an order
        other = load_preset(str(run.preset), ["data.path=new place", override])
        with pytest.raises(UsageError, match=rf"differs from this one in {override.split('=')[0]} \("):
            execution.execute(other, runs_dir=Path("runs"), resume=str(run.path))
    summary = execution.execute(again, runs_dir=Path("runs"), resume=str(run.path))
    measured = measure(run.path, load_preset(str(run.preset)))
    assert measured["test"].metrics == pytest.approx(summary["metrics"]["test"])


def test_exit_codes_for_users_and_for_studies(place, capsys):
    run = the_run()
    Path("text/3.txt").unlink()
    study = Path("study.json")
    study.write_text(json.dumps({"environment": {"data": data_of_run(run)}}))
    for arguments, code in (
        (["--resume", str(run.path)], 2),
        (["--same-data", str(study)], 5),
        (["--resume", "auto", "--same-data", str(study)], 5),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["train", "tiny.yaml", *arguments])
        assert leaving.value.code == code
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: the data ")
        assert "text: 3.txt is gone" in last
    assert len(list(Path("runs").glob("*/*/preset.yaml"))) == 1


def test_an_older_run_that_does_not_know_its_data_goes_on_with_a_note(place):
    run = the_run()
    environment = json.loads(run.environment.read_text())
    del environment["data"]["identity"]
    run.environment.write_text(json.dumps(environment))
    Path("text/3.txt").write_text("other" * 9)
    told = Told()
    execution.execute(load_preset("tiny.yaml"), runs_dir=Path("runs"), resume="auto", sinks=[told])
    assert any("does not say what its data was" in note for note in told)


def test_a_run_whose_record_of_its_surroundings_is_broken_goes_on_with_a_note(place):
    run = the_run()
    run.environment.write_text("[1]")
    told = Told()
    execution.execute(load_preset("tiny.yaml"), runs_dir=Path("runs"), resume="auto", sinks=[told])
    assert any("does not say what its data was" in note for note in told)
    assert len(json.loads(run.environment.read_text())["resumed"]) == 1


def test_measuring_again_is_held_to_the_data_too(place, monkeypatch):
    loaded = load_preset("tiny.yaml")
    summary = execution.execute(loaded, runs_dir=Path("runs"), resume="auto")
    run, told = the_run(), []
    again = load_preset(str(run.preset), ["data.workers=0", "evaluate.batch_size=1"])
    measured = measure(run.path, again, tell=told.append)
    assert measured["test"].metrics["loss"] == pytest.approx(summary["metrics"]["test"]["loss"], rel=1e-6)
    assert told == []
    shutil.copytree("text", "other")
    Path("text/3.txt").write_text("other words than before\n" * 9)
    with pytest.raises(DataError, match=r"text: 3.txt has changed. Put it back, name other data by data\.\*"):
        measure(run.path, again)
    measure(run.path, again, allow_changed_data=True, tell=told.append)
    assert "text: 3.txt has changed; it is used as it is" in told.pop()
    measure(run.path, load_preset(str(run.preset), ["data.path=other", "data.split_seed=4"]), tell=told.append)
    assert told.pop() == "measured on the run's own data, split in another way: the run was trained on some of it"
    # The same files under another name are the same data; others may be named.
    measure(run.path, load_preset(str(run.preset), ["data.path=other"]), tell=told.append)
    assert told == []
    Path("other/3.txt").write_text("yet other words\n" * 9)
    measure(run.path, load_preset(str(run.preset), ["data.path=other"]), tell=told.append)
    all_of_it = "the data has no test part of its own: all 10 documents are the test"
    assert told == ["measured on other data than the run's own", all_of_it]
    monkeypatch.chdir(place / "runs")
    with pytest.raises(UsageError, match=rf"data.path: text is no file.*was started in {place}: relative paths"):
        measure(place / run.path, again)
    with pytest.raises(UsageError, match=rf"was started in {place}: relative paths"):
        execution._prepare(again, execution.World(), RunDirectory(place / run.path), lambda *_: None)


def test_processes_that_see_other_data_do_not_train_together(place):
    prepared = execution.prepare(load_preset("tiny.yaml"))

    class Two(execution.World):
        """Of which the second sees something else than the first."""

        def gather(self, value):
            return [value, value if value == prepared.initial_weights else "other"]

    with pytest.raises(FismoError, match="process 1 of this run sees other data than process 0"):
        execution._check_same_start(prepared, Two())


def test_the_runs_of_a_study_are_held_to_what_it_recorded(place):
    loaded, file = load_preset("tiny.yaml"), Path("study/study.json")
    file.parent.mkdir()
    recorded = {"environment": {"data": execution.dry_run(loaded, steps=1)["data"]}}
    file.write_text(json.dumps(recorded))
    arguments = {"runs_dir": Path("study/trials"), "resume": "auto", "same_data": file}
    assert execution.execute(loaded, **arguments)["status"] == "completed"
    Path("text/3.txt").unlink()
    with pytest.raises(DataError, match=r"changed since study was begun: text: 3.txt is gone"):
        execution.execute(load_preset("tiny.yaml", ["train.seed=1"]), **arguments)
    Path("text/3.txt").write_bytes(b"\0")
    with pytest.raises(SystemExit) as left:
        main(["train", "tiny.yaml", "--runs-dir", "study/trials", "--same-data", str(file)])
    assert left.value.code == ExitCode.DATA
    Path("text/3.txt").unlink()
    file.write_text("{")
    with pytest.raises(UsageError, match=r"study.json: cannot be read"):
        execution.execute(loaded, **arguments)
    file.write_text('{"environment": {}}')  # of an older study
    assert execution.execute(loaded, **arguments)["status"] == "completed"
