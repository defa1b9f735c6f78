"""Whole studies in this process: runs are stand-ins that end at once with a value that their settings decide."""

import json
import shutil
import threading
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest

from fismo_cli.campaigns import pool
from fismo_cli.campaigns.executor import Failure
from fismo_cli.campaigns.jobs import Status
from fismo_cli.campaigns.judging import Judging
from fismo_cli.campaigns.ledger import worker
from fismo_cli.errors import DataError, ExitCode, FismoError, StoppedError, UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.reporting.tuning_report import rebuild_study_page, write_study
from fismo_cli.reporting.tuning_words import best_table, notes
from fismo_cli.runs.directory import RunDirectory, found_again, run_identity, write_json
from fismo_cli.tuning import studies
from fismo_cli.tuning.analysis import summarise_study
from fismo_cli.tuning.plan import Environment
from fismo_cli.tuning.studies import open_study, site_of, source_of
from tests.cli.campaigns.stand_ins import RunStandIn
from tests.postgresql import postgresql_server

NONE = tuple(f"tune.space.{key}=null" for key in ("optimizer.lr", "optimizer.momentum", "train.batch_size"))
TWO = (*NONE, "tune.space.optimizer.metric.damping={choices: [0.1, 0.2]}")


class Run(RunStandIn):
    """Writes what a run would leave."""

    def outcome(self) -> RunDirectory | Failure:
        run, preset = RunDirectory.create(self.runs_dir, self.loaded), self.loaded.preset
        run.model.mkdir()
        value = preset.optimizer.metric.damping + preset.train.seed
        write_json(
            run.summary,
            {
                **{"status": "completed", "identity": run_identity(preset), "reason": None, "steps": 10},
                **{"metrics": {"train": {}, "validation": {"loss": value}, "test": None}, "seconds": 1.0},
                **{"peak_memory_bytes": 2**20, "noise_scale": None},
            },
        )
        return run


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    Run.started, Run.polls = [], 1
    monkeypatch.setattr(pool, "RunProcess", Run)
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 0.0)
    environment = Environment(threads=1, device="cpu", train_samples=1222)
    monkeypatch.setattr(studies, "try_out", lambda *args, **kwargs: environment)


def tune(folder: Path, *overrides: str, trials: int = 8, workers: int = 1, told: list[str] | None = None, **rest: Any):
    judging, written = rest.pop("judging", Judging()), rest.pop("written", False)
    options: dict[str, Any] = {"name": None, "root": folder, "url": None, "sampler": "random", **rest}
    plan, study = open_study(load_preset("digits-vit", overrides), judging, trials=trials, workers=workers, **options)

    def tell(status: Status) -> None:
        if status.finished is not None and told is not None:
            told.append(status.finished)

    pool.carry_out(site_of(plan), [[source_of(plan, study, trials)]], workers=workers, tell=tell)
    summary = summarise_study(plan, study)
    return write_study(plan, summary) if written else summary


# A point that is drawn again.


@pytest.mark.parametrize("workers", [1, 3])
def test_settings_that_are_drawn_again_are_not_trained_again(tmp_path, workers):
    Run.polls, told = 5, []
    summary = tune(tmp_path, *TWO, workers=workers, told=told)
    assert sorted(run.preset.optimizer.metric.damping for run in Run.started) == [0.1, 0.2]
    assert summary["trials"] == {"finished": 8, "failed": 0, "pruned": 0}
    by_point: dict[float, list[dict[str, Any]]] = {0.1: [], 0.2: []}
    for trial in summary["trial_list"]:
        by_point[trial["params"]["optimizer.metric.damping"]].append(trial)
    for damping, trials in by_point.items():
        assert {trial["value"] for trial in trials} == {damping}
        assert [trial["same_as"] for trial in trials] == [None, *[trials[0]["number"]] * (len(trials) - 1)]
        assert len({tuple(trial["run_dirs"]) for trial in trials}) == 1
    assert summary["best"]["trial"] == by_point[0.1][0]["number"]
    assert [Path(by_point[d][0]["run_dirs"][0], "model").exists() for d in (0.1, 0.2)] == [True, False]
    assert "settings that an earlier trial had were drawn 6 times more" in " ".join(notes(summary))
    assert len(best_table(summary)[1]) == 2
    assert sum("whose result is used: loss 0." in line for line in told) == 6


def test_each_point_is_judged_by_the_mean_of_its_repeats_once(tmp_path):
    summary = tune(tmp_path, *TWO, trials=5, judging=Judging(repeats=3))
    assert len(Run.started) == 6
    assert sorted({trial["value"] for trial in summary["trial_list"]}) == pytest.approx([1.1, 1.2])


def test_a_twin_that_diverged_counts_one_that_met_an_error_does_not(tmp_path, monkeypatch):
    class Odd(Run):
        def outcome(self):
            strange = self.loaded.preset.optimizer.metric.damping == 0.2
            if strange and len([r for r in Run.started if r.preset.optimizer.metric.damping == 0.2]) <= 2:
                return Failure(1, "the disk was full for a moment")  # also when it is given its second chance
            run = super().outcome()
            if strange:
                summary = json.loads(run.summary.read_text())
                write_json(run.summary, {**summary, "status": "diverged", "reason": "loss nan at step 3"})
            return run

    monkeypatch.setattr(pool, "RunProcess", Odd)
    summary = tune(tmp_path, *TWO, trials=12)
    reasons = [t["failure"]["reason"] for t in summary["trial_list"] if t["params"]["optimizer.metric.damping"] == 0.2]
    assert reasons == ["exit code 1: the disk was full for a moment", *["loss nan at step 3"] * (len(reasons) - 1)]
    assert len(reasons) > 2
    assert [run.preset.optimizer.metric.damping for run in Run.started].count(0.2) == 3
    assert sum(summary["trials"].values()) == 12


def test_a_twin_that_was_pruned_counts(tmp_path, monkeypatch):
    class Slow(Run):
        polls = 3

        def validations(self):
            return [(0, {"loss": None}), (64 * 190, {"loss": 7.0}), (64 * 380, {"loss": 7.0})]

    monkeypatch.setattr(pool, "RunProcess", Slow)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.params["optimizer.metric.damping"] == 0.2)
    summary = tune(tmp_path, *TWO, judging=Judging(pruner="median"))
    assert len(Run.started) == 2
    pruned = [trial for trial in summary["trial_list"] if trial["params"]["optimizer.metric.damping"] == 0.2]
    assert len(pruned) > 1
    assert {trial["state"] for trial in pruned} == {"pruned"}
    assert len({json.dumps(trial["intermediate"]) for trial in pruned}) == 1
    assert summary["trials"] == {"finished": 8 - len(pruned), "failed": 0, "pruned": len(pruned)}


def test_a_run_of_one_step_with_a_pruner(tmp_path):
    overrides = ("train.epochs=null", "train.steps=1", "tune.space.train.batch_size=null")
    assert tune(tmp_path, *overrides, trials=2, judging=Judging(pruner="halving"))["trials"]["finished"] == 2


def test_a_trial_whose_settings_do_not_go_together_fails_with_the_reason(tmp_path):
    spaces = ("tune.space.train.batch_size={choices: [64, 80]}", "tune.space.train.accumulate={choices: [1, 32]}")
    summary = tune(tmp_path, *NONE[:2], "tune.space.optimizer.metric.damping=null", *spaces, trials=16)
    failed = [trial for trial in summary["trial_list"] if trial["failure"]]
    assert failed
    for trial in failed:
        assert trial["params"] == {"train.batch_size": 80, "train.accumulate": 32}
        assert trial["failure"]["reason"] == "train.accumulate: must divide train.batch_size (80), got 32"
    assert sum(summary["trials"].values()) == 16


def test_a_run_whose_directory_is_removed_fails_its_trial_alone(tmp_path, monkeypatch):
    class Vanishing(Run):
        def outcome(self):
            run = super().outcome()
            if self.loaded.preset.optimizer.metric.damping == 0.2:
                shutil.rmtree(run.path)
            return run

    monkeypatch.setattr(pool, "RunProcess", Vanishing)
    summary = tune(tmp_path, *TWO, trials=6)
    assert {t["failure"]["reason"].split(":")[-1] for t in summary["trial_list"] if t["failure"]}
    assert summary["best"]["params"] == {"optimizer.metric.damping": 0.1}


def test_a_study_in_which_every_trial_fails_ends_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "outcome", lambda self: Failure(2, "no such file: data.npz"))
    with pytest.raises(FismoError, match="all 3 trials failed, the last one so: exit code 2: no such file") as caught:
        tune(tmp_path)
    assert caught.value.exit_code == 1


def test_workers_of_a_host_draw_no_trial_too_many(tmp_path):
    """Each sees that one is missing; whoever comes second sees that it is being run."""
    opened = [
        open_study(
            load_preset("digits-vit"),
            Judging(),
            **{"name": "s", "root": tmp_path, "url": None, "sampler": "random", "trials": 5, "workers": 5},
        )
        for _ in range(3)
    ]
    begin = threading.Barrier(3)

    def draw(index: int) -> None:
        plan, study = opened[index]
        source = source_of(plan, study, 5)
        mine = pool.Pool(site_of(plan), [source], 5, lambda status: None, workers[index], None)
        begin.wait()
        while mine._wanted() is not None:
            mine._start(source)

    threads = [threading.Thread(target=draw, args=(index,)) for index in range(3)]
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(opened[0][0].directory, f"worker-{index}")) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(opened[0][1].trials) == 5


# A journal that a crash cut off.


def test_after_a_crash_in_mid_write_the_study_has_as_many_trials_as_were_asked_for(tmp_path):
    first = tune(tmp_path, trials=3)
    journal = Path(first["storage"])
    journal.write_bytes(journal.read_bytes()[:-25])
    told: list[str] = []
    second = tune(tmp_path, trials=6, notice=told.append)
    assert second["trials"]["finished"] == 6
    assert len(Run.started) == 6  # the third had ended: its run is taken from the disk
    assert "1 line that cannot be used was moved" in told[0]
    assert [t["value"] for t in second["trial_list"] if t["original"] < 3] == [
        trial["value"] for trial in first["trial_list"]
    ]


def test_a_journal_that_vanishes_ends_the_runs_and_their_work_is_found_again(tmp_path, monkeypatch):
    class Vandal(Run):
        alive: ClassVar[list[Run]] = []

        def outcome(self):
            run = super().outcome()
            self.alive.append(self)
            if len(Run.started) == 4:
                next(tmp_path.glob("*/journal.log")).unlink()
            return run

        def stop(self):
            self.running = False

    monkeypatch.setattr(pool, "RunProcess", Vandal)
    with pytest.raises(FismoError, match=r"journal\.log cannot be used any more: No such file") as caught:
        tune(tmp_path, trials=8, workers=2)
    assert caught.value.exit_code == 1
    assert not any(run.running for run in Vandal.alive)
    before = len(Run.started)
    summary = tune(tmp_path, trials=8, workers=2)
    assert summary["trials"]["finished"] == 8
    assert len(Run.started) <= 8 + 1
    assert len(Run.started) > before


def test_runs_that_finished_on_other_data_are_not_those_of_a_study_that_begins_anew(tmp_path, monkeypatch):
    data = {"train": {"0": {"count": 178, "sha256": "a"}}}

    class Seeing(Run):
        def outcome(self):
            run = super().outcome()
            write_json(run.environment, {"data": {"identity": data}})
            return run

    def again(**now: int) -> int:
        before = len(Run.started)
        data["train"]["0"] = {**data["train"]["0"], **now}
        environment = Environment(threads=1, device="cpu", train_samples=1222, data=deepcopy(data))
        monkeypatch.setattr(studies, "try_out", lambda *args, **kwargs: environment)
        Path(tune(tmp_path, *TWO, trials=4)["storage"]).unlink()
        return len(Run.started) - before

    monkeypatch.setattr(pool, "RunProcess", Seeing)
    assert [again(), again(), again(count=179), again()] == [2, 0, 2, 0]


# A database.


def test_a_study_does_not_go_on_in_another_storage_in_the_same_folder(tmp_path):
    directory = Path(tune(tmp_path, *TWO, trials=2)["directory"])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/db"
    with pytest.raises(UsageError, match=r"has the trials of a study in .*journal\.log: leave out FISMO_STORAGE"):
        tune(tmp_path, *TWO, trials=4, url=url)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    stored = json.loads((directory / "study.json").read_text())
    write_json(directory / "study.json", {**stored, "database": "postgresql+psycopg://me:***@127.0.0.1:1/db"})
    (directory / "journal.log").unlink()
    with pytest.raises(UsageError, match=r"in postgresql\+psycopg://me:\*\*\*@127.*give its URL by FISMO_STORAGE"):
        tune(tmp_path, *TWO, trials=4)
    assert len(Run.started) == 2


@pytest.fixture(scope="module")
def postgresql():
    with postgresql_server() as (url, _):
        yield url


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_in_a_database(tmp_path, postgresql):
    Run.polls = 5
    summary = tune(tmp_path, *TWO, workers=3, url=postgresql, written=True)
    assert sorted(run.preset.optimizer.metric.damping for run in Run.started) == [0.1, 0.2]
    assert summary["trials"] == {"finished": 8, "failed": 0, "pruned": 0}
    assert sum(trial["same_as"] is not None for trial in summary["trial_list"]) == 6
    moved = Path(summary["directory"]).rename(tmp_path / "moved")
    again = rebuild_study_page(moved, postgresql)
    assert again["trial_list"][0]["run_dirs"][0].startswith(str(moved))
    assert rebuild_study_page(moved)["trial_list"] == again["trial_list"]  # from summary.json
    (moved / "summary.json").unlink()
    here = rebuild_study_page(moved)  # from the run directories
    assert [(t["value"], t["params"]) for t in here["trial_list"]] == [
        (t["value"], t["params"]) for t in again["trial_list"] if t["same_as"] is None
    ]
    assert here["best"] == again["best"]
    assert "only what was run on this host is shown: postgresql+psycopg://" in " ".join(notes(here))
    interrupt(tmp_path, after=2 + 3, url=postgresql)
    (cut,) = (d for d in tmp_path.iterdir() if not (d / "summary.json").exists() and d != moved)
    assert rebuild_study_page(cut, postgresql)["trials"]["finished"] == 3


# Reports.


def interrupt(folder: Path, after: int, **rest: Any) -> None:
    class Stopping(Run):
        def poll(self):
            if len(Run.started) > after:
                raise StoppedError(2)
            return super().poll()

    before, pool.RunProcess = pool.RunProcess, Stopping
    try:
        with pytest.raises(StoppedError):
            tune(folder, **rest)
    finally:
        pool.RunProcess = before


def test_a_study_that_was_cut_off_has_a_page_of_what_there_is(tmp_path):
    interrupt(tmp_path, after=3)
    (directory,) = tmp_path.iterdir()
    assert not (directory / "summary.json").exists()
    summary = rebuild_study_page(directory)
    assert summary["trials"] == {"finished": 3, "failed": 0, "pruned": 0}
    assert summary["unfinished"] == 1
    assert "trials that run, or wait to be run again: 1" in " ".join(notes(summary))
    assert Path(summary["best_preset"]).exists()
    html = (directory / "tune.html").read_text()
    assert html.count('<a href="trials/') == 3
    assert "CPU threads of a process: 1; device: cpu." in html
    whole = tune(tmp_path, trials=5, written=True)
    assert rebuild_study_page(directory) == whole


def test_a_study_without_a_finished_trial_has_a_page_too(tmp_path):
    interrupt(tmp_path, after=0)
    (directory,) = tmp_path.iterdir()
    summary = rebuild_study_page(directory)
    assert (summary["best"], summary["best_preset"]) == (None, None)
    assert "No trial finished." in (directory / "tune.html").read_text()


@pytest.mark.parametrize("known", ["journal", "summary"])
def test_a_study_that_was_moved_is_read_where_it_is(tmp_path, monkeypatch, known):
    monkeypatch.chdir(tmp_path)
    before = tune(Path("studies"), trials=3, written=True)
    Path("elsewhere/deep").mkdir(parents=True)
    moved = Path(before["directory"]).rename("elsewhere/deep/a study #1")
    Path("studies").rmdir()
    if known == "summary":  # as of a study in a database, or of an earlier version
        (moved / "study.json").unlink()
    after = rebuild_study_page(moved)
    text = json.dumps(after)
    assert '"studies/' not in text
    for key in ("best_preset", "report", "storage", "directory"):
        assert Path(after[key]).exists()
        assert moved in (Path(after[key]), *Path(after[key]).parents)
    html = (moved / "tune.html").read_text()
    for trial in after["trial_list"]:
        (run,) = trial["run_dirs"]
        assert Path(run, "summary.json").exists()
        assert f'href="{Path(run).relative_to(moved)}"' in html
    shutil.rmtree(moved / "trials" / "1")
    rebuild_study_page(moved)
    assert (moved / "tune.html").read_text().count('<a href="trials/') == 2  # no dead links


def test_a_study_whose_journal_is_gone_has_a_page_of_its_runs(tmp_path):
    before = tune(tmp_path, trials=4, judging=Judging(repeats=2, max_step_seconds=0.01))
    Path(before["storage"]).unlink()
    after = rebuild_study_page(Path(before["directory"]))
    for one, other in zip(before["trial_list"], after["trial_list"], strict=True):
        assert (one["number"], one["value"], one["limits"]) == (other["number"], other["value"], other["limits"])
        assert other["params"] == pytest.approx(one["params"])
    assert after["best"] is None
    assert "only what was run on this host" in " ".join(notes(after))


def test_what_says_nothing_of_a_study_is_refused(tmp_path):
    (tmp_path / "trials").mkdir()
    with pytest.raises(UsageError, match=r"neither a study\.json nor a summary\.json"):
        rebuild_study_page(tmp_path)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UsageError, match=r"study\.json: cannot be read"):
        rebuild_study_page(tmp_path)


def test_a_place_is_found_again_by_the_end_of_its_path(tmp_path):
    (tmp_path / "trials" / "0" / "p" / "run").mkdir(parents=True)
    for recorded in ("studies/x/trials/0/p/run", "/old/studies/x/trials/0/p/run"):
        assert found_again(Path(recorded), tmp_path) == tmp_path / "trials/0/p/run"
    assert found_again(Path("studies/x/trials/7/p/run"), tmp_path) == Path("studies/x/trials/7/p/run")


# Data that has changed.


@pytest.mark.parametrize("by", ["run", "preset"])
def test_a_study_whose_data_has_changed_stops_and_no_trial_is_to_blame(tmp_path, monkeypatch, by):
    code = ExitCode.DATA if by == "run" else ExitCode.USAGE

    class Refusing(Run):
        def outcome(self):
            return Failure(code, "the data has changed since study was begun: text: 3.txt is gone")

    asked = {}

    class Asking(Run):
        def __init__(self, loaded, **options):
            asked.update(options)
            super().__init__(loaded, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "RunProcess", Refusing)
        patch.setattr(pool, "missing_files", lambda preset: [(("data", "path"), "no such file")] * (by == "preset"))
        for _ in range(6):  # more often than a trial's workers may die
            with pytest.raises(DataError, match=r"text: 3.txt is gone") as caught:
                tune(tmp_path, trials=4, workers=2)
            assert caught.value.exit_code == ExitCode.USAGE
    monkeypatch.setattr(pool, "RunProcess", Asking)
    summary = tune(tmp_path, trials=4)
    assert summary["trials"] == {"finished": 4, "failed": 0, "pruned": 0}
    assert "data" in json.loads(asked["same_data"].read_text())["environment"]
    assert "data" not in summary.get("environment", {})
