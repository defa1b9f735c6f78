"""What the noise scale, growing batches, an adaptive radius and MARS are worth on two of the shipped presets.

    python benchmarks/batch_and_radius.py

Five tables: the batch size beyond which steps stop being saved, measured, against the noise scale; a growing batch on
0.7 of the samples against a constant large one; an adaptive radius that starts far off against a fixed one; MARS; what
measuring the noise costs. All losses are validation losses of finished runs, `fismo train` processes on one thread
each. Finished runs are kept in the JSON file, so that an interrupted benchmark goes on where it was.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from scipy.optimize import curve_fit

from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.preparation import prepare

FORM = ("optimizer.momentum=0.95", "optimizer.economy=most")
EARLIER = {"digits-vit": (*FORM, "optimizer.lr=0.02")}
"""FISMO as it was when these figures were made; arguments may say otherwise."""

RADII = {"digits-vit": 0.02, "stdlib-gpt2": 0.04}
"""The presets' trust radii: the best of four on another seed (docs/results.md)."""
SEEDS = (0, 1, 2)
RADIUS_SEEDS = {"digits-vit": tuple(range(300, 308))}
"""For the adaptive radius: on digits the seeds differ by more than what is to be seen."""
FRESH_SEEDS = (300, 301, 302)
"""For the adaptive radius on other presets; its rule was chosen on others."""
UNSEEN = {"stdlib-llama": 0.04, "digits-resnet": 0.02}
"""Presets that the numbers of the adaptive radius were not chosen on, and their radii."""

TARGET = 2.2
SWEEP = {8: 480, 16: 240, 32: 160, 64: 100, 128: 80, 256: 70}
"""Batch sizes, and steps that are enough for the target at any of the radii."""
SWEEP_RADII = (0.02, 0.04, 0.08)

GROWTH = {"stdlib-gpt2": (16, 128, 9600), "digits-vit": (16, 256, 24320)}
"""Smallest batch, largest batch, and samples of the run at the constant large one."""

MARS = {
    "digits-vit": {
        "fismo": (),
        "muon": ("optimizer.name=muon", "optimizer.lr=0.01"),
        "adamw": ("optimizer.name=adamw", "optimizer.lr=0.01", "optimizer.betas=[0.9, 0.95]"),
    },
    "stdlib-gpt2": {
        "fismo": (),
        "adamw": ("optimizer.name=adamw", "optimizer.lr=3e-3", "optimizer.betas=[0.9, 0.95]"),
    },
}
"""The presets' own values of the baselines."""

Run = dict[str, Any]
Each = Callable[[list[tuple[str, ...]]], list[Run]]
"""Makes a run of each list of arguments, or takes it from the file."""


class Runs:
    """Finished runs by their arguments, in a JSON file that is replaced whole after each one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Run] = json.loads(path.read_text()) if path.exists() else {}
        self._lock = Lock()

    def __call__(self, *arguments: str) -> Run:
        """The run's summary and, of its records, evaluations and measurements of the noise."""
        key = " ".join(arguments)
        if key not in self.found:
            preset, *rest = arguments
            other = any(argument.startswith("optimizer.name=") for argument in rest)
            earlier = () if other else EARLIER.get(preset, FORM)
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run(
                    [
                        *(sys.executable, "-m", "fismo_cli", "train", preset, *earlier, *rest),
                        *("train.threads=1", "checkpoint.every=null", "--json", "--runs-dir", folder),
                    ],
                    stdout=subprocess.PIPE,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                )
                if done.returncode not in (0, 4):  # 4: diverged, which is a result
                    raise SystemExit(f"{key}: exit code {done.returncode}")
                summary = json.loads(done.stdout)
                records = [
                    json.loads(line) for line in (Path(summary["run_dir"]) / "metrics.jsonl").read_text().splitlines()
                ]
            kept = ("status", "steps", "samples", "metrics", "seconds", "optimizer_seconds", "radius_scale")
            run = {name: summary[name] for name in kept}
            run["curve"] = [
                (r["step"], r["metrics"]["loss"]) for r in records if r["event"] == "Evaluated" and r["split"] != "test"
            ]
            run["noise"] = [
                (r["step"], r["noise_scale"], r["fisher_noise_scale"]) for r in records if r["event"] == "NoiseMeasured"
            ]
            run["batches"] = [(r["step"], r["batch_size"]) for r in records if r["event"] == "BatchGrown"]
            with self._lock:
                self.found[key] = run
                partial = self.path.with_suffix(".partial")
                partial.write_text(json.dumps(dict(sorted(self.found.items())), indent=1) + "\n")
                partial.replace(self.path)
            print(f"{key}: {loss_of(run):.4f}", file=sys.stderr, flush=True)
        return self.found[key]


def loss_of(run: Run) -> float:
    return run["metrics"]["validation"]["loss"] if run["status"] == "completed" else math.inf


def spread(values: Iterable[float]) -> str:
    values = list(values)
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def at_end(preset: str, seed: int, *more: str) -> tuple[str, ...]:
    return (preset, f"train.seed={seed}", "evaluate.every=null", *more)


def table(*headings: str) -> list[str]:
    return [f"| {' | '.join(headings)} |", "|" + " --- |" * len(headings)]


def steps_to(target: float, curve: list[tuple[int, float]]) -> float:
    """Steps until the loss first fell to the target, between two evaluations by a straight line; infinity if never."""
    for (step, loss), (next_step, next_loss) in pairwise(curve):
        if next_loss <= target:
            return step + (next_step - step) * (loss - target) / (loss - next_loss)
    return math.inf


def sweep(each: Each) -> list[str]:
    """Steps to a target loss by batch size, each at its best radius, and the batch size at which they stop falling.

    Steps S and samples E = B S follow S = S_min (1 + B_critical / B) (McCandlish et al. 2018, section 2.4).
    """
    settings = [(batch, radius) for batch in SWEEP for radius in SWEEP_RADII]
    runs = each(
        [
            (
                *("stdlib-gpt2", f"train.batch_size={batch}", f"train.steps={SWEEP[batch]}"),
                *("train.schedule.name=constant", f"train.schedule.warmup={10 / SWEEP[batch]:.4f}"),
                *("train.noise_every=5", f"evaluate.every={max(2, SWEEP[batch] // 40)}", "evaluate.batch_size=64"),
                *("data.validation_fraction=0.01", "data.test_fraction=0", f"optimizer.lr={radius}"),
            )
            for batch, radius in settings
        ]
    )
    found = dict(zip(settings, runs, strict=True))
    lines = table("batch", "radius", "steps to the loss", "samples", "noise scale there", "in the Fisher metric")
    points = []
    for batch in SWEEP:
        steps, radius = min((steps_to(TARGET, found[batch, radius]["curve"]), radius) for radius in SWEEP_RADII)
        noise = found[batch, radius]["noise"]
        there = next((measured for measured in noise if measured[0] >= steps), noise[-1])
        scales = ["-" if value is None else f"{value:.0f}" for value in there[1:]]
        lines.append(f"| {batch} | {radius:g} | {steps:.0f} | {batch * steps:.0f} | {' | '.join(scales)} |")
        points.append((batch, steps))
    batches, steps_needed = np.array(points, dtype=float).T
    (least, critical), _ = curve_fit(
        lambda b, least, critical: np.log(least * (1 + critical / b)),
        batches,
        np.log(steps_needed),
        p0=(50, 50),
        bounds=(1, 1e6),
    )
    return [*lines, "", f"to a loss of {TARGET}, fitted: {least:.0f} steps at least, critical batch {critical:.0f}"]


def growth(each: Each) -> list[str]:
    lines = table("preset", "batch", "samples", "steps", "validation loss")
    for preset, (small, large, samples) in GROWTH.items():
        epochs = ("train.epochs=null",) if preset == "digits-vit" else ()
        constant = (*epochs, f"train.batch_size={large}", f"train.steps={samples // large}")
        growing = (
            *(*epochs, f"train.batch_size={small}", f"train.steps={int(0.7 * samples) // small}"),
            *("train.noise_every=10", f"train.batch_growth.max_batch_size={large}"),
        )
        for scale in (1, 2):
            radius = scale * RADII[preset]
            runs = each([at_end(preset, seed, *constant, f"optimizer.lr={radius}") for seed in SEEDS])
            lines.append(_growth_row(preset, f"{large}, radius {radius:g}", runs))
        runs = each([at_end(preset, seed, *growing[:-2]) for seed in SEEDS])
        lines.append(_growth_row(preset, f"{small}", runs))
        runs = each([at_end(preset, seed, *growing) for seed in SEEDS])
        path = "".join(f", {size} after step {step}" for step, size in runs[0]["batches"])
        lines.append(_growth_row(preset, f"{small}{path}", runs))
    return lines


def _growth_row(preset: str, batch: str, runs: list[Run]) -> str:
    steps = statistics.mean(run["steps"] for run in runs)
    return f"| {preset} | {batch} | {runs[0]['samples']} | {steps:.0f} | {spread(map(loss_of, runs))} |"


def radius(each: Each) -> list[str]:
    """Adaptive radii from three starts, and the preset's fixed one, from which differences are."""
    lines = table("preset", "start", "optimizer.adapt_radius", "validation loss", "difference, %", "radius in the end")
    for preset, best in (RADII | UNSEEN).items():
        seeds = RADIUS_SEEDS.get(preset, FRESH_SEEDS)
        rows = [(best, "null"), *((start, "8") for start in (best / 30, best, best * 10))]
        losses: dict[tuple[float, str], list[float]] = {}
        ends: dict[tuple[float, str], str] = {}
        for start, adapt in rows:
            settings = (f"optimizer.lr={start:.4g}",) if (start, adapt) != (best, "null") else ()
            settings += (f"optimizer.adapt_radius={adapt}",) if adapt != "null" else ()
            runs = each([at_end(preset, seed, *settings) for seed in seeds])
            losses[start, adapt] = [loss_of(run) for run in runs]
            low, high = (f"{start * end(run['radius_scale'] for run in runs):.2g}" for end in (min, max))
            ends[start, adapt] = low if low == high else f"{low} to {high}"
        fixed = losses[best, "null"]
        for start, adapt in rows:
            row = losses[start, adapt]
            against = "fixed" if row is fixed else percent(row, fixed)
            lines.append(f"| {preset} | {start:.2g} | {adapt} | {spread(row)} | {against} | {ends[start, adapt]} |")
    return lines


def percent(losses: list[float], others: list[float]) -> str:
    """The mean difference of pairs in percent of the others' mean, and its standard error."""
    differences = [100 * (a - b) / statistics.mean(others) for a, b in zip(losses, others, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.1f} ± {error:.1f}"


def mars(each: Each) -> list[str]:
    lines = table("preset", "optimizer", "without", "with mars")
    for preset, optimizers in MARS.items():
        for optimizer, settings in optimizers.items():
            runs = {
                reduction: each([at_end(preset, seed, *settings, *reduction) for seed in SEEDS])
                for reduction in ((), ("optimizer.variance_reduction=mars",))
            }
            lines.append(f"| {preset} | {optimizer} | {' | '.join(spread(map(loss_of, r)) for r in runs.values())} |")
    return lines


def overhead(each: Each) -> list[str]:
    """What a measured step costs beyond another one, by the clock of one process: medians of steps taken in turn."""
    lines = table("preset", "step, ms", "measured step, ms", "measuring every 50th step costs")
    for preset in (*RADII, "stdlib-llama"):
        trainer = prepare(load_preset(preset, [*EARLIER.get(preset, FORM), "train.threads=1"])).trainer
        batches = trainer.batches()
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in range(60):
            start = time.perf_counter()
            trainer.take_step(batches, measure=number % 2 == 1)
            seconds[number % 2 == 1].append(time.perf_counter() - start)
        plain, measured = (statistics.median(seconds[kind][5:]) for kind in (False, True))
        cost = f"{100 * (measured / plain - 1) / 50:.1f} %"
        lines.append(f"| {preset} | {1000 * plain:.1f} | {1000 * measured:.1f} | {cost} |")
    return lines


PARTS = {"growth": growth, "radius": radius, "sweep": sweep, "mars": mars, "overhead": overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--workers", type=int, default=2)
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "batch_and_radius.json")
    arguments = parser.parse_args()
    runs = Runs(arguments.out)
    with ThreadPoolExecutor(arguments.workers) as pool:

        def each(settings: list[tuple[str, ...]]) -> list[Run]:
            return list(pool.map(lambda arguments: runs(*arguments), settings))

        for part in arguments.parts:
            print("\n".join(PARTS[part](each)) + "\n", flush=True)


if __name__ == "__main__":
    main()
