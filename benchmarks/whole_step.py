"""What a whole training step costs, forward and backward included: FISMO against Muon, SOAP and AdamW on real presets.

    python benchmarks/whole_step.py

For each preset and batch size the optimizers take turns in one process, step by step, each on a model of its own with
the preset's own batches. The means hold whole refresh intervals of FISMO. Prints tables in Markdown and writes a JSON
file.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fismo_cli.environment import environment
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.preparation import prepare

OPTIMIZERS: dict[str, list[str]] = {
    "Muon": ["optimizer.name=muon"],
    "FISMO": ["optimizer.name=fismo", "optimizer.economy=most"],
    "FISMO, economy none": ["optimizer.name=fismo", "optimizer.economy=none"],
    "FISMO.dense": ["optimizer.name=fismo", "optimizer.form=dense"],
    "SOAP, every 10 steps": ["optimizer.name=soap", "optimizer.args.precondition_frequency=10"],
    "AdamW": ["optimizer.name=adamw"],
}

PRESETS: dict[str, tuple[int, ...]] = {
    "stdlib-gpt2": (8, 32, 128),
    "stdlib-llama": (8, 32, 128),
    "digits-vit": (32, 128),
}
"""Batch sizes by preset."""

SAMPLES_TO_TOKENS = {"stdlib-gpt2": 64, "stdlib-llama": 64, "digits-vit": 17}
"""Tokens that a sample is to the model: the block, or the patches and the class token."""

WARM_UP = 17
INTERVAL = 10


class Contender:
    """A model, its optimizer, and one batch, on which it is stepped again and again."""

    def __init__(self, preset: str, batch_size: int, overrides: list[str], threads: int) -> None:
        settings = [f"train.batch_size={batch_size}", f"train.threads={threads}", "train.device=cpu"]
        trainer = prepare(load_preset(preset, [*overrides, *settings])).trainer
        self.task = trainer.task
        self.batch: dict[str, Tensor] = self.task.train.__getitems__([(0, index) for index in range(batch_size)])
        self.model: nn.Module = trainer.model.train()
        self.optimizer = trainer.optimizer
        self.seconds: list[float] = []
        self.optimizer_seconds: list[float] = []

    def step(self) -> None:
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.task.training_loss(self.model, self.batch).backward()
        before = time.perf_counter()
        self.optimizer.step()
        done = time.perf_counter()
        self.seconds.append(done - started)
        self.optimizer_seconds.append(done - before)


def measure(preset: str, batch_size: int, intervals: int, threads: int) -> dict[str, Contender]:
    contenders = {name: Contender(preset, batch_size, made, threads) for name, made in OPTIMIZERS.items()}
    for number in range(WARM_UP + intervals * INTERVAL):
        for contender in contenders.values():
            contender.step()
        if number + 1 == WARM_UP:
            for contender in contenders.values():
                contender.seconds, contender.optimizer_seconds = [], []
    return contenders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervals", type=int, default=4, help=f"timed refresh intervals, of {INTERVAL} steps each")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--threads", type=int, default=1, help="the presets' runs are timed on one")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "whole_step.json")
    arguments = parser.parse_args()
    record: dict[str, Any] = {"environment": environment(), "threads": arguments.threads, "results": []}
    rows = []
    for preset in arguments.presets:
        for batch_size in PRESETS[preset]:
            contenders = measure(preset, batch_size, arguments.intervals, arguments.threads)
            mean = {name: statistics.mean(contender.seconds) for name, contender in contenders.items()}
            tokens = batch_size * SAMPLES_TO_TOKENS[preset]
            share = statistics.mean(contenders["FISMO"].optimizer_seconds) / mean["FISMO"]
            others = [f"{mean['FISMO'] / mean[name]:.2f}" for name in OPTIMIZERS if name != "FISMO"]
            rows.append([preset, f"{tokens:,}", *others, f"{share:.0%}"])
            seconds = {name: contender.seconds for name, contender in contenders.items()}
            record["results"].append({"preset": preset, "tokens": tokens, "mean_seconds": mean, "seconds": seconds})
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    against = [f"FISMO / {name}" for name in OPTIMIZERS if name != "FISMO"]
    head = ["preset", "tokens a step", *against, "optimizer's share with FISMO"]
    print("\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)))


if __name__ == "__main__":
    main()
