"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = _blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert "query, key, value" in capsys.readouterr().out


def test_the_preset_is_valid_but_for_its_folder(cli, tmp_path: Path) -> None:
    (text,) = _blocks("yaml")
    (tmp_path / "photos").mkdir()
    preset = tmp_path / "my.yaml"
    preset.write_text(text.replace("path: photos", f"path: {tmp_path / 'photos'}"))
    done = cli.run("validate", preset)
    assert done.code == 0, done.err


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    command = 'pip install ".[test]" && pytest -n 2'
    assert command in README
    assert command in (ROOT / ".ci/run").read_text().replace("--quiet ", "")
