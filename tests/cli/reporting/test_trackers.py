"""Weights & Biases, MLflow and trackio as a run tells them: read back from what their own packages wrote, offline."""

import json
import os
import struct
import sys
import time
from pathlib import Path

import pytest

from fismo_cli.app import main
from fismo_cli.campaigns.judging import Judging
from fismo_cli.comparison.beginning import ask
from fismo_cli.comparison.beginning import begin as begin_comparison
from fismo_cli.errors import AbortedError, ExitCode, PresetError, UsageError
from fismo_cli.preset.loading import load_preset, resolved_yaml
from fismo_cli.preset.schema_logging import MlflowConfig
from fismo_cli.reporting.mlflow import MlflowSink
from fismo_cli.reporting.tracking import TrackedRun
from fismo_cli.runs import execution
from fismo_cli.runs.directory import RunDirectory, read_json, run_identity
from fismo_cli.runs.preparation import prepare
from fismo_cli.training.events import Noticed, StepLogged
from fismo_cli.tuning.plan import Environment, make_study_plan

SMALL = [
    *("train.steps=6", "train.log_every=1", "train.noise_every=null", "train.threads=1"),
    *("evaluate.every=2", "checkpoint.every=3", "model.args.depth=1"),
]


class CutOff:
    """Ends a run at once after a step, as a second Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def write(self, event):
        if isinstance(event, StepLogged) and event.step == self.step:
            raise KeyboardInterrupt

    def close(self):
        pass


class Wandb:
    """Reads the files of offline runs, which are logs in LevelDB's format of W&B's protocol buffers."""

    def __init__(self, folder):
        pytest.importorskip("wandb")
        self.settings = ["logging.wandb.mode=offline", "logging.wandb.tags=[small, digits]"]
        self.folder = folder

    def records(self):
        """All of them, once W&B's own process has written the last ones, which it does after the run has ended."""
        deadline = time.monotonic() + 20
        while True:
            found = [record for file in sorted(self.folder.rglob("*.wandb")) for record in self._read(file)]
            ends = sum(record.WhichOneof("record_type") == "exit" for record in found)
            if ends == len(self.ended) or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    @staticmethod
    def _read(file):
        from wandb.proto.wandb_internal_pb2 import Record

        data, place, parts = file.read_bytes(), 7, []
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            parts.append(data[place + 7 : place + 7 + length])
            place += 7 + length
            if kind in (1, 4):  # whole, or its last part
                yield Record.FromString(b"".join(parts))
                parts = []

    def _of(self, kind):
        return [getattr(record, kind) for record in self.records() if record.WhichOneof("record_type") == kind]

    def run(self):
        runs = self._of("run")
        assert {run.project for run in runs} == {"fismo"}
        assert list(runs[0].tags) == ["small", "digits"]
        (id,) = {run.run_id for run in runs}
        config = {item.key: json.loads(item.value_json) for item in runs[-1].config.update if item.key}
        return id, {"group": runs[0].run_group, "lr": config["optimizer"]["lr"], "preset": config["preset"]}

    def history(self, name):
        rows = [
            ({item.nested_key[0]: json.loads(item.value_json) for item in history.item}, history.step.num)
            for history in self._of("history")
        ]
        return [(step, row[name]) for row, step in rows if name in row]

    def final(self, name):
        changes = [item for summary in self._of("summary") for item in summary.update]
        return [json.loads(item.value_json) for item in changes if item.key == f"final/{name}"][-1]

    def state(self):
        return tuple(exit.exit_code for exit in self._of("exit"))

    ended = (1, 0)


class Mlflow:
    def __init__(self, uri):
        mlflow = pytest.importorskip("mlflow")
        self.settings = [f"logging.mlflow.tracking_uri={uri}", "logging.mlflow.tags.size=small"]
        self.settings += ["optimizer.rules={'head[.]weight$': adamw}"]  # letters that MLflow has not in names
        self.client = mlflow.MlflowClient(tracking_uri=uri)

    def _run(self):
        (run,) = self.client.search_runs([self.client.get_experiment_by_name("fismo").experiment_id])
        return run

    def run(self):
        data = self._run().data
        assert data.tags["size"] == "small"
        lr, preset = float(data.params["optimizer.lr"]), data.params["preset"]
        return self._run().info.run_id, {"group": data.tags["group"], "lr": lr, "preset": preset}

    def history(self, name):
        return [(point.step, point.value) for point in self.client.get_metric_history(self._run().info.run_id, name)]

    def final(self, name):
        return self._run().data.metrics[f"final/{name}"]

    def state(self):
        return self._run().info.status

    ended = "FINISHED"


class Trackio:
    def __init__(self, _):
        pytest.importorskip("trackio")
        self.settings = ["logging.trackio.name=small"]

    def run(self):
        from trackio.sqlite_storage import SQLiteStorage

        (name,) = SQLiteStorage.get_runs("fismo")
        assert name.startswith("small-")
        config = SQLiteStorage.get_run_config("fismo", name)
        return name, {"group": config["_Group"], "lr": config["optimizer"]["lr"], "preset": config["preset"]}

    def history(self, name):
        from trackio.sqlite_storage import SQLiteStorage

        return [(row["step"], row[name]) for row in SQLiteStorage.get_logs("fismo", self.run()[0]) if name in row]

    def final(self, name):
        return self.history(f"final/{name}")[-1][1]

    def state(self):
        return "not told"

    ended = "not told"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow database that two processes have begun at the same time, and how they ended."""
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("database")
    uri = f"sqlite:///{folder}/mlflow.db"
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                MlflowSink(MlflowConfig(experiment="both", tracking_uri=uri), TrackedRun(folder, {})).close()
                code = 0
            finally:
                os._exit(code)
    return uri, [os.waitpid(child, 0)[1] for child in children]


def test_two_runs_may_begin_a_database_at_the_same_time(database):
    uri, codes = database
    assert codes == [0, 0]
    client = sys.modules["mlflow"].MlflowClient(tracking_uri=uri)
    assert len(client.search_runs([client.get_experiment_by_name("both").experiment_id])) == 2


@pytest.fixture(scope="module", params=["wandb", "mlflow", "trackio"])
def told(request, tmp_path_factory):
    """A run that was cut off after step 5 and went on from step 3, and what its tracker has of it."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # read when trackio is imported
        patch.setenv("WANDB_CONFIG_DIR", str(folder))
        patch.setenv("WANDB_CACHE_DIR", str(folder))
        place = request.getfixturevalue("database")[0] if request.param == "mlflow" else folder
        tracker = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}[request.param](place)
        group = f"logging.{request.param}.group=mine"
        loaded = load_preset("digits-vit", [*SMALL, *tracker.settings, group])
        with pytest.raises(AbortedError):
            execution.execute(loaded, runs_dir=folder / "runs", sinks=[CutOff(5)])
        summary = execution.execute(loaded, runs_dir=folder / "runs", resume="auto")
        yield request.param, tracker, RunDirectory(Path(summary["run_dir"])), summary


def test_a_run_that_is_continued_is_one_run_there_and_no_step_is_told_twice(told):
    name, tracker, run, summary = told
    assert summary["resumed_from_step"] == 3
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    losses = [(record["step"], record["loss"]) for record in records if record["event"] == "StepLogged"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert sorted(tracker.history("train/loss")) == losses
    assert [step for step, _ in tracker.history("validation/loss")] == [2, 4, 6]
    assert tracker.run()[0] == read_json(run.trackers)[name]["id"]


def test_it_has_the_preset_the_final_metrics_and_how_the_run_ended(told):
    _, tracker, _, summary = told
    assert tracker.run()[1] == {"group": "mine", "lr": 0.04, "preset": "digits-vit"}
    assert tracker.final("test/loss") == summary["metrics"]["test"]["loss"]
    assert tracker.final("steps") == 6
    assert tracker.state() == tracker.ended


def silent(monkeypatch, log):
    """In place of MLflow's client: starts and ends nothing, and logs as it is told to."""

    def start(sink, config, run):
        super(MlflowSink, sink).__init__(run)
        sink.id, sink.place = "1", "nowhere"

    for name, method in (("__init__", start), ("log", log), ("finish", ignore), ("close", ignore)):
        monkeypatch.setattr(MlflowSink, name, method)


def ignore(*_):
    pass


def fail(*_):
    raise ConnectionError("the server went away")


def test_a_run_cut_off_again_before_it_came_as_far_repeats_nothing(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    logged = []
    silent(monkeypatch, lambda sink, values, step: logged.append((step, *sorted(values))))
    loaded = load_preset("digits-vit", [*SMALL, "logging.mlflow=true"])
    for step in (5, 4):
        with pytest.raises(AbortedError):
            execution.execute(loaded, runs_dir=tmp_path, resume="auto", sinks=[CutOff(step)])
    execution.execute(loaded, runs_dir=tmp_path, resume="auto")
    assert len(logged) == len(set(logged))
    assert {step for step, *_ in logged} == {1, 2, 3, 4, 5, 6}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that tells nobody."""
    return execution.execute(load_preset("digits-vit", SMALL), runs_dir=tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("broken", ["start", "run"])
def test_a_tracker_that_fails_is_left_out_and_changes_nothing(plain, tmp_path, monkeypatch, broken):
    pytest.importorskip("mlflow")
    notes = []

    class Notes:
        def write(self, event):
            notes.extend([event.message] if isinstance(event, Noticed) else [])

        def close(self):
            pass

    uri = "nowhere://x"
    if broken == "run":
        uri = f"sqlite:///{tmp_path}/mlflow.db"
        silent(monkeypatch, fail)
    loaded = load_preset("digits-vit", [*SMALL, f"logging.mlflow.tracking_uri={uri}"])
    other = execution.execute(loaded, runs_dir=tmp_path, sinks=[Notes()])
    assert other["status"] == "completed"
    assert other["metrics"] == plain["metrics"]
    weights = [RunDirectory(Path(summary["run_dir"])).weights.read_bytes() for summary in (other, plain)]
    assert weights[0] == weights[1]
    words = "MLflow gets nothing of this run" if broken == "start" else "gets no more of this run"
    assert len([note for note in notes if words in note]) == 1


def test_all_packages_that_are_missing_are_said_at_once_before_anything_is_written(tmp_path, monkeypatch, capsys):
    for package in ("wandb", "mlflow", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    names = ("tensorboard", "wandb", "mlflow", "trackio")
    switches = [f"logging.{name}=true" for name in names]
    with pytest.raises(SystemExit) as caught:
        main(["train", "digits-vit", *SMALL, *switches, "--runs-dir", str(tmp_path / "runs")])
    assert caught.value.code == ExitCode.USAGE
    said = capsys.readouterr().err
    assert all(f"pip install 'fismo[{name}]'" in said for name in names)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_called_wandb_is_no_package(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(Path(json.__file__).parents[1])])
    (tmp_path / "wandb").mkdir()
    with pytest.raises(UsageError, match="needs the package wandb"):
        prepare(load_preset("digits-vit", ["logging.wandb=true"]))
    monkeypatch.delitem(sys.modules, "wandb")


def test_nobody_logged_in_is_said_before_training(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"logging\.wandb: .*logging\.wandb\.mode=offline"):
        prepare(load_preset("digits-vit", ["logging.wandb=true"]))


@pytest.mark.parametrize(
    ("overrides", "project"),
    [
        (["logging.wandb=true"], "fismo"),
        (["logging.wandb=true", "logging.wandb.project=mine"], "mine"),
        (["logging.wandb.project=mine"], "mine"),
        (["logging.wandb.project=mine", "logging.wandb=false"], None),
        (["logging.wandb=false", "logging.wandb.project=mine"], "mine"),
        ([], None),
    ],
)
def test_a_tracker_is_switched_on_or_has_settings(tmp_path, overrides, project):
    loaded = load_preset("digits-vit", overrides)
    wandb = loaded.preset.logging.wandb
    assert (None if wandb is None else wandb.project) == project
    (tmp_path / "again.yaml").write_text(resolved_yaml(loaded))
    assert load_preset(str(tmp_path / "again.yaml")).preset == loaded.preset
    assert run_identity(loaded.preset) == run_identity(load_preset("digits-vit").preset)


def test_what_is_wrong_with_it_is_said_with_its_key():
    with pytest.raises(PresetError) as caught:
        load_preset("digits-vit", ["logging.wandb.mode=on", "logging.mlflow.experimnt=a", "logging.trackio=5"])
    experiment, trackio, mode = sorted(caught.value.problems)
    assert "logging.wandb.mode: must be one of online, offline or null" in mode
    assert "logging.mlflow.experimnt: unknown key" in experiment
    assert "Did you mean logging.mlflow.experiment?" in experiment
    assert "logging.trackio: must be true or false, a section (keys and values) or null, got 5" in trackio


def test_trials_are_in_the_group_of_their_study_and_the_best_preset_is_not(tmp_path):
    loaded = load_preset("digits-vit", ["logging.wandb=true", "logging.mlflow.group=own"])
    plan = make_study_plan(
        loaded,
        name="study",
        directory=tmp_path,
        judging=Judging("loss"),
        environment=Environment(1, "cpu", 1222),
        url=None,
    )
    trial = plan.trial({}).preset.logging
    assert (trial.wandb.group, trial.mlflow.group, trial.trackio) == ("study", "own", None)
    assert plan.best_preset({}).preset.logging == loaded.preset.logging


def test_runs_are_in_the_group_of_their_comparison(tmp_path, monkeypatch):
    result = {
        **{"device": "cpu", "total_steps": 100, "total_samples": 6400, "batch_grows": False, "step_seconds": 0.1},
        **{"parameters": 10, "train_samples": 1222, "validation_samples": 216, "data": None},
    }
    monkeypatch.setattr("fismo_cli.comparison.beginning.dry_run_elsewhere", lambda *_, **__: result)
    asked = ask(
        load_preset("digits-vit", ["logging.wandb=true"]),
        ["muon"],
        root=tmp_path,
        **{"seeds": 2, "tune_trials": 0, "studies": None, "target": None, "margin": 0.01, "workers": 1},
    )
    plan, _ = begin_comparison(asked, tried=lambda text: None)
    groups = {contender.run(0).preset.logging.wandb.group for contender in plan.contenders}
    assert groups == {plan.directory.name}
