"""What pages of the documentation show works, and is printed, as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

import fismo_core

DOCS = Path(__file__).parents[2] / "docs"
SHOWN = re.findall(r"^    \$ fismo (.+)\n((?:    (?!\$ ).+\n)+)", (DOCS / "errors.md").read_text(), re.MULTILINE)
OF_PRESETS = [(command, shown) for command, shown in SHOWN if "preset error:" in shown or "note: keys" in shown]
FILES = {
    "twice.yaml": "task: image-classification\nmodel: {library: timm, name: resnet18}\ndata: {source: digits}\n"
    "train:\n  epochs: 1\n  epochs: 2\n",
    "tab.yaml": "task: image-classification\ntrain:\n\tepochs: 1\n",
}


def test_the_page_of_errors_has_errors_of_presets() -> None:
    assert len(OF_PRESETS) >= 8


@pytest.mark.parametrize(("command", "shown"), OF_PRESETS, ids=[command for command, _ in OF_PRESETS])
def test_errors_are_worded_as_the_page_of_errors_has_them(cli, tmp_path: Path, command: str, shown: str) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    done = cli.run(*shlex.split(command))
    for line in shown.splitlines():
        assert line.strip() in done.err
    assert done.code == (2 if "error:" in shown else 0)


@pytest.mark.parametrize("page", ["presets.md", "tutorials/my-images.md"])
def test_the_first_preset_of_a_page_is_valid(cli, tmp_path: Path, page: str) -> None:
    text = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)[0]
    preset = tmp_path / "my.yaml"
    preset.write_text(text)
    for folder in ("photos", "shapes"):
        (tmp_path / folder).mkdir()
    done = cli.run("validate", preset)
    assert done.code == 0, done.err


def test_the_api_reference_has_every_public_name() -> None:
    named = set(re.findall(r"^::: fismo_core\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert set(fismo_core.__all__) <= named
