"""Letters outside ASCII: whatever the locale, files are UTF-8, and no name ends a run."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fismo_cli.preset.loading import load_preset, resolved_yaml
from fismo_cli.reporting.page import document

ROOT = Path(__file__).parents[2]


def _text_files_without_encoding(tree):
    """Calls that open a text file, or a process's output as text, in whatever encoding the locale has."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(getattr(call.func, "value", None), "id", "")
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        constants = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        given = len(call.args) > {"read_text": 0, "write_text": 1}.get(name, 9)
        binary = any(isinstance(value, str) and "b" in value for value in constants[-1:])
        opens = name == "open" and owner not in ("os", "Image") and not binary
        as_text = name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & named.keys()
        if (
            "encoding" not in named
            and not given
            and (opens or as_text or name in ("read_text", "write_text", "fdopen"))
        ):
            yield call.lineno


def test_every_text_file_is_opened_with_an_encoding():
    files = [*ROOT.glob("fismo_cli/**/*.py"), *ROOT.glob("fismo_core/**/*.py")]
    assert len(files) > 100
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in files
        for line in _text_files_without_encoding(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_names_that_are_not_utf8_can_be_written_down(tmp_path):
    source = os.fsdecode(bytes(tmp_path) + b"/caf\xe9/one.yaml")
    Path(source).parent.mkdir()
    shutil.copy(ROOT / "presets" / "digits-vit.yaml", source)
    loaded = load_preset(source)
    text = resolved_yaml(loaded)
    assert "caf\\udce9/one.yaml" in text.encode().decode()
    assert load_preset(source).preset == loaded.preset
    assert "caf\\udce9" in document(source, [f"<p>{source}</p>"]).encode().decode()


@pytest.mark.slow
def test_names_beyond_ascii_where_the_locale_knows_ascii_only(tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("kätze", "hund"):
            folder = tmp_path / "bïlder" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"ä{index}.png")
    os.rename(folder / "ä0.png", os.fsencode(folder) + b"/caf\xe9.png")  # noqa: PTH104  (in Latin-1)
    preset = tmp_path / "größe.yaml"
    preset.write_text(
        "task: image-classification\nmodel: {library: timm, name: test_resnet}\n"
        "data: {source: image-folder, path: bïlder, image_size: 32, validation_fraction: 0.25}\n"
        "optimizer: {name: sgd, lr: 0.01}\ntrain: {steps: 1, batch_size: 4}\n",
        encoding="utf-8",
    )
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONIOENCODING", "LANG")}
    environment = {**kept, "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "fismo_cli", "train", "größe.yaml", "--runs-dir", "läufe", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    assert summary["preset"] == "größe"
    assert "läufe/größe/" in done.stderr.decode()
    run = tmp_path / summary["run_dir"]
    assert run.parent == tmp_path / "läufe" / "größe"
    assert "path: bïlder" in (run / "preset.yaml").read_text(encoding="utf-8")
    assert json.loads((run / "environment.json").read_text())["data"]["classes"] == ["hund", "kätze"]


def test_what_a_stream_cannot_encode_is_escaped(tmp_path, capfd, monkeypatch):
    from fismo_cli import app

    for encoding in ("ascii", "utf-8"):
        with monkeypatch.context() as patch:
            for name, number in (("stdout", 1), ("stderr", 2)):
                patch.setattr(sys, name, open(number, "w", encoding=encoding, closefd=False))  # noqa: SIM115
            with pytest.raises(SystemExit) as leaving:
                app.main(["validate", str(tmp_path / "größe\udce9.yaml")])
            assert leaving.value.code == 2
            sys.stderr.flush()
        shown = capfd.readouterr().err
        assert "\\udce9.yaml" in shown
        assert ("größe" if encoding == "utf-8" else "gr\\xf6\\xdfe") in shown
