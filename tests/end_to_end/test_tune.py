"""`fismo tune` in real processes: on a journal file and on a real PostgreSQL, killed, resumed, shared, and misused."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Cli, HereCli, browser, open_page, wait_for, wait_until
from tests.postgresql import postgresql_server

pytestmark = pytest.mark.slow
SHORT = ("train.epochs=null", "train.steps=30", "train.log_every=2", "checkpoint.every=4", "train.threads=1")
LONGER = ("train.epochs=null", "train.steps=60", "train.log_every=2", "checkpoint.every=4", "train.threads=1")


def journal_trials(folder: Path) -> list:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    (file,) = folder.glob("studies/*/journal.log")
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def check_once_each(trials: list, wanted: int) -> None:
    """As many ended trials as wanted, of different parameters, and each lost one repeated until it ended."""
    ended = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED") or "failure" in t.user_attrs]
    lost = [t for t in trials if t not in ended]
    assert all(t.state.name == "FAIL" for t in lost), [t.state for t in lost]
    assert len(ended) == wanted
    roots = Counter(t.system_attrs.get("failed_trial", t.number) for t in ended)
    assert set(roots.values()) == {1}
    assert {t.system_attrs.get("failed_trial", t.number) for t in lost} <= set(roots)
    assert len({json.dumps(t.params, sort_keys=True) for t in ended}) == wanted
    by_number = {t.number: t for t in trials}
    for trial in ended:
        assert trial.params == by_number[trial.system_attrs.get("failed_trial", trial.number)].params


def test_best_yaml_reproduces_the_best_value_and_the_report_is_rebuilt(cli):
    done = cli.run(
        *("tune", "digits-vit", *SHORT, "--trials", 5, "--workers", 2, "--json"),
        *("--repeats", 1, "--max-memory", 100, "compare.muon.lr=0.5"),
    )
    assert done.code == 0, done.err
    summary = done.json
    assert summary["trials"] == {"finished": 5, "failed": 0, "pruned": 0}
    assert set(summary["best"]) == {"value", "params", "trial"}
    best = cli.folder / summary["best_preset"]
    text = best.read_text()
    assert f"validation loss {summary['best']['value']!r}" in text
    assert "muon:\n    name: muon\n    lr: 0.5" in text
    trained = cli.run("train", best, "--json")
    assert trained.code == 0, trained.err
    assert trained.json["metrics"]["validation"]["loss"] == summary["best"]["value"]
    page = cli.folder / summary["report"]
    for name in ("history", "importance", "slice", "contour", "parallel"):
        assert f'id="{name}"' in page.read_text()
    page.unlink()
    again = cli.run("report", summary["directory"], "--json")
    assert again.code == 0, again.err
    assert again.json == summary
    assert page.exists()
    models = list(cli.folder.glob("studies/*/trials/*/*/*/model.safetensors"))
    assert [int(model.parts[-4]) for model in models] == [summary["best"]["trial"]]
    more = cli.run("tune", "digits-vit", *SHORT, "--trials", 5, "--max-memory", 100, "compare.muon.lr=0.7", "--json")
    assert more.json["trial_list"] == summary["trial_list"]


def test_trials_with_data_workers_are_what_they_are_without(cli):
    """Processes of a run that is forked itself."""
    given = ("digits-vit", *SHORT, "train.steps=4", "--trials", 2, "--workers", 2, "--json")
    values = []
    for workers in (0, 2):
        done = cli.run("tune", *given, f"data.workers={workers}")
        assert done.code == 0, done.err
        values.append([trial["value"] for trial in done.json["trial_list"]])
    assert values[0] == values[1]


def test_the_page_in_a_browser(cli):
    done = cli.run("tune", "digits-vit", *SHORT, "train.steps=4", "--trials", 4, "--workers", 2, "--json")
    assert done.code == 0, done.err
    with browser() as driver:
        open_page(driver, cli.folder / done.json["report"], 5, "#history", least=2)
        assert "best: validation loss" in driver.find_element("css selector", ".verdict").text
        links = [link.get_attribute("href") for link in driver.find_elements("css selector", "td a")]
        assert len(links) == 4
        assert all(Path(link.removeprefix("file://")).is_dir() for link in links)
        driver.set_window_size(400, 800)
        fits = "return document.documentElement.scrollWidth <= window.innerWidth"
        wait_until(lambda: driver.execute_script(fits))  # figures are drawn anew


def test_a_bad_preset_is_tuned_to_beat_the_shipped_settings(cli):
    """A learning rate 30 times too large, and 16 trials that are told nothing else."""
    budget = ("train.epochs=8", "train.threads=1")
    shipped = cli.run("train", "digits-vit", *budget, "--json").json["metrics"]["validation"]["loss"]
    bad = cli.run("train", "digits-vit", *budget, "optimizer.lr=0.6", "--json").json
    done = cli.run("tune", "digits-vit", *budget, "optimizer.lr=0.6", "--trials", 16, "--workers", 2, "--json")
    assert done.code == 0, done.err
    start = next(trial for trial in done.json["trial_list"] if trial["number"] == 0)
    assert start["value"] == bad["metrics"]["validation"]["loss"]
    assert done.json["best"]["value"] < shipped < start["value"]


def test_killed_and_resumed_on_the_journal_file(cli):
    command = ("tune", "digits-vit", *LONGER, "--trials", 4, "--workers", 2, "--json")
    process = cli.start(*command)
    wait_for(lambda: list(cli.folder.glob("studies/*/trials/*/*/*/checkpoints/step-*/complete.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = cli.start(*command)  # a second one beside it, on the same file
    beside = cli.finish(cli.start(*command))
    done = cli.finish(process)
    assert (done.code, beside.code) == (0, 0), done.err + beside.err
    trials = journal_trials(cli.folder)
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    assert 1 <= len(lost) <= 2
    check_once_each(trials, 4)
    resumed = [
        json.loads(file.read_text())["resumed_from_step"]
        for file in cli.folder.glob("studies/*/trials/*/*/*/summary.json")
    ]
    assert any(resumed)
    assert len(resumed) == 4
    assert done.json["trials"]["finished"] == 4
    undisturbed = HereCli(cli.folder / "whole")
    undisturbed.folder.mkdir()
    alone = undisturbed.run(*command[:-3], "--workers", 1, "--json").json
    values = {trial["original"]: trial for trial in done.json["trial_list"]}
    assert values[0]["value"] == alone["trial_list"][0]["value"]  # continued bit for bit


def test_ctrl_c_saves_and_the_same_command_goes_on(cli):
    command = ("tune", "digits-vit", *LONGER, "--trials", 2, "--workers", 2, "--json")
    process = cli.start(*command)
    wait_for(lambda: list(cli.folder.glob("studies/*/trials/*/*/*/metrics.jsonl")), process)
    process.send_signal(signal.SIGINT)
    stopped = cli.finish(process)
    assert stopped.code == 130
    assert "goes on from here" in stopped.err
    done = cli.run(*command)
    assert done.code == 0, done.err
    check_once_each(journal_trials(cli.folder), 2)


@pytest.fixture(scope="module")
def postgresql():
    with postgresql_server() as (url, _):
        yield url


def database_trials(url: str, name: str) -> list:
    import optuna

    storage = optuna.storages.RDBStorage(url)
    return optuna.load_study(study_name=name, storage=storage).trials


def test_three_workers_share_a_database_and_one_is_killed(cli, postgresql):
    command = ("tune", "digits-vit", *LONGER, "--trials", 6, "--workers", 1, "--json", "--study", "shared")
    workers = []
    for name in ("one", "two", "three"):  # as three hosts: nothing in common but the database
        place = Cli(cli.folder / name)
        place.folder.mkdir()
        place.env["FISMO_STORAGE"] = postgresql
        workers.append((place, place.start(*command)))
    place, victim = workers[1]
    wait_for(lambda: list(place.folder.glob("studies/*/trials/*/*/*/checkpoints/step-*/complete.json")), victim, 240)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    done = [worker.finish(process) for worker, process in (workers[0], workers[2])]
    assert [outcome.code for outcome in done] == [0, 0], done[0].err + done[1].err
    trials = database_trials(postgresql, "shared")
    ended = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert 6 <= len(ended) <= 7  # another one may have been running when the sixth ended
    check_once_each(trials, len(ended))
    assert [trial.state.name for trial in trials].count("FAIL") == 1
    owners = {trial.user_attrs["worker"] for trial in ended}
    assert len(owners) >= 2
    assert {outcome.json["best"]["value"] for outcome in done} == {min(trial.value for trial in ended)}


def test_trials_of_a_database_prune_and_respect_limits(cli, postgresql):
    process = cli.start(  # pruned while they run
        *("tune", "digits-vit", *SHORT, "--trials", 8, "--workers", 2, "--json", "--storage", postgresql),
        *("--pruner", "halving", "--sampler", "random", "--max-step-seconds", 1e-9),
    )
    done = cli.finish(process)
    assert done.code == 0, done.err
    assert done.json["trials"]["pruned"] >= 1
    assert sum(done.json["trials"].values()) == 8
    assert done.json["best"] is None
    assert done.json["best_preset"] is None
    assert "No trial kept all limits" in done.err


def test_a_wrong_password_is_refused_and_shown_nowhere(cli, postgresql, tmp_path):
    import psycopg
    from sqlalchemy.engine import make_url

    plain = make_url(postgresql)
    with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE ROLE tuner LOGIN PASSWORD 'right-secret' SUPERUSER")
        data = Path(connection.execute("SHOW data_directory").fetchone()[0])
        rules = data / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text("local all tuner scram-sha-256\n" + before)
        connection.execute("SELECT pg_reload_conf()")
    try:
        time.sleep(1)
        command = ("tune", "digits-vit", *SHORT, "--trials", 2, "--json", "--study", "secret")
        right = plain.set(username="tuner", password="right-secret").render_as_string(hide_password=False)
        cli.env["FISMO_STORAGE"] = plain.set(username="tuner", password="wrong-secret").render_as_string(
            hide_password=False
        )
        wrong = cli.run(*command)
        assert wrong.code == 2
        assert "password authentication failed" in wrong.err
        assert "secret@" not in wrong.err + wrong.out
        assert "wrong-secret" not in wrong.err
        assert not (cli.folder / "studies").exists()
        cli.env["FISMO_STORAGE"] = right
        done = cli.run(*command)
        assert done.code == 0, done.err
        assert done.json["storage"].startswith("postgresql+psycopg://tuner:***@")
        shown = done.out + done.err
        for file in cli.folder.rglob("*"):
            if file.is_file() and file.stat().st_size < 2**24:
                shown += file.read_bytes().decode(errors="ignore")
        assert "right-secret" not in shown
    finally:
        rules.write_text(before)


def test_a_database_that_goes_away(cli):
    with postgresql_server() as (url, server):
        process = cli.start("tune", "digits-vit", *LONGER, "--trials", 9, "--workers", 1, "--storage", url)
        wait_for(lambda: list(cli.folder.glob("studies/*/trials/*/*/*/metrics.jsonl")), process)
        os.kill(server.get_pid(), signal.SIGQUIT)
        done = cli.finish(process)
    assert done.code == 1
    assert "went away" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--sampler", "annealing", "--trials", 0),
            "--trials 0: must be at least 1\n       --sampler annealing: must be",
        ),
        (("--storage", "postgresql+psycopg://a:hunter2@127.0.0.1:1/x"), "cannot use postgresql+psycopg://a:***@127"),
        (("tune.space.optimizer.metric.damping={low: 2, high: 1}",), "must be below high (1), got 2"),
        (("tune.space.train.batch_size={choices: [64, 4096]}",), "4096 is more than the 1222 samples"),
        (("data.validation_fraction=0",), "no validation part"),
        (("optimizer.name=adadelta",), "learning rate"),
        (("--study", "a/b"), "--study a/b"),
    ],
)
def test_bad_input(cli, arguments, message):
    done = cli.run("tune", *SHORT, *arguments)
    assert done.code == 2, done.err
    assert message in done.err
    assert "hunter2" not in done.err
    assert not (cli.folder / "studies").exists()


def test_a_preset_that_fails_in_every_trial_stops_early(cli):
    done = cli.run("tune", *SHORT, "tune.space.model.args.patch_size={choices: [16]}", "--trials", 20)
    assert done.code == 1
    assert "trials failed, the last one so: exit code 2" in done.err
    assert "cannot take this preset's data" in done.err
    assert 3 <= done.err.count("model.args.patch_size 16") <= 4


def test_a_study_of_the_same_name_but_another_space(cli):
    command = ("tune", *SHORT, "train.steps=2", "--trials", 1, "--study", "mine")
    assert cli.run(*command).code == 0
    other = cli.run(*command, "optimizer.metric.damping=0.2")
    assert other.code == 2
    assert "another preset, space" in other.err
