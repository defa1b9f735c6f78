"""What is written when a comparison begins or goes on, by whom, under which names; no run is made."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fismo_cli.app import main
from fismo_cli.campaigns.executor import Failure
from fismo_cli.comparison import beginning
from fismo_cli.comparison.beginning import Asked, ask
from fismo_cli.comparison.contenders import folder_name
from fismo_cli.comparison.plan import Plan, read_plan
from fismo_cli.errors import DataError, UsageError
from fismo_cli.preset.loading import load_preset

RESULT = {
    "step_seconds": 0.1,
    **{"device": "cpu", "total_steps": 100, "total_samples": 6400, "batch_grows": False},
    **{"parameters": 10, "train_samples": 1222, "validation_samples": 216},
    "data": {"train": {"0": {"count": 178, "sha256": "a"}}},
}


class Tries:
    """Takes the place of a few real steps; remembers whose they were, and fails where it is told to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.failing: set[str] = set()
        self.side_by_side = self.most = 0
        self._guard = threading.Lock()

    def __call__(self, loaded, preset_file, *, leave):
        with self._guard:
            self.names.append(preset_file.stem)
            self.side_by_side += 1
            self.most = max(self.most, self.side_by_side)
        time.sleep(0.02)
        with self._guard:
            self.side_by_side -= 1
        return Failure(2, "no such thing") if preset_file.stem in self.failing else RESULT


@pytest.fixture
def tries(monkeypatch):
    found = Tries()
    monkeypatch.setattr(beginning, "dry_run_elsewhere", found)
    return found


def asked(root: Path, *baselines: str, overrides: tuple[str, ...] = (), **changes) -> Asked:
    usual = {
        "seeds": 3,
        "tune_trials": 0,
        "studies": None,
        "target": None,
        "margin": 0.005,
        "workers": 1,
        "omp_threads": "1",
    }
    return ask(load_preset("digits-vit", overrides), baselines, root=root, **{**usual, **changes})


def begin(what: Asked, told: list[str] | None = None) -> Plan:
    return beginning.begin(what, tried=([] if told is None else told).append)[0]


def test_a_contender_is_its_settings_not_its_place(tmp_path, tries):
    first = begin(asked(tmp_path, "muon", "sgd"))
    turned = begin(asked(tmp_path, "sgd", "muon"))
    more = begin(asked(tmp_path, "adam", "sgd", "muon"))
    assert sorted(tries.names) == ["adam", "fismo", "muon", "sgd"]
    assert first.directory == turned.directory == more.directory
    places = {label: plan.runs_dir(c) for plan in (first, turned) for c in plan.contenders for label in (c.label,)}
    for plan in (first, turned, more):
        for contender in plan.contenders:
            if contender.label in places:
                assert plan.runs_dir(contender) == places[contender.label]
                assert contender.run(2).preset == {c.label: c for c in first.contenders}[contender.label].run(2).preset
    assert [len(plan.declarations) for plan in (first, turned, more)] == [1, 1, 2]
    assert [contender.label for contender in read_plan(more.directory).contenders] == ["fismo", "adam", "sgd", "muon"]


def test_other_settings_of_a_baseline_are_other_runs_and_other_ones_of_the_candidate_another_comparison(
    tmp_path, tries
):
    first = begin(asked(tmp_path, "muon"))
    other = begin(asked(tmp_path, "muon", overrides=("compare.muon.lr=0.5",)))
    assert other.directory == first.directory
    assert other.contenders[1].run(0).preset != first.contenders[1].run(0).preset
    assert len(other.declarations) == 2
    assert tries.names == ["fismo", "muon", "muon"]
    for change in ("optimizer.lr=0.5", "train.batch_size=8", "train.seed=7", "train.threads=1"):
        assert asked(tmp_path, "muon", overrides=(change,)).directory != first.directory
    assert asked(tmp_path, "muon", tune_trials=3).directory != first.directory
    assert asked(tmp_path, "muon", overrides=("logging.tensorboard=true",)).directory == first.directory


def test_a_baseline_that_sees_other_data_is_refused_and_nothing_is_written(tmp_path, tries, monkeypatch):
    first = begin(asked(tmp_path, "muon"))
    before = {file: file.read_bytes() for file in first.directory.rglob("*") if file.is_file()}
    other = {**RESULT, "data": {"train": {"0": {"count": 179, "sha256": "b"}}}}
    monkeypatch.setattr(beginning, "dry_run_elsewhere", lambda *_, **__: other)
    with pytest.raises(DataError, match=r"since .* was begun: train: class 0 has 179 images, it had 178"):
        begin(asked(tmp_path, "muon", "sgd"))
    assert before == {file: file.read_bytes() for file in first.directory.rglob("*") if file.is_file()}


def test_two_that_begin_side_by_side_keep_what_both_declared(tmp_path, tries):
    plan = begin(asked(tmp_path, "muon"))
    both = [threading.Thread(target=begin, args=(asked(tmp_path, name),)) for name in ("adam", "sgd")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    stored = json.loads((plan.directory / "plan.json").read_text())
    assert sorted(next(iter(declared["baselines"])) for declared in stored["declarations"]) == ["adam", "muon", "sgd"]
    assert len(stored["tried"]) == 4
    begin(asked(tmp_path, "adam", "sgd"))
    assert sorted(tries.names) == ["adam", "fismo", "muon", "sgd"]


def test_who_does_not_run_is_named_and_nothing_is_written(tmp_path, tries):
    tries.failing = {"sgd", "adam"}
    told: list[str] = []
    with pytest.raises(UsageError, match=r"^sgd, adam: no such thing$"):
        begin(asked(tmp_path, "sgd", "muon", "adam"), told)
    assert told == [
        *("tried 1/4: fismo", "tried 2/4: sgd failed", "tried 3/4: muon", "tried 4/4: adam failed"),
    ]
    assert list(tmp_path.iterdir()) == []
    plan = begin(asked(tmp_path, "muon"))
    written = (plan.directory / "plan.json").read_bytes()
    with pytest.raises(UsageError):  # a baseline that comes later
        begin(asked(tmp_path, "muon", "adam"))
    assert (plan.directory / "plan.json").read_bytes() == written
    tries.failing = {"fismo", "adam", "lion"}
    with pytest.raises(UsageError, match=r"^no such thing$"):  # of the data, say: once for all
        begin(asked(tmp_path / "other", "adam", "lion"))


def test_more_seeds_on_other_data_are_refused_and_nothing_is_written(tmp_path, tries, monkeypatch):
    first = begin(asked(tmp_path, "muon"))
    for fewer in (2, 3):
        begin(asked(tmp_path, "muon", seeds=fewer))
    assert tries.names == ["fismo", "muon"]
    before = {file: file.read_bytes() for file in first.directory.rglob("*") if file.is_file()}
    other = {**RESULT, "data": {"train": {"0": {"count": 179, "sha256": "b"}}}}
    with monkeypatch.context() as changed:
        changed.setattr(beginning, "dry_run_elsewhere", lambda *_, **__: other)
        with pytest.raises(DataError, match="class 0 has 179 images"):
            begin(asked(tmp_path, "muon", seeds=4))
    assert before == {file: file.read_bytes() for file in first.directory.rglob("*") if file.is_file()}
    assert len(begin(asked(tmp_path, "muon", seeds=4)).seeds) == 4
    assert tries.names == ["fismo", "muon", "fismo"]


def test_a_signal_ends_the_tries_at_once(tmp_path, monkeypatch):
    left: list[str] = []

    def endless(loaded, preset_file, *, leave):
        if not left:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        deadline = time.monotonic() + 20
        while not leave() and time.monotonic() < deadline:
            time.sleep(0.01)
        left.append(preset_file.stem)

    monkeypatch.setattr(beginning, "dry_run_elsewhere", endless)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        begin(asked(tmp_path, "muon", "adam"))
    assert time.monotonic() - began < 15
    assert left == ["fismo"]
    assert list(tmp_path.iterdir()) == []


def test_tries_go_side_by_side_as_runs_do(tmp_path, tries):
    begin(asked(tmp_path, "muon", "sgd", "adam", "lion", workers=3))
    assert tries.most == 3


def test_too_few_seeds_are_known_before_anything_runs(tmp_path):
    many = ("muon", "sgd", "adam", "adamw", "lion")
    assert asked(tmp_path, *many, seeds=8).warnings() == []
    (warning,) = asked(tmp_path, *many, seeds=7).warnings()
    assert "with 7 seeds and 5 baselines" in warning
    assert "--seeds 8 would do" in warning
    (warning,) = asked(tmp_path, "muon", seeds=1).warnings()
    assert "with 1 seed and 1 baseline no difference" in warning
    assert "--seeds 6 would do" in warning


def test_seeds_end_at_the_largest(tmp_path, capsys):
    last = 2**32 - 1
    assert asked(tmp_path, "muon", overrides=(f"train.seed={last - 2}",)).seeds == (last - 2, last - 1, last)
    with pytest.raises(UsageError, match=f"^train.seed {last - 1}: the last of 3 seeds would be {last + 1}, and"):
        asked(tmp_path, "muon", overrides=(f"train.seed={last - 1}",))
    with pytest.raises(UsageError, match="the seed of tuning would be"):
        asked(tmp_path, "muon", overrides=(f"train.seed={last - 5000}",), tune_trials=2)
    with pytest.raises(SystemExit) as leaving:
        main(["tune", "digits-vit", f"train.seed={last}", "--repeats", "2"])
    assert leaving.value.code == 2
    assert f"train.seed {last}: the last of 2 seeds would be {last + 1}" in capsys.readouterr().err
    with pytest.raises(UsageError, match="at most 10,000"):  # the seed of tuning judges nothing
        asked(tmp_path, "muon", seeds=10_001)


def test_threads_stay_what_a_comparison_was_begun_with(tmp_path, tries):
    assert begin(asked(tmp_path, "muon", omp_threads="3")).contenders[0].loaded.preset.train.threads == 3
    plan = begin(asked(tmp_path, "muon", "adam", omp_threads="2"))
    assert {contender.loaded.preset.train.threads for contender in plan.contenders} == {3}
    assert asked(tmp_path, "muon", omp_threads=None, workers=10**6).threads == 1
    assert asked(tmp_path, "muon", omp_threads="3", overrides=("train.threads=5",)).threads == 5


LABELS = (
    *("timm/adamw", "timm-adamw", "timm.adamw", "Muon", "muon", "MUON", "a b", "a-b", "ä", "a\u0308", ".", "..", "..."),
    *("a.", f"timm-adamw-{folder_name('timm/adamw')[-8:]}", folder_name("ä"), "x" * 60, "x" * 300, "x" * 301, "/", "-"),
    *("con/", "runs", "tuning", "muon-3", "../up", "{name: x}", "[b]x[/b]", "0"),
)


def test_every_contender_has_its_own_folder(tmp_path):
    folders = [folder_name(label) for label in LABELS]
    assert len({folder.lower() for folder in folders}) == len(LABELS)
    for folder in folders:
        (tmp_path / folder).mkdir()
        assert folder.isascii()
    assert len(list(tmp_path.iterdir())) == len(LABELS)
    assert (folder_name("muon"), folder_name("timm-adamw")) == ("muon", "timm-adamw")


def test_labels_alike_do_not_share_runs(tmp_path, tries):
    plan = begin(asked(tmp_path, "timm/adamw", "timm-adamw", overrides=("compare.timm-adamw={name: adamw}",)))
    assert len({plan.runs_dir(contender) for contender in plan.contenders}) == 3
    again = read_plan(plan.directory)
    assert [contender.loaded.preset for contender in again.contenders] == [c.loaded.preset for c in plan.contenders]
    assert [again.runs_dir(contender) for contender in again.contenders] == [
        plan.runs_dir(contender) for contender in plan.contenders
    ]


def test_how_widely_is_searched_makes_another_comparison_only_where_something_is_tuned(tmp_path, tries):
    folders = {
        (trials, reach): asked(tmp_path, "muon", tune_trials=trials, overrides=(f"tune.range={reach}",)).directory
        for trials in (0, 2)
        for reach in (10, 3)
    }
    assert folders[0, 10] == folders[0, 3]
    assert folders[2, 10] != folders[2, 3]


def test_a_directory_of_an_earlier_version_is_read(tmp_path, tries):
    plan = begin(asked(tmp_path, "timm/adamw"))
    stored = json.loads((plan.directory / "plan.json").read_text())
    (plan.directory / "presets" / f"{stored['folders']['timm/adamw']}.yaml").rename(
        plan.directory / "presets" / "timm-adamw.yaml"
    )
    old = {key: value for key, value in stored.items() if key not in ("folders", "tried")}
    (plan.directory / "plan.json").write_text(json.dumps(old))
    assert read_plan(plan.directory).runs_dir(read_plan(plan.directory).contenders[1]).name == "timm-adamw"
