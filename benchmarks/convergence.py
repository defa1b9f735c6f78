"""How well fismo, muon, soap and adamw train the shipped CPU presets, each at the best of four learning rates.

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

PRESETS = ("digits-vit", "stdlib-gpt2", "stdlib-llama")
TUNING_SEED = 100
SEEDS = (0, 1, 2)
OPTIMIZERS: dict[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {
    "fismo": ("trust_radius", (0.01, 0.02, 0.04, 0.08), ()),
    "muon": ("lr", (0.01, 0.02, 0.04, 0.08), ()),
    "soap": ("lr", (1e-3, 3e-3, 1e-2, 3e-2), ("optimizer.args.precondition_frequency=5",)),
    "adamw": ("lr", (1e-3, 3e-3, 1e-2, 3e-2), ("optimizer.betas=[0.9, 0.95]",)),
}
"""Key of the learning rate, its four values, further settings. All else is the preset's."""


def command(preset: str, optimizer: str, lr: float, seed: int, runs_dir: str) -> list[str]:
    key, _, settings = OPTIMIZERS[optimizer]
    return [
        *(sys.executable, "-m", "fismo_cli", "train", preset, f"optimizer.name={optimizer}"),
        *(f"optimizer.{key}={lr}", *settings, f"train.seed={seed}", "train.threads=1"),
        *("evaluate.every=null", "checkpoint.every=null", "--json", "--runs-dir", runs_dir),
    ]


class Results:
    """Summaries of finished runs by their settings, in a JSON file that is replaced whole after each run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}
        self._lock = Lock()

    def run(self, preset: str, optimizer: str, lr: float, seed: int) -> dict[str, Any]:
        key = f"{preset} {optimizer} lr={lr} seed={seed}"
        if key not in self.runs:
            with tempfile.TemporaryDirectory() as runs_dir:
                done = subprocess.run(
                    command(preset, optimizer, lr, seed, runs_dir),
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


def measure(results: Results, presets: list[str], workers: int) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(workers) as pool:
        tuning = {
            (preset, name): [pool.submit(results.run, preset, name, lr, TUNING_SEED) for lr in OPTIMIZERS[name][1]]
            for preset in presets
            for name in OPTIMIZERS
        }
        best = {}
        for (preset, name), futures in tuning.items():
            losses = [validation_loss(future.result()) for future in futures]
            best[preset, name] = OPTIMIZERS[name][1][losses.index(min(losses))]
        final = {
            (preset, name): [pool.submit(results.run, preset, name, lr, seed) for seed in SEEDS]
            for (preset, name), lr in best.items()
        }
        return [
            {"preset": preset, "optimizer": name, "lr": best[preset, name], "runs": [f.result() for f in futures]}
            for (preset, name), futures in final.items()
        ]


def spread(values: list[float], digits: int = 3) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| preset | optimizer | learning rate | validation loss | test loss | test top-1, % | lr at the edge |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        tests = [run["metrics"]["test"] for run in row["runs"]]
        accuracy = spread([100 * test["top1"] for test in tests], 2) if "top1" in tests[0] else ""
        grid = OPTIMIZERS[row["optimizer"]][1]
        edge = {grid[0]: "lowest", grid[-1]: "highest"}.get(row["lr"], "")
        lines.append(
            f"| {row['preset']} | {row['optimizer']} | {row['lr']:g} "
            f"| {spread([validation_loss(run) for run in row['runs']])} "
            f"| {spread([test['loss'] for test in tests])} | {accuracy} | {edge} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/results/convergence.json")
    arguments = parser.parse_args()
    rows = measure(Results(arguments.out), arguments.presets, arguments.workers)
    print(table(rows))


if __name__ == "__main__":
    main()
