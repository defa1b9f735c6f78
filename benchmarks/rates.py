"""What a learning rate that is not the best one costs FISMO and Muon, from the sweeps of `benchmarks/ensembles.py`.

    python benchmarks/rates.py

Trains nothing: prints a table of what is recorded in `benchmarks/results/ensembles.json`.
"""

import json
import statistics
from pathlib import Path
from typing import Any

SWEEPS = Path(__file__).with_name("results") / "ensembles.json"
CELLS = [
    f"{task}, {rows} a step, {steps} steps" for rows, steps in ((8192, 300), (2048, 900)) for task in ("gpt2", "llama")
]
OPTIMIZERS = {"Muon": "muon", "FISMO": "none"}


def by_rate(sweep: dict[str, Any]) -> dict[float, float]:
    """Mean loss by learning rate, at the momentum that is best of all."""
    momentum = sweep["best"]["momentum"]
    own = [setting for setting in sweep["settings"] if setting["momentum"] == momentum]
    return {setting["lr"]: statistics.mean(setting["losses"]) for setting in sorted(own, key=lambda own: own["lr"])}


def cells(losses: dict[float, float]) -> list[str]:
    """At each rate, as a multiple of the best one, by how much the loss is higher."""
    best = min(losses, key=losses.__getitem__)
    return [f"{rate / best:.2g}: +{loss - losses[best]:.3f}" for rate, loss in losses.items() if rate != best]


def rows(sweeps: dict[str, Any]) -> list[str]:
    """Of the table, a row a task and batch size."""
    found = []
    for cell in CELLS:
        columns = []
        for form in OPTIMIZERS.values():
            losses = by_rate(sweeps[f"{cell}, {form}"])
            best = min(losses, key=losses.__getitem__)
            columns += [f"{best:g}", "; ".join(cells(losses))]
        found.append("| " + " | ".join([cell, *columns]) + " |")
    return found


def main() -> None:
    head = [f"{name}'s best rate | others: times it, loss" for name in OPTIMIZERS]
    print(f"| | {' | '.join(head)} |\n| --- |{' --- |' * 2 * len(head)}")
    print("\n".join(rows(json.loads(SWEEPS.read_text())["sweeps"])))


if __name__ == "__main__":
    main()
