"""The first arguments of a command: a file that exists is the preset, whatever its name; all else with = overrides."""

import os
from pathlib import Path

import pytest

from fismo_cli.app import main
from fismo_cli.commands.compare import spread_out
from fismo_cli.environment import run_threads
from fismo_cli.errors import PresetError
from fismo_cli.preset.arguments import load_arguments
from fismo_cli.preset.locate import find_preset


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["lr=0.1/my.yaml", "a b=[1]{2}.yaml", "./train.steps=3", "ä=ö.yml", "[red]=x.yaml"])
def test_a_file_is_the_preset(here, name):
    path = here / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(find_preset("digits-vit").text)
    for given in (name, str(path)):
        loaded, by_default = load_arguments(given, ["train.seed=5"])
        assert (loaded.source, by_default, loaded.preset.train.seed) == (given, False, 5)


def test_an_override_is_one_where_there_is_no_such_file(here):
    (here / "train.steps=3").mkdir()  # a folder without a preset is none
    loaded, by_default = load_arguments("train.steps=3", ["train.seed=5"])
    assert (loaded.name, by_default, loaded.preset.train.steps, loaded.preset.train.seed) == ("digits-vit", True, 3, 5)
    load_arguments(f"optimizer.rules={{{'a' * 300}: matrix}}", [])  # longer than any path
    assert load_arguments(None, [])[1]


@pytest.mark.parametrize("command", ["tune", "compare", "train", "validate"])
@pytest.mark.parametrize("missing", ["lr=0.1/my.yaml", "optimizer.rate=mine.yaml"])
def test_a_file_that_is_missing(here, capsys, command, missing):
    with pytest.raises(SystemExit) as leaving:
        main([command, missing, *(["--baselines", "adam"] if command == "compare" else [])])
    message = capsys.readouterr().err
    assert leaving.value.code == 2
    assert message.count("\n") == 1 or command in ("tune", "compare")
    first = message.splitlines()[0]
    assert missing in first
    if command in ("tune", "compare"):
        assert "key" in first
        assert "nor is there a file of this name" in first
    else:
        assert "no such file; if it is to be an override, it goes after the preset" in first
    assert list(here.iterdir()) == []


def test_a_folder_and_a_preset_that_comes_late(here):
    (here / "run=1").mkdir()
    (here / "run=1" / "preset.yaml").write_text(find_preset("digits-vit").text)
    with pytest.raises(PresetError, match=r"run=1  is a folder; did you mean run=1/preset.yaml\?"):
        load_arguments("run=1", [])
    with pytest.raises(PresetError, match="a preset goes before all overrides"):
        load_arguments("train.steps=3", ["mine.yaml"])


def test_after_the_baselines_a_file_is_no_override(here):
    given = ["--baselines", "adam", "lr=0.1/my.yaml", "train.steps=3"]
    assert spread_out(given) == ["--baselines", "adam", "lr=0.1/my.yaml", "train.steps=3"]


def test_threads_go_by_the_preset_then_by_the_variable_then_by_the_cores():
    assert run_threads(3, "1", 2) == 3
    assert run_threads(None, "1", 2) == 1
    assert run_threads(None, "4,2", 2) == 4
    cores = len(os.sched_getaffinity(0)) if Path("/proc").exists() else os.cpu_count()
    for nothing in (None, "", "many", "0"):
        assert run_threads(None, nothing, 1) == cores
        assert run_threads(None, nothing, 10**6) == 1
