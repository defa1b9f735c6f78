"""What the training loop costs: samples a second of fismo's trainer against a bare PyTorch loop doing the same work.

Both train the same model on the same tensors in memory, with the same optimizer and batch size; the trainer also has
its schedule, divergence guard, events, `metrics.jsonl` and progress lines. They take turns in one process, on one
thread; the ratio is of the medians over all rounds.

    python benchmarks/training_loop.py
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fismo_cli.environment import environment
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.reporting.jsonl import JsonlSink
from fismo_cli.reporting.progress import PlainProgress
from fismo_cli.runs.preparation import prepare
from fismo_cli.training.events import StepLogged
from fismo_cli.training.trainer import Trainer

GOAL = 0.95


def with_trainer(trainer: Trainer, folder: Path) -> float:
    """Samples a second of the trainer, from the first step to the last progress record."""
    sinks = [JsonlSink(folder / "metrics.jsonl"), PlainProgress(Console(file=io.StringIO()))]
    started, elapsed = time.perf_counter(), 0.0
    for event in trainer.fit():
        for sink in sinks:
            sink.write(event)
        if isinstance(event, StepLogged):
            elapsed = time.perf_counter() - started
    for sink in sinks:
        sink.close()
    return trainer.total * trainer.train_config.batch_size / elapsed


def with_bare_loop(trainer: Trainer) -> float:
    """Samples a second of what one would write by hand for the same model, tensors and optimizer."""
    part, batch_size = trainer.task.train, trainer.train_config.batch_size
    everything = part.__getitems__([(0, index) for index in range(len(part))])
    images, labels = everything["images"], everything["labels"]
    model, optimizer = trainer.model, trainer.optimizer
    model.train()
    step, started = 0, time.perf_counter()
    while step < trainer.total:
        for indices in torch.randperm(len(images)).split(batch_size):
            if len(indices) < batch_size or step == trainer.total:
                break
            loss = torch.nn.functional.cross_entropy(model(images[indices]), labels[indices])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return trainer.total * batch_size / (time.perf_counter() - started)


def measure(loaded: LoadedPreset, rounds: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {"fismo trainer": [], "bare PyTorch loop": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2 * (rounds + 1)):
            trainer = prepare(loaded).trainer
            if turn % 2 == 0:
                name, speed = "fismo trainer", with_trainer(trainer, Path(folder))
            else:
                name, speed = "bare PyTorch loop", with_bare_loop(trainer)
            if turn >= 2:  # the first of each warms up
                speeds[name].append(speed)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "fismo"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "training_loop.json")
    arguments = parser.parse_args()
    table = Table("optimizer", "fismo trainer", "bare PyTorch loop", "ratio", f"goal {GOAL}", title="samples a second")
    results = {}
    for optimizer in arguments.optimizers:
        overrides = ["train.threads=1", "train.device=cpu", "train.epochs=null", f"train.steps={arguments.steps}"]
        # A bare loop does no evaluation; the last step's one is outside of what is timed.
        overrides += ["evaluate.every=null", "checkpoint.every=null", f"optimizer.name={optimizer}"]
        # Nor does it augment: both see the same unchanged images.
        overrides += [f"data.{key}" for key in ("mixup_alpha=0", "cutmix_alpha=0", "crop=none", "label_smoothing=0")]
        speeds = measure(load_preset("digits-vit", overrides), arguments.rounds)
        trainer, bare = (statistics.median(values) for values in speeds.values())
        table.add_row(optimizer, f"{trainer:,.0f}", f"{bare:,.0f}", f"{trainer / bare:.3f}", _met(trainer / bare))
        results[optimizer] = {"ratio": trainer / bare, "samples_per_second": speeds}
    Console().print(table)
    record = {"steps": arguments.steps, "goal": GOAL, "results": results, "environment": environment()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


def _met(ratio: float) -> str:
    return "met" if ratio >= GOAL else "missed"


if __name__ == "__main__":
    main()
