"""How the gradient's nuclear norm falls with steps T and with the batch B, beside what theory bounds (docs/theory.md).

    python benchmarks/convergence_rate.py

Gradients are exact, with noise of known size added, so that the true gradient can be measured in every step.
Problems: a matrix factorisation and a tanh network, both with a ridge term that keeps their smoothness bounded, and
the network without one. Part A: lr = eta0 / sqrt(T), hardly any noise; eta0 is the best of a grid at T = 256 on two
other seeds. Part B: small lr from a stationary point on, noise of variance sigma^2 / B in each entry. Seeds (and
batches) are stacked and stepped by one optimizer. Prints tables, writes JSON and a figure.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from fismo_core import FISMO, FisherMetric, Polar
from fismo_core.layout import MatrixLayout

Gradient = Callable[[list[Tensor]], tuple[Tensor, list[Tensor]]]
Stepper = Callable[[list[Tensor]], None]

SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS, TUNING_STEPS, ETAS = (100, 101), 256, (0.125, 0.25, 0.5, 1.0, 2.0)
STEPS = (128, 512, 2048)
BATCHES = (1, 4, 16, 64)
NOISE_A = 1e-5  # of an entry; the bound's floor is then below a thousandth of what is measured
RARE = 0.01
FLOORS = (("gaussian", 0.5, 4e-4, 2000), ("rare", 0.1, 5e-5, 4000), ("gaussian", 0.5, 8e-4, 2000))
"""Noise, sigma of an entry at B = 1, lr, steps. The last one, with twice the lr, is run with the default form only."""
BETA = 0.95


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ridged(loss: Tensor, gradients: list[Tensor], W: list[Tensor], ridge: float) -> tuple[Tensor, list[Tensor]]:
    penalty = sum(w.square().sum((1, 2)) for w in W)
    return loss + ridge / 2 * penalty, [G + ridge * w for G, w in zip(gradients, W, strict=True)]


def factorisation(seeds: Sequence[int], dtype: torch.dtype, ridge: float = 0.05) -> tuple[list[Tensor], Gradient]:
    """1/2 |U V^T - A|^2 + ridge/2 (|U|^2 + |V|^2), A of full rank, 24 x 16, U and V of 8 columns."""
    A = torch.stack([gaussian(s, 24, 16) / 4 for s in seeds]).to(dtype)
    W = [torch.stack([gaussian(s + k, n, 8) / 32**0.5 for s in seeds]).to(dtype) for n, k in ((24, 1000), (16, 2000))]

    def gradient(W: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        R = W[0] @ W[1].mT - A
        return ridged(R.square().sum((1, 2)) / 2, [R @ W[1], R.mT @ W[0]], W, ridge)

    return W, gradient


def network(seeds: Sequence[int], dtype: torch.dtype, ridge: float = 0.01) -> tuple[list[Tensor], Gradient]:
    """Mean squared error of W2 tanh(W1 x), 16-12-12, on 128 points of a teacher of that shape plus noise of 0.5."""

    def stacked(offset: int, m: int, n: int, scale: float) -> Tensor:
        return torch.stack([gaussian(s + offset, m, n) * scale for s in seeds]).to(dtype)

    X = stacked(0, 16, 128, 1.0)
    teacher = [stacked(1000, 12, 16, 1 / 4), stacked(2000, 12, 12, 12**-0.5)]
    Y = teacher[1] @ torch.tanh(teacher[0] @ X) + stacked(3000, 12, 128, 0.5)

    def gradient(W: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        H = torch.tanh(W[0] @ X)
        E = (W[1] @ H - Y) / 128
        loss = 64 * E.square().sum((1, 2))
        return ridged(loss, [(W[1].mT @ E * (1 - H * H)) @ X.mT, E @ H.mT], W, ridge)

    return [stacked(4000, 12, 16, 1 / 4), stacked(5000, 12, 12, 12**-0.5)], gradient


def free_network(seeds: Sequence[int], dtype: torch.dtype) -> tuple[list[Tensor], Gradient]:
    return network(seeds, dtype, ridge=0.0)


PROBLEMS = {"factorisation": factorisation, "network": network, "network, no ridge": free_network}


def fismo(make: Callable[..., FISMO], **options: Any) -> Callable[[list[Tensor], float], Stepper]:
    def build(W: list[Tensor], lr: float) -> Stepper:
        parameters = [nn.Parameter(w) for w in W]
        layout = MatrixLayout(stacked=True).to_plain()
        optimizer = make([{"params": parameters, "layouts": [layout] * len(W)}], lr, momentum=BETA, **options)

        def step(gradients: list[Tensor]) -> None:
            for parameter, G in zip(parameters, gradients, strict=True):
                parameter.grad = G
            optimizer.step()

        return step

    return build


def muon(W: list[Tensor], lr: float) -> Stepper:
    parameters = [nn.Parameter(matrix) for w in W for matrix in w]  # views of w
    optimizer = torch.optim.Muon(parameters, lr=lr, momentum=BETA, weight_decay=0.0)

    def step(gradients: list[Tensor]) -> None:
        for parameter, G in zip(parameters, [G for stack in gradients for G in stack], strict=True):
            parameter.grad = G
        optimizer.step()

    return step


PLAIN = {"metric": FisherMetric(power=0.0), "nesterov": False, "scale": "none"}
FORMS: dict[str, tuple[Callable[[list[Tensor], float], Stepper], torch.dtype]] = {
    "paper": (fismo(FISMO.paper, compute_dtype="float32"), torch.float32),
    "default": (fismo(FISMO, economy="most", compute_dtype="float32"), torch.float32),
    "torch Muon": (muon, torch.float32),
    "exact Muon": (fismo(FISMO, polar="exact", **PLAIN), torch.float64),
}
"""The last one is the algorithm of the proof: SVD, float64, no Nesterov, no metric."""


def nuclear(matrices: list[Tensor]) -> Tensor:
    """Sum of the nuclear norms of a problem's matrices, `(copies,)`."""
    return torch.stack([torch.linalg.svdvals(G).sum(-1) for G in matrices]).sum(0).double()


def descend(problem: str, form: str, seeds: Sequence[int], steps: int, lr: float) -> dict[str, Tensor]:
    """Part A: mean nuclear norm, and for the bound: f_0, the least f, |grad f_0|_*, the path's difference quotient."""
    build, dtype = FORMS[form]
    W, gradient = PROBLEMS[problem](seeds, dtype)
    step, noise = build(W, lr), torch.Generator().manual_seed(steps)
    norms, losses, quotient, last = [], [], torch.zeros(len(seeds), dtype=torch.float64), None
    for _ in range(steps):
        loss, G = gradient(W)
        norms.append(nuclear(G))
        losses.append(loss.double())
        if form == "exact Muon":
            if last is not None:
                quotient = torch.maximum(quotient, nuclear([a - b for a, b in zip(G, last, strict=True)]) / lr)
            last = [g.clone() for g in G]
        step([g + NOISE_A * torch.randn(g.shape, generator=noise, dtype=dtype) for g in G])
    trace = torch.stack(losses)
    weights = torch.stack([torch.linalg.matrix_norm(w, 2).double() for w in W]).amax(0)
    mean = torch.stack(norms).mean(0)
    return {
        "mean": mean, "gap": trace[0] - trace.amin(0), "first": norms[0], "quotient": quotient, "weights": weights,
    }  # fmt: skip


def stationary(problem: str, seeds: Sequence[int], dtype: torch.dtype, steps: int = 1500) -> list[Tensor]:
    W, gradient = PROBLEMS[problem](seeds, dtype)
    parameters = [nn.Parameter(w) for w in W]
    group = {"params": parameters, "layouts": [MatrixLayout(stacked=True).to_plain()] * len(W)}
    optimizer = FISMO([group], polar=Polar("quintic", 5), **PLAIN)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        for parameter, G in zip(parameters, gradient(W)[1], strict=True):
            parameter.grad = G
        optimizer.step()
    return W


def floor(problem: str, form: str, kind: str, sigma: float, lr: float, steps: int) -> Tensor:
    """Part B: nuclear norm over the last half, `(seeds, batches)`.

    `gaussian` noise is independent in every entry. `rare` noise has the same variance, in one direction of full rank:
    small steps one way, and with probability `RARE` a large one back. It has the same shape at each B, only scaled.
    """
    build, dtype = FORMS[form]
    W = [w.repeat_interleave(len(BATCHES), 0) for w in stationary(problem, SEEDS, dtype)]
    _, gradient = PROBLEMS[problem]([seed for seed in SEEDS for _ in BATCHES], dtype)
    directions = []
    for w in W:
        left, _, right = torch.linalg.svd(w, full_matrices=False)
        directions.append(-(left @ right) * max(w.shape[1:]) ** 0.5)  # squared norm m n
    scale = torch.tensor([sigma / b**0.5 for b in BATCHES], dtype=dtype).repeat(len(SEEDS))[:, None, None]
    step, random, norms = build(W, lr), torch.Generator().manual_seed(7), []
    for index in range(steps):
        G = gradient(W)[1]
        if index >= steps // 2 and index % 4 == 0:
            norms.append(nuclear(G))
        if kind == "gaussian":
            N = [torch.randn(g.shape, generator=random, dtype=dtype) for g in G]
        else:
            hit = torch.rand(len(scale), 1, 1, generator=random, dtype=dtype) < RARE
            odds = ((1 - RARE) / RARE) ** 0.5
            N = [torch.where(hit, odds, -1 / odds) * direction for direction in directions]
        step([g + scale * n for g, n in zip(G, N, strict=True)])
    return torch.stack(norms).mean(0).view(len(SEEDS), len(BATCHES))


def slope(x: Sequence[int], y: Tensor) -> tuple[float, float]:
    """Mean over seeds of the least-squares slope of log y `(seeds, len(x))` in log x, and half its 95 % t interval."""
    logs = torch.tensor(x, dtype=torch.float64).log()
    logs -= logs.mean()
    slopes = (y.log() * logs).sum(1) / logs.square().sum()
    half = stats.t.ppf(0.975, len(slopes) - 1) * slopes.std() / len(slopes) ** 0.5
    return slopes.mean().item(), float(half)


def bound(run: dict[str, Tensor], steps: int, lr: float, rank: int, sigma: float) -> Tensor:
    """The bound of docs/theory.md for exact Muon, with the path's difference quotient for L."""
    drift = run["quotient"] * lr * (0.5 + 2 * BETA / (1 - BETA))
    start = 2 * BETA * run["first"] / ((1 - BETA) * steps)
    noise = 2 * (rank * (1 - BETA) / (1 + BETA)) ** 0.5 * sigma
    return run["gap"] / (lr * steps) + drift + start + noise


def steps_row(problem: str, form: str) -> dict[str, Any]:
    tuning = {e: descend(problem, form, TUNING_SEEDS, TUNING_STEPS, e / TUNING_STEPS**0.5)["mean"].mean() for e in ETAS}
    eta = min(tuning, key=lambda e: tuning[e])
    runs = [descend(problem, form, SEEDS, steps, eta / steps**0.5) for steps in STEPS]
    row = {"problem": problem, "form": form, "eta0": eta, "mean": [run["mean"].tolist() for run in runs]}
    row["slope"], row["half"] = slope(STEPS, torch.stack([run["mean"] for run in runs], 1))
    row["weights"] = [run["weights"].mean().item() for run in runs]
    if form == "exact Muon":
        shapes = [w.shape[1:] for w in PROBLEMS[problem](SEEDS[:1], torch.float64)[0]]
        rank, entries = sum(map(min, shapes)), sum(m * n for m, n in shapes)
        pairs = zip(runs, STEPS, strict=True)
        bounds = [bound(r, t, eta / t**0.5, rank, NOISE_A * entries**0.5) for r, t in pairs]
        row["of_bound"] = [(r["mean"] / b).max().item() for r, b in zip(runs, bounds, strict=True)]
    return row


def floor_row(problem: str, form: str, kind: str, sigma: float, lr: float, steps: int) -> dict[str, Any]:
    levels = floor(problem, form, kind, sigma, lr, steps)
    shapes = [w.shape[1:] for w in PROBLEMS[problem](SEEDS[:1], torch.float64)[0]]
    unit = sigma * (sum(m * n for m, n in shapes) * sum(map(min, shapes))) ** 0.5
    row = {"problem": problem, "form": form, "noise": kind, "sigma": sigma, "lr": lr, "mean": levels.mT.tolist()}
    row["slope"], row["half"] = slope(BATCHES, levels)
    row["of_unit"] = [(level * b**0.5 / unit).item() for level, b in zip(levels.mean(0), BATCHES, strict=True)]
    return row


COLOURS = ("#2f7ed8", "#e07b00", "#1f9d63", "#c2378f")


def drawing(panels: list[tuple[str, Sequence[int], list[dict[str, Any]]]]) -> str:
    """Log-log panels as SVG (plotly cannot write one without a browser): means and ranges over seeds."""
    width, height, parts = 330, 260, []
    for index, (title, x, rows) in enumerate(panels):
        values = [value for row in rows for at in row["mean"] for value in at]
        low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
        left, top = 50 + index % 2 * (width + 70), 40 + index // 2 * (height + 80)
        first, last = math.log10(x[0]), math.log10(x[-1])
        across = [left + 10 + (width - 20) * (math.log10(value) - first) / (last - first) for value in x]

        def up(value: float, top: int = top, low: float = low, high: float = high) -> float:
            return top + height * (high - math.log10(value)) / (high - low)

        parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#8a929a"/>')
        parts.append(f'<text x="{left}" y="{top - 8}">{title}</text>')
        parts += [f'<text x="{at - 8:.0f}" y="{top + height + 15}">{v}</text>' for at, v in zip(across, x, strict=True)]
        for value in (10**low, 10 ** ((low + high) / 2), 10**high):
            parts.append(f'<text x="{left - 44}" y="{up(value) + 4:.1f}">{value:.2g}</text>')
        for row in rows:
            colour = COLOURS[list(FORMS).index(row["form"])]
            means = [sum(at) / len(at) for at in row["mean"]]
            line = " ".join(f"{at:.1f},{up(mean):.1f}" for at, mean in zip(across, means, strict=True))
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for at, seeds in zip(across, row["mean"], strict=True):
                ends = f'y1="{up(min(seeds)):.1f}" y2="{up(max(seeds)):.1f}"'
                parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" {ends} stroke="{colour}"/>')
    for index, form in enumerate(FORMS):
        parts.append(f'<text x="{50 + 130 * index}" y="15" fill="{COLOURS[index]}">{form}</text>')
    rows_of_panels = (len(panels) + 1) // 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="{40 + rows_of_panels * (height + 80)}" '
    return head + 'font-family="sans-serif" font-size="12" fill="#8a929a">' + "\n".join(parts) + "</svg>\n"


def say(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def means(row: dict[str, Any]) -> str:
    return " ".join(f"{sum(at) / len(at):.3f}" for at in row["mean"])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).parent
    parser.add_argument("--out", type=Path, default=here / "results" / "convergence_rate.json")
    parser.add_argument("--figure", type=Path, default=here / "results" / "convergence_rate.svg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"A. Mean nuclear norm at T = {STEPS}, lr = eta0 / sqrt(T)\n")
    say("problem", "form", "eta0", "means", "slope in T", "largest weight (spectral)", "share of the bound")
    say(*["---"] * 7)
    in_steps, in_batch = [], []
    for problem in PROBLEMS:
        for form in FORMS:
            in_steps.append(row := steps_row(problem, form))
            weights = " ".join(f"{value:.1f}" for value in row["weights"])
            share = " ".join(f"{value:.3f}" for value in row.get("of_bound", ()))
            say(problem, form, row["eta0"], means(row), f"{row['slope']:.2f} ± {row['half']:.2f}", weights, share)
    print(f"\nB. Nuclear norm at B = {BATCHES}, noise of sigma / sqrt(B) an entry\n")
    say("problem", "form", "noise", "sigma", "lr", "means", "slope in B", "over sigma sqrt(r) / sqrt(B)")
    say(*["---"] * 8)
    for kind, sigma, lr, steps in FLOORS:
        for problem in list(PROBLEMS)[:2]:
            for form in ["default"] if lr == FLOORS[-1][2] else list(FORMS)[:3]:
                in_batch.append(row := floor_row(problem, form, kind, sigma, lr, steps))
                ratios = " ".join(f"{value:.3f}" for value in row["of_unit"])
                say(problem, form, kind, sigma, lr, means(row), f"{row['slope']:.2f} ± {row['half']:.2f}", ratios)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    saved = {"steps": STEPS, "batches": BATCHES, "in_steps": in_steps, "in_batch": in_batch}
    arguments.out.write_text(json.dumps(saved, indent=1) + "\n")
    panels = [(f"{p}: against T", STEPS, [r for r in in_steps if r["problem"] == p]) for p in PROBLEMS]
    for kind, _, lr, _ in FLOORS[:2]:
        for problem in list(PROBLEMS)[:2]:
            rows = [r for r in in_batch if (r["problem"], r["noise"], r["lr"]) == (problem, kind, lr)]
            panels.append((f"{problem}, {kind} noise: against B", BATCHES, rows))
    arguments.figure.write_text(drawing(panels))
    print(f"\nwrote {arguments.out} and {arguments.figure}", file=sys.stderr)


if __name__ == "__main__":
    main()
