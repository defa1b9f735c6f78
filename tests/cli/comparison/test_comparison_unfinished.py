"""What `fismo report` says of a comparison that was cut off."""

import io
import json
from pathlib import Path

from rich.console import Console

from fismo_cli.comparison.contenders import make_contenders
from fismo_cli.comparison.plan import Plan
from fismo_cli.comparison.records import Record
from fismo_cli.comparison.results import Results, Tuned
from fismo_cli.preset.loading import load_preset
from fismo_cli.reporting.comparison_unfinished import is_complete, print_unfinished, write_unfinished


def record(label: str, run: Path, loss: float | None) -> Record:
    run.mkdir(parents=True)
    metrics = {"validation": None if loss is None else {"loss": loss}, "test": None}
    status = "diverged" if loss is None else "completed"
    summary = {"run_dir": str(run), "status": status, "metrics": metrics, "seconds": 1.0, "identity": "x"}
    return Record(label, summary, (), "", "", "cpu", {})


def test_there_is_a_page_without_a_verdict(tmp_path):
    found, _ = make_contenders(load_preset("digits-vit"), ("muon", "adam"))
    plan = Plan(tmp_path, tuple(found), (0, 1), 3, 1, 0.005, None, {"total_steps": 20}, [])
    results = Results()
    for label, seed, loss in (("fismo", 0, 0.25), ("fismo", 1, 0.75), ("muon", 1, None)):
        results.runs[label, seed] = record(label, tmp_path / "runs" / label / f"run {seed}", loss)
    results.tuned = {("fismo", 0): Tuned((({}, results.runs["fismo", 0]),) * 3), ("adam", 0): Tuned()}
    assert not is_complete(plan, results)
    summary = write_unfinished(plan, results)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["verdicts"] == []
    told = io.StringIO()
    print_unfinished(Console(file=told, width=200), summary)
    text = told.getvalue()
    assert "there is no verdict: runs are missing: 1 of muon, 2 of adam; and 3 tuning trials of muon, 3 tuning" in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line and line[0] not in "Nr"}
    assert lines["fismo"] == ["3/3", "2/2", "0", "0.5000"]
    page = (tmp_path / "report.html").read_text()
    assert page.count('href="runs/fismo/run%20') == 2
    assert 'href="runs/muon/run%201"' in page
    assert "better" not in page.partition("<body>")[2]
    assert not (tmp_path / "summary.json").exists()
    for label, seed in (("muon", 0), ("adam", 0), ("adam", 1)):
        results.runs[label, seed] = results.runs["fismo", 0]
    assert is_complete(plan, results)
