"""At any width of the terminal no word is cut and no number folded: of helps, tables, and progress."""

import io
import json
import re
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from fismo_cli.app import COMMANDS, main
from fismo_cli.campaigns.judging import Judging
from fismo_cli.preset.loading import load_preset
from fismo_cli.reporting.comparison_tables import print_comparison
from fismo_cli.reporting.console import print_pairs, print_rows
from fismo_cli.reporting.progress import LiveProgress
from fismo_cli.reporting.tables import dry_run_rows, metrics_rows, summary_rows
from fismo_cli.reporting.tasks_report import print_tasks
from fismo_cli.reporting.tuning_report import print_study
from fismo_cli.training.events import Evaluated, NoiseMeasured, RunStarted, StepLogged
from fismo_cli.tuning.analysis import summarise_study
from fismo_cli.tuning.samplers import distributions
from tests.cli.tuning.test_tuning import SPACE, Environment, StudyPlan

WIDTHS = (60, 80, 100, 200)
RECORDS = Path(__file__).parents[3] / "docs" / "results"
RUN = {
    "status": "completed", "reason": None, "steps": 123_456, "total_steps": 123_456, "resumed_from_step": 100_000,
    "model_step": 120_000, "metrics": {
        "train": {"loss": 0.123456}, "validation": {"loss": 0.2, "top1": 0.99, "top5": 1.0},
        "test": {"loss": 0.2, "top1": 0.99, "top5": 1.0},
    }, "seconds": 12345.6, "optimizer_seconds": 1234.5, "samples_per_second": 123456.0, "noise_scale": 1234.5,
    "fisher_noise_scale": 12345.6, "radius_scale": 0.123456, "peak_memory_bytes": 2**36, "optimizer_state_bytes": 2**33,
}  # fmt: skip
TRY = {
    "step_seconds": 0.123, "total_steps": 123_456, "batch_grows": True, "total_samples": 12_345_678,
    "preset": "a-preset", "optimizer": "pytorch_optimizer/SomeLongName", "parameters": 123_456_789, "device": "cuda:0",
    "trained_parameters": 123_456,
    "noise_scale": 123.4, "first_step_seconds": 1.234, "samples_per_second": 12345.6, "peak_memory_bytes": 2**36,
    "world_size": 8, "optimizer_state_bytes": 2**33, "gradient_bytes": 2**30, "update_bytes": 2**30,
}  # fmt: skip
PLACE = "runs/a-preset-with-a-long-name/20261127-124214-pytorch_optimizer-SomeLongName-s0"


def study(tmp_path):
    plan = StudyPlan(
        name="a-study-1a2b3c4d", directory=tmp_path, loaded=load_preset("digits-vit"), judging=Judging(),
        environment=Environment(1, "cpu", 1222), space=SPACE, url=None,
    )  # fmt: skip
    made = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    made.enqueue_trial({"x": 0.1234, "n": 3, "kind": "a"})
    for _ in range(4):
        trial = made.ask(distributions(SPACE))
        made.tell(trial, trial.params["x"])
    summary = summarise_study(plan, made)
    return {**summary, "report": f"{PLACE}/tune.html", "best_preset": f"{PLACE}/best.yaml"}


def read(name: str):
    return json.loads((RECORDS / name).read_text())


def shown(width: int, draw) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    draw(console)
    return console.file.getvalue()


DRAWN = {
    "run": lambda console, _: print_pairs(console, {"run": PLACE, **summary_rows(RUN)}),
    "dry run": lambda console, _: print_pairs(console, dry_run_rows(TRY)),
    "metrics": lambda console, _: print_rows(console, *metrics_rows(RUN["metrics"])),
    "comparison": lambda console, _: print_comparison(console, read("two-tasks/digits-vit.json")),
    "tasks": lambda console, _: print_tasks(console, read("two-tasks/tasks.json")),
    "study": lambda console, folder: print_study(console, study(folder)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_an_answer_has_the_same_words_at_every_width(name, tmp_path):
    widest = set(shown(10_000, lambda console: DRAWN[name](console, tmp_path)).split())
    for width in WIDTHS:
        text = shown(width, lambda console: DRAWN[name](console, tmp_path))
        assert set(text.split()) == widest, width
        assert "…" not in text


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_has_the_same_words_at_every_width(name, capsys, monkeypatch):
    words = {}
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        with pytest.raises(SystemExit) as leaving:
            main(["-h"] if name is None else [name, "-h"])
        text = capsys.readouterr().out
        assert leaving.value.code == 0
        assert max(map(len, text.splitlines())) <= max(width, 72)  # examples stay on their line
        assert not re.search(r"\w(\.\.\.|…)$", text, re.MULTILINE)
        words[width] = set(re.sub(r"-\n\s+", "-", text).split())
    assert all(found == words[200] for found in words.values())
    if name is not None:
        assert all(f"  {example}\n" in text for example in COMMANDS[name].examples)
        assert "<bool>" not in text


def test_progress_drops_what_finds_no_room_and_cuts_nothing():
    seen = {}
    for width in WIDTHS:
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        sink = LiveProgress(console)
        sink.write(RunStarted("p", "fismo", 0, "cpu", 100_000, None, 1, 1222, 6_400_000))
        sink.write(NoiseMeasured(50, 64, 1.0, 2.0, 123.4, 234.5, {}))
        sink.write(Evaluated(50, "validation", {"loss": 0.1234, "top1": 0.9876}, 1.0, 2.0))
        sink.write(StepLogged(50, 0.1234, {"matrix": 0.02, "adamw": 0.003}, 0.5, 3200, 12345.6))
        sink.close()
        lines = console.file.getvalue().replace("\r", "\n").splitlines()
        seen[width] = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", [line for line in lines if "50/100000" in line][-1])
        assert len(seen[width].rstrip()) <= width
        assert "…" not in seen[width]
    wide = set(seen[200].split())
    for text in seen.values():
        assert {word for word in text.split() if not re.search("[━╸╺]|:", word)} <= wide
