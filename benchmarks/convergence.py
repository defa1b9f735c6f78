"""How well fismo, its dense form, muon, soap and adamw train the shipped CPU presets, each at its best learning rate.

    python benchmarks/convergence.py

The learning rate is chosen on one seed (by validation loss), for all optimizers alike; the table is over other seeds.
Runs are `fismo train` processes on one thread each, `--workers` of them side by side. Finished runs are kept in the
JSON file, so that an interrupted benchmark goes on where it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "digits-vit": ("digits-vit", ()),
    "stdlib-gpt2": ("stdlib-gpt2", ()),
    "stdlib-llama": ("stdlib-llama", ()),
    "stdlib-gpt2-long": ("stdlib-gpt2", ("train.steps=900",)),
}
"""Preset and overrides. The long one is three times the preset's length; there only `LONG` optimizers are run."""

LONG = ("fismo", "fismo-dense", "muon")
TUNING_SEED = 100
SEEDS = (0, 1, 2)
OPTIMIZERS: dict[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {
    "fismo": ("lr", (0.01, 0.02, 0.04, 0.08), ()),
    "fismo-dense": ("lr", (0.01, 0.02, 0.04, 0.08), ("optimizer.form=dense",)),
    "muon": ("lr", (0.01, 0.02, 0.04, 0.08), ()),
    "soap": ("lr", (1e-3, 3e-3, 1e-2, 3e-2), ("optimizer.args.precondition_frequency=5",)),
    "adamw": ("lr", (1e-3, 3e-3, 1e-2, 3e-2), ("optimizer.betas=[0.9, 0.95]",)),
}
"""Key of the learning rate, its four values (the long task: the middle two), further settings."""


def rates(task: str, optimizer: str) -> tuple[float, ...]:
    grid = OPTIMIZERS[optimizer][1]
    return grid[1:3] if task.endswith("-long") else grid


def command(task: str, optimizer: str, lr: float, seed: int, runs_dir: str) -> list[str]:
    (preset, overrides), (key, _, settings) = TASKS[task], OPTIMIZERS[optimizer]
    return [
        *(sys.executable, "-m", "fismo_cli", "train", preset, *overrides),
        *(
            f"optimizer.name={optimizer.partition('-')[0]}",
            f"optimizer.{key}={lr}",
            *settings,
            f"train.seed={seed}",
            "train.threads=1",
        ),
        *("evaluate.every=null", "checkpoint.every=null", "--json", "--runs-dir", runs_dir),
    ]


class Results:
    """Summaries of finished runs by their settings, in a JSON file that is replaced whole after each run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
        self._lock = Lock()

    def run(self, task: str, optimizer: str, lr: float, seed: int) -> dict[str, Any]:
        key = f"{task} {optimizer} lr={lr} seed={seed}"
        if key not in self.runs:
            with tempfile.TemporaryDirectory() as runs_dir:
                done = subprocess.run(
                    command(task, optimizer, lr, seed, runs_dir),
                    stdout=subprocess.PIPE,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                )
            if done.returncode not in (0, 4):  # 4: diverged, which is a result
                raise SystemExit(f"{key}: exit code {done.returncode}")
            summary = json.loads(done.stdout)
            kept = ("status", "steps", "metrics", "seconds", "optimizer_seconds", "optimizer_state_bytes")
            with self._lock:
                self.runs[key] = {name: summary[name] for name in kept}
                self._save()
            print(f"{key}: {validation_loss(self.runs[key]):.4f}", file=sys.stderr, flush=True)
        return self.runs[key]

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"runs": dict(sorted(self.runs.items()))}, indent=1) + "\n")
        partial.replace(self.path)


def validation_loss(run: dict[str, Any]) -> float:
    return run["metrics"]["validation"]["loss"] if run["status"] == "completed" else float("inf")


def measure(results: Results, tasks: list[str], workers: int) -> list[dict[str, Any]]:
    pairs = [(task, name) for task in tasks for name in (LONG if task.endswith("-long") else OPTIMIZERS)]
    with ThreadPoolExecutor(workers) as pool:

        def best_rate(task: str, name: str) -> float:
            losses = [validation_loss(future.result()) for future in tuning[task, name]]
            return rates(task, name)[losses.index(min(losses))]

        tuning = {
            (task, name): [pool.submit(results.run, task, name, lr, TUNING_SEED) for lr in rates(task, name)]
            for task, name in pairs
        }
        best = {pair: best_rate(*pair) for pair in pairs}
        final = {pair: [pool.submit(results.run, *pair, lr, seed) for seed in SEEDS] for pair, lr in best.items()}
        return [
            {"task": task, "optimizer": name, "lr": best[task, name], "runs": [f.result() for f in futures]}
            for (task, name), futures in final.items()
        ]


def spread(values: list[float], digits: int = 3) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| task | optimizer | learning rate | validation loss | test loss | test top-1, % | lr at the edge |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        tests = [run["metrics"]["test"] for run in row["runs"]]
        accuracy = spread([100 * test["top1"] for test in tests], 2) if "top1" in tests[0] else ""
        grid = rates(row["task"], row["optimizer"])
        edge = {grid[0]: "lowest", grid[-1]: "highest"}.get(row["lr"], "")
        lines.append(
            f"| {row['task']} | {row['optimizer']} | {row['lr']:g} "
            f"| {spread([validation_loss(run) for run in row['runs']])} "
            f"| {spread([test['loss'] for test in tests])} | {accuracy} | {edge} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/results/convergence.json")
    arguments = parser.parse_args()
    rows = measure(Results(arguments.out), arguments.tasks, arguments.workers)
    print(table(rows))


if __name__ == "__main__":
    main()
