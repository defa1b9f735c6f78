"""What `fismo doctor` says of a machine, and of a preset on it."""

import copy
import json

import pytest

from fismo_cli import advice
from fismo_cli.advice import advice_for, gravest
from fismo_cli.app import main
from fismo_cli.environment import environment
from fismo_cli.preset.loading import load_preset

GOOD = {
    "cuda": "13.0",
    "gpus": [{"name": "H100"}],
    "mps": False,
    "bfloat16": {"cpu": False, "cuda": True},
    "cpu": {"usable_cores": 16},
    "threads": {"intra_op": 16},
}


def machine(**changes):
    return {**copy.deepcopy(GOOD), **changes}


def said(tmp_path, *overrides, **changes):
    found = advice_for(load_preset("digits-vit", overrides).preset, machine(**changes), tmp_path)
    return [(each.severity, each.text) for each in found]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    return f"data={{source: image-folder, path: '{tmp_path / 'photos'}'}}"


def test_a_good_machine_needs_no_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "LEAST_DISK", 0)
    assert said(tmp_path) == []
    assert said(tmp_path, "train.precision=bfloat16", "train.threads=1") == []


@pytest.mark.parametrize(
    ("overrides", "changes", "severity", "words"),
    [
        (["train.device=cuda:1"], {}, "stops", "this machine has 1 CUDA devices"),
        (["train.device=mps"], {}, "stops", "no MPS device"),
        (["data={source: npz, path: none.npz}"], {}, "stops", "data.path: no such file: none.npz"),
        (["train.precision=bfloat16", "train.device=cpu"], {}, "slow", "this CPU has no fast bfloat16"),
        (["train.precision=bfloat16"], {"bfloat16": {"cpu": True, "cuda": False}}, "slow", "this GPU has no fast"),
        (["train.precision=float16", "train.device=cpu"], {}, "slow", "slow on a CPU"),
        (["train.threads=1", "train.device=cpu"], {}, "slow", "1 of 16 CPU cores"),
        (["train.device=cpu"], {"threads": {"intra_op": 1}}, "slow", "OMP_NUM_THREADS"),
        ([], {"gpus": []}, "note", "no GPU is seen"),
    ],
)
def test_what_is_slow_or_stops_is_said_with_what_to_do(tmp_path, monkeypatch, overrides, changes, severity, words):
    monkeypatch.setattr(advice, "LEAST_DISK", 0)
    ((found, text),) = said(tmp_path, *overrides, **changes)
    assert found == severity
    assert words in text
    preset = load_preset("digits-vit", overrides).preset
    assert gravest(preset, machine(**changes)) == (text if severity == "slow" else None)


def test_images_from_files_want_workers_and_workers_want_shared_memory(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(advice, "LEAST_DISK", 0)
    ((severity, text),) = said(tmp_path, folder)
    assert (severity, text.startswith("data.workers=0")) == ("slow", True)
    monkeypatch.setattr(advice, "LEAST_SHARED", 1 << 60)
    ((severity, text),) = said(tmp_path, folder, "data.workers=2")
    assert (severity, "--shm-size" in text) == ("note", True)


def test_the_gravest_comes_first_and_a_full_disk_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(advice, "LEAST_DISK", 1 << 60)
    found = said(tmp_path / "not" / "there", "train.device=cpu", "train.precision=float16", "model.pretrained=nowhere")
    assert [severity for severity, _ in found] == ["stops", "slow", "note"]
    assert f"{tmp_path} has" in found[-1][1]


def test_it_knows_this_machine_by_the_keys_of_environment(tmp_path):
    preset = load_preset("digits-vit").preset
    assert all(each.severity == "note" for each in advice_for(preset, environment(), tmp_path))


def test_the_command_says_it_and_fails_where_the_preset_cannot_run(capsys):
    for arguments, code in ((["doctor"], 0), (["doctor", "digits-vit", "train.device=cuda:77"], 1)):
        with pytest.raises(SystemExit) as leaving:
            main([*arguments, "--json"])
        answer = json.loads(capsys.readouterr().out)
        assert (leaving.value.code, answer["ok"]) == (code, code == 0)
    assert "cuda:77" in answer["advice"][0]["text"]
