"""The command line as a user meets it: help, exit codes, what goes to stdout and stderr, and what is imported."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fismo_cli import app as app_module
from fismo_cli.app import COMMANDS, main
from fismo_cli.errors import DivergedError, FismoError, PresetError, UsageError
from fismo_cli.preset.loading import shipped_presets

ROOT = Path(__file__).parents[3]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line in this process."""
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    captured = capsys.readouterr()
    return int(leaving.value.code or 0), captured.out, captured.err


def process(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fismo_cli", *arguments], capture_output=True, text=True, env=environment, **options
    )


def modules_after(code: str) -> set[str]:
    """What a fresh Python has imported after running code that leaves by SystemExit."""
    program = f"import sys\ntry:\n  {code}\nexcept SystemExit: pass\nprint('MODULES', *sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


HEAVY = {"torch", "timm", "transformers", "optuna", "numpy", "sklearn", "pytorch_optimizer", "datasets"}


def test_help_imports_nothing_but_typer_and_rich():
    loaded = modules_after("from fismo_cli.app import main; main(['--help'])")
    assert not loaded & (HEAVY | {"pydantic", "yaml"})
    assert {name for name in loaded if name.startswith("fismo")} == {"fismo_cli", "fismo_cli.app", "fismo_cli.errors"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "digits-vit", "optimizer.name=soap"],
        ["validate", "digits-vit", "nope=1"],
        ["presets", "list"],
        ["train", "digits-vit", "data.source=npz", "data.path=/none.npz"],
        ["train", "digits-vit", "train.batch_size=63", "--nproc", "2"],
    ],
)
def test_what_is_checked_before_a_run_imports_no_heavy_library(arguments):
    assert not modules_after(f"from fismo_cli.app import main; main({arguments!r})") & HEAVY


def test_fismo_alone_shows_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", out, re.MULTILINE)


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert re.match(r"fismo (\d+\.\d+|\(not installed)", out)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_each_command_is_there_with_the_help_that_the_list_says(name, capsys):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"fismo {name}" in out
    assert COMMANDS[name].help in " ".join(re.sub("[│╭╮╰╯─]", " ", out).split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validat"], "validate"),
        (["validate"], "PRESET"),
        (["validate", "digits-vit", "--nope"], "--nope"),
        (["presets", "show", "digits-vi"], "Did you mean digits-vit"),
        (["presets", "copy", "digits-vit", "no/such/folder/x.yaml"], "there is no folder"),
        (["validate", "no.yaml"], "no such file"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_so_on_stderr(arguments, words, capsys):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


def test_validate_says_what_will_be_run(capsys):
    code, out, err = run(capsys, "validate", "digits-vit", "optimizer.name=muon", "optimizer.lr=0.07", "train.steps=77")
    assert (code, err) == (0, "note: left out of presets/digits-vit.yaml: train.epochs (train.steps takes its place)\n")
    for words in ("ok         presets/digits-vit.yaml", "muon, lr 0.07", "77 steps"):
        assert words in out


def test_validate_json_is_all_there_is_on_stdout(capsys):
    code, out, err = run(capsys, "validate", "digits-vit", "train.seed=9", "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record["valid"] is True
    assert record["preset"]["train"]["seed"] == 9
    code, out, err = run(capsys, "validate", "digits-vit", "train.seed=x", "train.sed=1", "--json")
    assert code == 2
    assert json.loads(out)["valid"] is False
    assert len(json.loads(out)["problems"]) == 2
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize("command", ["validate", "train"])
def test_files_that_are_not_there_are_named_with_file_line_and_key(tmp_path, capsys, command):
    path = tmp_path / "mine.yaml"
    text = shipped_presets()["digits-vit"].read_text()
    path.write_text(text.replace("source: digits ", f"path: {tmp_path}/none.npz\n  source: npz "))
    code, _, err = run(capsys, command, str(path), "model.pretrained=nowhere")
    assert code == 2
    assert re.search(r"mine.yaml:\d+  data.path: no such file: .*none.npz", err)
    assert "command line: model.pretrained=nowhere  model.pretrained: no such file or folder: nowhere" in err
    (tmp_path / "none.npz").touch()
    assert run(capsys, "validate", str(path))[0] == 0


def test_validate_understands_patterns_of_text_files(tmp_path, capsys):
    overrides = ["data.source=text-files", f"data.path=['{tmp_path}/*.txt', '{tmp_path}']"]
    assert run(capsys, "validate", "stdlib-gpt2", *overrides)[0] == 2
    (tmp_path / "a.txt").touch()
    assert run(capsys, "validate", "stdlib-gpt2", *overrides)[0] == 0


def test_presets_list_and_show(capsys):
    code, out, _ = run(capsys, "presets", "list", "--json")
    assert code == 0
    assert json.loads(out) == sorted(shipped_presets())
    code, out, err = run(capsys, "presets", "list")
    assert (code, err) == (0, "")
    assert all(name in out for name in shipped_presets())
    assert run(capsys, "presets")[1] == out
    code, out, err = run(capsys, "presets", "show", "stdlib-gpt2")
    assert (code, err) == (0, "")
    assert out == shipped_presets()["stdlib-gpt2"].read_text()


def test_presets_copy_to_a_file_or_a_folder_and_never_over_a_file_unasked(tmp_path, capsys):
    original = shipped_presets()["digits-vit"].read_bytes()
    target = tmp_path / "mine.yaml"
    assert run(capsys, "presets", "copy", "digits-vit", str(target))[0] == 0
    assert target.read_bytes() == original
    target.write_text("my own work")
    code, _, err = run(capsys, "presets", "copy", "digits-vit", str(target))
    assert code == 2
    assert "--force" in err
    assert target.read_text() == "my own work"
    assert run(capsys, "presets", "copy", "digits-vit", str(target), "--force")[0] == 0
    assert target.read_bytes() == original
    assert run(capsys, "presets", "copy", "digits-vit", str(tmp_path))[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-vit.yaml", "mine.yaml"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that not even root can write to")
def test_presets_copy_to_a_folder_that_takes_no_files(capsys):
    code, out, err = run(capsys, "presets", "copy", "digits-vit", "/proc/self")
    assert (code, out) == (2, "")
    assert err.startswith("error: cannot write /proc/self/digits-vit.yaml: ")
    assert "tmp" not in err


def test_env_names_what_a_bug_report_needs(capsys):
    code, out, err = run(capsys, "env", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    import torch

    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["threads"]["intra_op"] == torch.get_num_threads()
    assert {"python", "timm", "transformers", "optuna", "pytorch-optimizer", "numpy"} <= set(found["versions"])
    assert found["cpu"]["model"]
    assert found["cpu"]["memory_bytes"] > 2**28
    code, out, err = run(capsys, "env")
    assert (code, err) == (0, "")
    assert found["cpu"]["model"] in out


@pytest.fixture
def failing(monkeypatch):
    """Makes `fismo env` raise what a test wants."""

    def fail_with(error: BaseException) -> None:
        def env() -> None:
            raise error

        import fismo_cli.commands.env

        monkeypatch.setattr(fismo_cli.commands.env, "env", env)

    return fail_with


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FismoError("the checkpoint is broken"), 1, "error: the checkpoint is broken"),
        (UsageError("no such folder"), 2, "error: no such folder"),
        (PresetError(["preset error: a", "preset error: b"]), 2, "preset error: a\npreset error: b"),
        (DivergedError("the loss is nan"), 4, "error: the loss is nan"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            ValueError("a\nb"),
            1,
            "unexpected error: ValueError: a (test_app.py:LINE); run again with --debug for the traceback",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            1,
            "error: the disk is full: runs/x; free some space and run again",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            1,
            "error: the disk is full; free some space and run again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "error: Permission denied: runs"),
        (OSError(errno.EROFS, "Read-only file system", "runs"), 1, "error: Read-only file system: runs"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
    ],
)
def test_errors_end_in_one_sentence_and_their_exit_code(failing, capsys, error, code, line):
    failing(error)
    found, out, err = run(capsys, "env")
    assert (found, out) == (code, "")
    assert re.sub(r"py:\d+", "py:LINE", err) == (f"{line}\n" if line else "")


@pytest.mark.parametrize("arguments", [["--debug", "env"], ["env", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(failing, capsys, arguments):
    failing(ValueError("what happened"))
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert err.startswith("Traceback")
    assert re.search(r"unexpected error: ValueError: what happened \(test_app\.py:\d+\)\n$", err)


def test_a_reader_that_went_away_is_no_error():
    program = f"{sys.executable} -m fismo_cli presets show digits-vit | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=environment)
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence():
    with open("/dev/full", "w") as full:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "fismo_cli", "presets", "list", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr == "error: the disk is full; free some space and run again\n"


def test_the_module_runs_as_a_program():
    done = process("validate", "digits-vit", "optimizer.dampng=1")
    assert done.returncode == 2
    assert done.stderr == (
        "preset error: command line: optimizer.dampng=1  optimizer.dampng: unknown key. "
        "Did you mean optimizer.metric.damping?\n"
    )


def test_environment_variables_are_read_nowhere_else():
    """Libraries read their own; fismo's code must not, but in app.py, where it can be seen."""
    pattern = re.compile(r"environ\.get|environ\[|getenv")
    files = [path for package in ("fismo_core", "fismo_cli") for path in (ROOT / package).rglob("*.py")]
    reading = {path for path in files if pattern.search(path.read_text(encoding="utf-8"))}
    assert reading <= {Path(app_module.__file__)}


def test_a_signal_that_a_library_swallows_while_it_is_imported_ends_the_command_all_the_same(monkeypatch, capsys):
    class Command:
        def main(self, **_):
            with contextlib.suppress(SystemExit):  # as an import that tries another way
                os.kill(os.getpid(), signal.SIGTERM)
            raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr(app_module.typer.main, "get_command", lambda _: Command())
    code, _, err = run(capsys, "train")
    assert (code, err.strip()) == (143, "stopped by SIGTERM")


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [("fismo tr", "train"), ("fismo train digits-v", "digits-vit"), ("fismo compare --base", "--baselines")],
)
def test_the_shell_completes_commands_presets_and_options(typed, wanted):
    variables = {"_FISMO_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "fismo_cli"],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert wanted in done.stdout.split()
    assert not done.stderr
