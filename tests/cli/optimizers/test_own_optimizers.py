"""Optimizers of a user's own, from a file or a package: as good as the libraries', known to the byte, or refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fismo_cli import own_optimizers
from fismo_cli.app import main
from fismo_cli.errors import ExitCode, PresetError, UsageError
from fismo_cli.optimizers import MatrixOptimizer, build_optimizer
from fismo_cli.own_optimizers import own_class, own_names, use_file
from fismo_cli.preset.loading import identity, load_preset
from fismo_cli.preset.schema import BaselineConfig
from fismo_cli.tuning.search_space import compared_space

FILE = """
import torch
from helper_beside import FACTOR

class Mine(torch.optim.SGD):
    pass

class Turned(torch.optim.Muon):
    pass

class Neither:
    pass

class Switched(torch.optim.SGD):
    def train(self): pass
    def eval(self): pass

class _Hidden(torch.optim.SGD):
    pass

class Stepless(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
"""


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(own_optimizers, "_files", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "helper_beside", raising=False)
    own_optimizers._module.cache_clear()
    (tmp_path / "helper_beside.py").write_text("FACTOR = 1\n")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    use_file(str(path))
    return path


def trained(name: str, **options) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = build_optimizer(BaselineConfig(name=name, **options), model)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("name", "own"), [("sgd", "own/Mine"), ("muon", "own-matrices/Turned"), ("sgd", "own-matrices/Mine")]
)
def test_it_trains_as_the_librarys_does_of_which_it_is_a_subclass(file, name, own):
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    same = all(map(torch.equal, trained(own, **options), trained(name, **options)))
    assert same == (own != "own-matrices/Mine")  # which has AdamW beside it
    assert isinstance(build_optimizer(BaselineConfig(name=own, lr=0.1), nn.Linear(3, 3)), MatrixOptimizer) == (
        own.startswith("own-matrices/")
    )


def test_names_are_those_of_the_classes_at_the_top(file):
    assert own_names() == ("Mine", "Turned", "Neither", "Switched", "Stepless")
    assert "helper_beside" not in sys.modules  # nothing is run before one is built
    with pytest.raises(PresetError, match=r"there is no optimizer Other of your own: mine.py has Mine, T"):
        load_preset("digits-vit", ["optimizer.name=own/Other"])
    space = compared_space(load_preset("digits-vit", ["optimizer.name=own/Mine", "optimizer.lr=0.1"]).preset.optimizer)
    assert set(space) == {"optimizer.lr", "optimizer.weight_decay"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("own/Neither", "Neither is no subclass of torch.optim.Optimizer"),
        ("own/Switched", "Switched trains other weights than it evaluates"),
        ("own/_Hidden", "there is no optimizer _Hidden of your own"),
        ("own/", "there is no optimizer  of your own"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(file, name, why):
    with pytest.raises(UsageError, match=why):
        own_class(name)


def test_one_that_takes_no_step_is_refused(file):
    with pytest.raises(UsageError, match="optimizer own/Stepless: NotImplementedError"):
        build_optimizer(BaselineConfig(name="own/Stepless", lr=0.1), nn.Linear(3, 3))


def test_no_file_is_no_directory(file, capsys):
    for arguments in (["validate", "digits-vit", "--import"], ["validate", "digits-vit", "--import="]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == ExitCode.USAGE
        assert capsys.readouterr().err == "error: --import: name a Python file, as in --import mine.py\n"


def test_what_a_file_raises_is_said_with_its_line(file):
    file.write_text("class Mine: pass\n1 / 0\n")
    with pytest.raises(UsageError, match=r"--import .*mine.py: ZeroDivisionError: division by zero \(mine.py:2\)"):
        own_class("own/Mine")


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "cannot be read (No such file"), ("class A(:\n", ":1: invalid syntax"), ("a = '\0'", "null")],
)
def test_a_file_that_is_no_python_is_refused_before_anything(file, capsys, text, why):
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(SystemExit) as left:
        main(["validate", "digits-vit", "--import", str(file)])
    assert left.value.code == ExitCode.USAGE
    assert why in capsys.readouterr().err


def test_without_a_file_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(own_optimizers, "_files", [])
    for arguments in (["validate", "digits-vit", "optimizer.name=own/Mine"], ["compare", "--baselines", "own/Mine"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == ExitCode.USAGE
        assert (
            "there is no optimizer Mine of your own: name a file that has it by --import FILE.py"
            in capsys.readouterr().err
        )


def test_runs_are_known_by_the_bytes_of_the_file(file, tmp_path):
    def known():
        return identity(load_preset("digits-vit", ["optimizer.name=own/Mine", "optimizer.lr=0.1"]).preset)

    before = known()
    moved = tmp_path / "elsewhere.py"
    moved.write_text(FILE)
    use_file(str(moved))
    assert known() == before
    moved.write_text(f"{FILE}# other\n")
    assert known() != before


def test_a_package_has_them_by_an_entry_point(tmp_path, monkeypatch):
    monkeypatch.setattr(own_optimizers, "_files", [])
    (tmp_path / "their_package.py").write_text("import torch\nclass Theirs(torch.optim.SGD): pass\n")
    info = tmp_path / "their_package-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[fismo.optimizers]\ntheirs = their_package:Theirs\ngone = their_package:No\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own_optimizers._points.cache_clear()
    try:
        assert own_class("own/theirs").__name__ == "Theirs"
        assert own_optimizers.own_origin("own/theirs") == {
            "package": "their-package 1.2",
            "entry point": "their_package:Theirs",
        }
        with pytest.raises(UsageError, match=r"the entry point gone of their-package 1.2: AttributeError"):
            own_class("own/gone")
        with pytest.raises(UsageError, match="no optimizer mine of your own: installed are theirs, gone"):
            own_class("own/mine")
    finally:
        own_optimizers._points.cache_clear()


@pytest.mark.slow
def test_it_is_compared_and_the_record_says_which_file(file, tmp_path):
    from tests.end_to_end.conftest import Cli

    cli = Cli(tmp_path)
    short = (
        "train.epochs=null",
        "train.steps=12",
        "train.threads=1",
        "optimizer.weight_decay=0",
        "compare.own/Mine.lr=0.1",
    )
    done = cli.run(
        "compare", "digits-vit", *short, "--baselines", "own/Mine", "--seeds", 1, "--import", "mine.py", "--json"
    )
    assert done.code == ExitCode.DONE, done.err
    (run,) = [run for run in done.json["runs"] if run["label"] == "own/Mine"]
    recorded = json.loads((tmp_path / run["run_dir"] / "environment.json").read_text())["optimizer"]
    assert recorded["file"] == str(file)
    assert len(recorded["sha256"]) == 64
    sgd = cli.run(
        "train", "digits-vit", *short[:3], "optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "--json"
    )
    assert sgd.json["metrics"]["validation"] == run["metrics"]["validation"]
