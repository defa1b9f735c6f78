"""The example of docs/fine-tuning.md works as it stands there."""

import contextlib
import re

import pytest

from fismo_cli.preset.loading import load_preset
from tests.end_to_end.conftest import ROOT

PAGE = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def test_every_setting_that_the_page_names_is_one(tmp_path):
    preset = tmp_path / "new.yaml"
    preset.write_text(block("yaml"))
    settings = re.findall(r"^\| `([a-z_]+\.[^`]*)`", PAGE, re.MULTILINE)
    assert len(settings) == 6
    for setting in settings:
        load_preset(str(preset), re.split(r" (?=optimizer)", setting))


@pytest.mark.slow
def test_the_example_runs(cli):
    with contextlib.chdir(cli.folder):
        exec(compile(block("python"), "fine-tuning.md", "exec"), {})
    (cli.folder / "new.yaml").write_text(block("yaml"))
    base = ["data.source=npz", "data.path=low.npz", "train.threads=1", "train.epochs=4"]
    assert cli.run("train", "digits-vit", *base, "--name", "base").code == 0
    probed = ["model.freeze=all-but-head", "optimizer.adamw.lr=0.03"]
    tuned, probe = (cli.run("train", "new.yaml", "--json", *more) for more in ([], probed))
    assert "new head: the weights were trained on classes of other names" in tuned.err
    assert "model.freeze: 325 of 102,213 parameters are trained" in probe.err
    top1 = [done.json["metrics"]["test"]["top1"] for done in (tuned, probe)]
    assert top1[0] > top1[1] + 0.05
    assert top1[1] > 0.3  # by chance it is 0.2
