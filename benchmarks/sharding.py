"""What a rank has to do and to keep when FISMO's work is shared out, measured and predicted.

    python benchmarks/sharding.py

For each number of ranks torchrun starts that many processes of one thread (gloo). In one run they step two optimizers
in turns on the same gradients: one that repeats all work in every rank, and one that shares it out. CPU time of a
process is compared, since here the processes share two cores; the collective is part of it. Then the same is predicted
for up to 1024 ranks from shapes, the measured speed of one rank, and a bandwidth. Prints tables and writes JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from fismo_core import FISMO, FisherMetric
from fismo_core.config import Economy
from fismo_core.economy import matrix_cost, settled
from fismo_core.ranks import share_out

STEPS, WARM_UP = 20, 10
ECONOMY: Economy = "most"
METRIC = settled(FisherMetric(), ECONOMY)


def shapes(width: int, layers: int) -> list[tuple[int, int]]:
    return layers * [(width, width)] * 4 + layers * [(4 * width, width), (width, 4 * width)]


def costs(sides: list[tuple[int, int]]) -> list[float]:
    return [matrix_cost(m, n, METRIC) for m, n in sides]


def work(width: int, layers: int, result: Path) -> None:
    """One rank of a measurement."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    ranks = distributed.get_world_size()
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(side, generator=generator) for side in shapes(width, layers)]
    optimizers, parameters = [], []
    for group in (None, distributed.group.WORLD):
        own = [nn.Parameter(weight.clone()) for weight in weights]
        parameters.append(own)
        optimizers.append(FISMO(own, lr=0.01, economy=ECONOMY, process_group=group))
    seconds: list[list[float]] = [[], []]
    for step in range(WARM_UP + STEPS):
        for which, optimizer in enumerate(optimizers):
            generator.manual_seed(step)
            for parameter in parameters[which]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            distributed.barrier()
            before = time.process_time()
            optimizer.step()
            if step >= WARM_UP:
                seconds[which].append(time.process_time() - before)
    everyone: list[Any] = [None] * ranks
    mine = ([statistics.fmean(times) for times in seconds], [optimizer.state_bytes() for optimizer in optimizers])
    distributed.all_gather_object(everyone, mine)
    if distributed.get_rank() == 0:
        result.write_text(json.dumps(everyone))
    distributed.barrier()
    distributed.destroy_process_group()


def measure(ranks: int, width: int, layers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command += [__file__, "--worker", str(result), "--width", str(width), "--layers", str(layers)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        everyone = json.loads(result.read_text())
    replicated = statistics.fmean(times[0] for times, _ in everyone)
    state = everyone[0][1][0]
    return {
        "ranks": ranks,
        "replicated_ms": 1e3 * replicated,
        "largest_share": max(times[1] for times, _ in everyone) / replicated,
        "mean_share": statistics.fmean(times[1] for times, _ in everyone) / replicated,
        "largest_state": max(held[1] for _, held in everyone) / state,
        "received_bytes": 4 * sum(m * n for m, n in shapes(width, layers)) * (ranks - 1) / ranks,
    }


def predict(sides: list[tuple[int, int]], ranks: int, *, seconds: float, bandwidth: float) -> dict[str, float]:
    """Optimizer time, traffic and state of the busiest rank.

    Args:
        sides: of all matrices.
        ranks: how many share the work.
        seconds: what all of it takes one rank.
        bandwidth: bytes a second that a rank receives.
    """
    pieces, loads = costs(sides), [0.0] * ranks
    owners = share_out(pieces, loads)
    entries = [0.0] * ranks
    for (m, n), owner in zip(sides, owners, strict=True):
        entries[owner] += m * n
    received = 4 * sum(m * n for m, n in sides) * (ranks - 1) / ranks
    return {
        "ranks": ranks,
        "share": max(loads) / sum(loads),
        "compute_ms": 1e3 * seconds * max(loads) / sum(loads),
        "traffic_ms": 1e3 * received / bandwidth,
        "received_mb": received / 1e6,
        "state": max(entries) / sum(entries),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--bandwidth", type=float, default=25e9, help="bytes a second, of the prediction")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "sharding.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.width, arguments.layers, arguments.worker)
        return
    sides = shapes(arguments.width, arguments.layers)
    measured = [measure(ranks, arguments.width, arguments.layers) for ranks in arguments.ranks]
    print(f"GPT-2 matrices, width {arguments.width}, {arguments.layers} layers, one thread a rank, CPU time\n")
    head = (
        "ranks",
        "largest share of the work",
        "predicted",
        "mean share",
        "largest share of the state",
        "received MB",
    )
    rows = []
    for entry in measured:
        expected = predict(sides, int(entry["ranks"]), seconds=1.0, bandwidth=arguments.bandwidth)
        shares = (entry["largest_share"], expected["share"], entry["mean_share"], entry["largest_state"])
        received = f"{entry['received_bytes'] / 1e6:.1f}"
        rows.append((f"{entry['ranks']}", *(f"{share:.2f}" for share in shares), received))
    print(table(head, rows))
    large = shapes(2048, 24)
    speed = sum(costs(sides)) / (measured[0]["replicated_ms"] / 1e3)
    seconds = sum(costs(large)) / speed
    predictions = [
        predict(large, 2**power, seconds=seconds, bandwidth=arguments.bandwidth) for power in (0, 1, 2, 3, 4, 6, 8, 10)
    ]
    bandwidth = f"{arguments.bandwidth / 1e9:g} GB/s"
    print(f"\nPredicted for 24 layers of width 2048 at this machine's speed of one thread, and {bandwidth}\n")
    head = ("ranks", "share of the busiest rank", "s a step", "received MB", "ms for it", "share of the state")
    rows = [
        (
            f"{entry['ranks']}",
            f"{entry['share']:.4f}",
            f"{entry['compute_ms'] / 1e3:.3f}",
            f"{entry['received_mb']:.0f}",
            f"{entry['traffic_ms']:.0f}",
            f"{entry['state']:.4f}",
        )
        for entry in predictions
    ]
    print(table(head, rows))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({"measured": measured, "predicted": predictions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
