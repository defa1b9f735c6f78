"""Text of a user's (paths, names, messages) is shown as it is: never rich's markup, plotly's or a page's."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from fismo_cli.app import main
from fismo_cli.reporting.comparison_figures import figures as comparison_figures
from fismo_cli.reporting.comparison_html import page
from fismo_cli.reporting.comparison_tables import print_comparison
from fismo_cli.reporting.console import answer_console, print_pairs, print_rows, say, stderr_console
from fismo_cli.reporting.page import link
from fismo_cli.reporting.progress import LiveProgress, PlainProgress
from fismo_cli.reporting.tuning_html import figures as tuning_figures
from fismo_cli.training.events import Noticed
from tests.cli.comparison.test_comparison_words import contender, summary, verdict

NAMES = ("r[/b]", "[red]x", '<b>&"', ":smile:", "[link=x]y[/link]", "</script><script>alert(2)</script>")
TINY = ("model.args.depth=1", "model.args.embed_dim=32", "model.args.num_heads=2", "train.epochs=null", "train.steps=2")


@pytest.mark.parametrize("make", [stderr_console, lambda: answer_console(as_json=False)])
def test_consoles_show_what_they_are_given(monkeypatch, make):
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(sys, "stdout", told)
    monkeypatch.setenv("COLUMNS", "200")
    console = make()
    for name in NAMES:
        table = Table(title=name, caption=name)
        table.add_column(name)
        table.add_row(name)
        for write in (
            lambda name=name: console.print(name),
            lambda name=name: say(console, name),
            lambda name=name: print_rows(console, [name], [[name]]),
            lambda name=name: print_pairs(console, {name: name}),
            lambda table=table: console.print(table),
            lambda name=name: PlainProgress(console).write(Noticed(name)),
            lambda name=name: LiveProgress(console).write(Noticed(name)),
        ):
            told.seek(0)
            told.truncate()
            write()
            assert name in told.getvalue()


def test_a_comparison_of_contenders_with_such_names(tmp_path, monkeypatch):
    for name in NAMES:
        made = named(summary(), name)
        out = io.StringIO()
        monkeypatch.setattr(sys, "stderr", out)
        monkeypatch.setenv("COLUMNS", "400")
        print_comparison(stderr_console(), made)
        assert name in out.getvalue()
        if "<" not in name:
            continue
        drawn = comparison_figures(made)["loss-by-steps"][0]
        shown = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert shown in [trace.name for trace in drawn.data]
        html = page(made, tmp_path)
        assert "<script>alert(2)" not in html
        assert "<td><b>" not in html


def named(made: dict, name: str) -> dict:
    """The summary with a baseline of this name."""
    text = {"curves": made["curves"], "runs": made["runs"]}
    renamed = json.loads(json.dumps(text).replace('"muon"', json.dumps(name)))
    return {**made, **renamed, "verdicts": [verdict(name)], "contenders": [contender("fismo"), contender(name)]}


def test_the_figures_of_a_study_with_such_keys_and_choices():
    key = "model.args.<b>x"
    trials = [
        {
            **{"number": number, "state": "complete", "value": float(number), "limits": {}, "intermediate": {}},
            "params": {key: kind, "optimizer.metric.damping": 0.1 * (number + 1)},
        }
        for number, kind in enumerate(("<i>a", "[b]", "<i>a", "[b]"))
    ]
    space = {
        key: {"values": ["<i>a", "[b]"], "start": "[b]"},
        "optimizer.metric.damping": {"low": 0.01, "high": 1.0, "start": 0.1, "log": True, "integer": False},
    }
    plan = {"judging": {"metric": "loss"}, "space": space}
    drawn = tuning_figures(
        {"plan": plan, "trial_list": trials, "importances": {key: 0.5, "optimizer.metric.damping": 0.5}}
    )
    text = json.dumps({name: json.loads(figure.to_json()) for name, (figure, *_) in drawn.items()})
    titles = re.findall(r'"(?:name|label|text|ticktext|x|y)": ?(?:"[^"]*"|\[[^\]]*\])', text)
    assert not [title for title in titles if "<b>" in title or "<i>" in title]
    assert "&lt;b&gt;x" in text


def test_links_survive_every_name(tmp_path):
    for name in ('a b#?%20"<b>&', "r[red]", "ü"):
        (tmp_path / name).mkdir()
        made = link(tmp_path / name, tmp_path)
        assert re.fullmatch(r'<a href="[A-Za-z0-9%._~-]+">[^<>"]+</a>', made)
    assert link(tmp_path / "<gone>", tmp_path) == "&lt;gone&gt;"
    assert link(tmp_path / "<gone>", tmp_path, "1") == "1"


@pytest.mark.slow
def test_commands_on_folders_and_presets_with_such_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parents[3] / "presets" / "digits-vit.yaml", '[red]x <b>&"=:smile:.yaml')

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        captured = capsys.readouterr()
        assert left.value.code == 0, captured.err
        return captured.err + captured.out

    trained = run("train", '[red]x <b>&"=:smile:.yaml', *TINY, "checkpoint.every=2", "--runs-dir", "r[/b]")
    (directory,) = (preset.parent for preset in Path("r[/b]").glob("*/*/preset.yaml"))
    assert str(directory) in trained
    assert "top1" in run("evaluate", str(directory))
    assert "w[bold].safetensors" in run("export", str(directory), "w[bold].safetensors")
    assert f"report: {directory}/report.html" in run("report", str(directory))
    assert str(directory) in run("report", str(directory), "--json")
    run("presets", "list")
    run("presets", "copy", "digits-vit", "c[bold]p.yaml")
    assert "c[bold]p" in run("validate", "c[bold]p.yaml")
    with pytest.raises(SystemExit) as left:
        main(["train", "digits-vit", "optimizer.name=x[/b]"])
    assert left.value.code == 2
    assert 'unknown optimizer "x[/b]"' in capsys.readouterr().err


def test_the_terminal_shows_such_text_too():
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    sink = LiveProgress(console)
    for name in NAMES:
        sink.write(Noticed(name))
        assert f"note: {name}" in console.file.getvalue()
