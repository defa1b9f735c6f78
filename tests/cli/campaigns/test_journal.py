"""A study's journal after crashes in mid-write, power loss and full disks; only Optuna says what it should hold."""

import errno
import json
import os
import threading
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend

from fismo_cli.campaigns.journal import readable_part
from fismo_cli.campaigns.storage import open_storage, read_journal, storage_errors
from fismo_cli.errors import FismoError, UsageError

SPACE = {"x": FloatDistribution(0.0, 1.0), "n": IntDistribution(0, 9)}


def opened(folder: Path, notes: list[str] | None = None) -> optuna.Study:
    storage = open_storage(None, folder, ([] if notes is None else notes).append)
    return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)


def fill(study: optuna.Study, count: int) -> None:
    for _ in range(count):
        trial = study.ask(SPACE)
        trial.set_user_attr("worker", "me")
        study.tell(trial, trial.params["x"])


def values(folder: Path) -> list[tuple[int, str, float | None]]:
    """By Optuna's own reader."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    return [(t.number, t.state.name, t.value) for t in optuna.load_study(study_name="s", storage=storage).trials]


@pytest.mark.parametrize("cut", [1, 25, 60])
def test_a_half_line_is_set_aside_and_the_study_goes_on(tmp_path, cut):
    fill(opened(tmp_path), 3)
    before, journal = values(tmp_path), tmp_path / "journal.log"
    data = journal.read_bytes()
    journal.write_bytes(data[:-cut])
    notes: list[str] = []
    study = opened(tmp_path, notes)
    (note,) = notes
    (broken,) = tmp_path.glob("journal.log.broken-*")
    assert "1 line that cannot be used was moved to journal.log.broken-" in note
    assert broken.read_bytes() == data[:-cut].rpartition(b"\n")[2]
    fill(study, 2)
    found = values(tmp_path)
    assert found[:2] == before[:2]
    assert [state for _, state, _ in found] == ["COMPLETE", "COMPLETE", "RUNNING", "COMPLETE", "COMPLETE"]


def test_a_worker_that_runs_sets_aside_what_one_that_was_killed_left(tmp_path):
    """Neither a worker that was there before nor one that reads at the time sees anything else than whole lines."""
    one, other = opened(tmp_path), opened(tmp_path)
    fill(one, 1)
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"de')
    fill(other, 1)
    fill(one, 1)
    assert len(one.trials) == len(other.trials) == 3
    assert [state for _, state, _ in values(tmp_path)] == ["COMPLETE"] * 3
    (broken,) = tmp_path.glob("journal.log.broken-*")
    assert broken.read_bytes() == b'{"op_code":4,"worker_id":"de'


def test_workers_that_append_while_others_leave_half_lines(tmp_path):
    studies = [opened(tmp_path) for _ in range(3)]

    def vandal() -> None:
        for _ in range(20):
            with (tmp_path / "journal.log").open("ab") as file:
                file.write(b"half")

    threads = [threading.Thread(target=fill, args=(study, 6)) for study in studies]
    # The lock is what keeps a real worker from writing meanwhile; here only their own half lines are in question.
    with studies[0]._storage._backend._alone():
        vandal()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state for _, state, _ in values(tmp_path)] == ["COMPLETE"] * 18


def test_of_a_loss_in_the_middle_what_still_makes_sense_is_kept(tmp_path):
    """Each line in turn is replaced by NULs: no trial may come out with another one's value or settings."""
    one, other = opened(tmp_path), opened(tmp_path)
    for _ in range(2):
        drawn = [(study, study.ask(SPACE)) for study in (one, other)]
        for number, (study, trial) in enumerate(drawn):
            trial.set_user_attr("worker", str(number))
            study.tell(trial, trial.params["x"])
    data = (tmp_path / "journal.log").read_bytes()
    whole = {trial.number: trial for trial in one.trials}
    lines = data.splitlines(keepends=True)
    kept, broken = readable_part(b"".join([*lines[:7], b"\0" * 30 + b"\n", *lines[7:]]))
    assert (kept, broken) == (data, b"\0" * 30 + b"\n")
    most = 0
    for index in range(len(lines)):
        folder = tmp_path / str(index)
        folder.mkdir()
        damaged = b"".join([*lines[:index], b"\0" * 40 + b"\n", *lines[index + 1 :]])
        (folder / "journal.log").write_bytes(damaged)
        kept, broken = readable_part(damaged)
        assert len(kept) + len(broken) == len(damaged)
        for trial in opened(folder).trials:
            original = whole[trial.number]
            assert trial.params.items() <= original.params.items()
            assert trial.value in (None, original.value)
            assert trial.state.name == "RUNNING" or trial.params == original.params
        most = max(most, len(kept.splitlines()))
        fill(opened(folder), 1)
        assert values(folder)[-1][1] == "COMPLETE"
    assert most == len(lines) - 1


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    study = opened(tmp_path)
    fill(study, 1)
    before, journal = (tmp_path / "journal.log").read_bytes(), tmp_path / "journal.log"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with (
            pytest.raises(FismoError, match=r"journal.log cannot be used any more: No space left on device. The same"),
            storage_errors(None, tmp_path),
        ):
            study.ask(SPACE)
    assert journal.read_bytes() == before
    fill(opened(tmp_path), 1)
    assert [state for _, state, _ in values(tmp_path)] == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("how", ["removed", "replaced", "garbled", "folder"])
def test_a_journal_that_goes_away_is_an_error_and_no_new_one_is_begun(tmp_path, how):
    study, journal = opened(tmp_path), tmp_path / "journal.log"
    fill(study, 1)
    data = journal.read_bytes()
    journal.rename(tmp_path / "before")
    match how:
        case "replaced":
            journal.write_bytes(data)
        case "folder":
            journal.mkdir()
        case "garbled":
            (tmp_path / "before").rename(journal)
            with journal.open("ab") as file:
                file.write(b"\0\0\n" + data.splitlines()[-1] + b"\n")
    with (
        pytest.raises(FismoError, match=r"journal\.log cannot be used any more") as caught,
        storage_errors(None, tmp_path),
    ):
        fill(study, 2)
    assert caught.value.exit_code == 1
    assert how != "removed" or not journal.exists()


@pytest.mark.parametrize(
    "content", [b'{"op_code":77,"worker_id":"a"}\n', b'{"op_code":0,"worker_id":"a","name":"other keys"}\n']
)
def test_a_journal_of_another_version_is_refused_and_stays_as_it_is(tmp_path, content):
    journal = tmp_path / "journal.log"
    journal.write_bytes(content)
    for reader in (lambda: open_storage(None, tmp_path), lambda: read_journal(tmp_path)):
        with pytest.raises(UsageError, match=f"Optuna {optuna.__version__} does not understand it"):
            reader()
    assert journal.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"half a line", b"\0" * 4096])
def test_a_journal_without_a_whole_line_is_begun_anew(tmp_path, content):
    (tmp_path / "journal.log").write_bytes(content)
    fill(opened(tmp_path), 1)
    assert [state for _, state, _ in values(tmp_path)] == ["COMPLETE"]
    broken = b"".join(file.read_bytes() for file in tmp_path.glob("journal.log.broken-*"))
    assert broken == content


def test_a_report_reads_and_writes_nothing(tmp_path):
    fill(opened(tmp_path), 2)
    journal = tmp_path / "journal.log"
    journal.write_bytes(data := journal.read_bytes()[:-9])
    before = sorted(tmp_path.iterdir())
    study = optuna.load_study(study_name="s", storage=read_journal(tmp_path))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    assert (journal.read_bytes(), sorted(tmp_path.iterdir())) == (data, before)
    assert all(json.loads(line) for line in data.splitlines()[:-1])
