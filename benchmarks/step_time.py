"""What an optimizer step costs: FISMO in its forms against Muon, AdamW, SOAP and Shampoo, on shapes of real models.

    python benchmarks/step_time.py

heavyball's and Emerging-Optimizers' Muon and SOAP take part if these packages are installed (pip install heavyball;
Emerging-Optimizers is not on PyPI: https://github.com/NVIDIA-NeMo/Emerging-Optimizers); it says which are missing.
torch's Muon computes in bfloat16, which is emulated, slowly, where the hardware has none: so there is one in float32.

All contenders of a set take turns in one process, each with fresh random gradients in every step (made outside of the
timed part), so that a ratio compares steps taken within the same seconds. The means hold whole refresh intervals of
FISMO. Slow contenders take part in fewer rounds and are compared with Muon in those rounds. Prints tables in Markdown
and writes everything to a JSON file.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from fismo_cli.environment import environment
from fismo_cli.optimizers import optimizer_state_bytes
from fismo_core import DENSE as DENSE_FORM
from fismo_core import FISMO, FisherMetric, split_parameters, stacks, update
from fismo_core.layout import MatrixLayout

Shapes = list[tuple[int, int]]

INTERVAL = 40
"""Rounds are measured by the longest refresh interval; the default form's divides it."""

WARM_UP = 33
"""Steps before the timing: beyond the early refreshes, so that each interval has the same number."""


def transformer(width: int, layers: int, *, hidden: int, gated: bool, key_value: int | None = None) -> Shapes:
    attention = [(width, width), (key_value or width, width), (key_value or width, width), (width, width)]
    return layers * [*attention, *[(hidden, width)] * (2 if gated else 1), (width, hidden)]


def resnet18() -> Shapes:
    import timm

    with torch.device("meta"):
        model = timm.create_model("resnet18")
    groups = [group for group in split_parameters(model) if group["rule"] == "matrix"]
    return [
        shape
        for group in groups
        for (_, parameter), plain in zip(group["params"], group["layouts"], strict=True)
        for shape in MatrixLayout.from_plain(plain).shapes(parameter)
    ]


def gpt2(width: int, layers: int) -> Shapes:
    return transformer(width, layers, hidden=4 * width, gated=False)


def llama(width: int, layers: int) -> Shapes:
    hidden = round(8 * width / 3 / 64) * 64
    return transformer(width, layers, hidden=hidden, gated=True, key_value=width // 2)


SETS: dict[str, Callable[[], Shapes]] = {
    "GPT-2, width 256, 4 layers": lambda: gpt2(256, 4),
    "GPT-2, width 512, 2 layers": lambda: gpt2(512, 2),
    "GPT-2, width 768, 2 layers": lambda: gpt2(768, 2),
    "Llama, width 256, 4 layers": lambda: llama(256, 4),
    "Llama, width 512, 2 layers": lambda: llama(512, 2),
    "Llama, width 768, 2 layers": lambda: llama(768, 2),
    "ViT-tiny, width 192, 4 layers": lambda: gpt2(192, 4),
    "ViT-small, width 384, 4 layers": lambda: gpt2(384, 4),
    "ResNet-18": resnet18,
    "GPT-2, width 256, 1 layer": lambda: gpt2(256, 1),
    "GPT-2, width 256, 2 layers": lambda: gpt2(256, 2),
    "GPT-2, width 256, 8 layers": lambda: gpt2(256, 8),
}

MUON = "Muon"
DEFAULT = "FISMO, economy most"
DENSE = "FISMO, all sides dense, roots every 40"

Make = Callable[[list[nn.Parameter]], Optimizer]


class Float32Muon(torch.optim.Muon):
    """torch's Muon without its cast to bfloat16."""

    def step(self, closure: Any = None) -> Any:
        with mock.patch.object(Tensor, "bfloat16", lambda tensor: tensor.float().clone()):
            return super().step(closure)


def heavyball(name: str, parameters: list[nn.Parameter], **options: Any) -> Optimizer:
    import heavyball

    heavyball.utils.compile_mode = None  # all others are measured as they are, too
    return getattr(heavyball, name)(parameters, **options)


def emerging(module: str, name: str, parameters: list[nn.Parameter], **options: Any) -> Optimizer:
    return getattr(importlib.import_module(f"emerging_optimizers.{module}"), name)(parameters, **options)


CONTENDERS: dict[str, Make] = {
    MUON: lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.0),
    "Muon, QKV as one matrix": lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.0),
    DEFAULT: lambda p: FISMO(p, economy="most"),
    "FISMO, economy some": lambda p: FISMO(p, economy="some"),
    "FISMO, economy none": lambda p: FISMO(p, economy="none"),
    "Muon, float32": lambda p: Float32Muon(p, lr=0.02, weight_decay=0.0),
    "FISMO, float32": lambda p: FISMO(p, economy="most", compute_dtype="float32"),
    DENSE: lambda p: FISMO(p, economy="none", metric=FisherMetric(statistics="alternating", refresh_every=40)),
    "FISMO, dense form": lambda p: FISMO.of(p, DENSE_FORM),
    "FISMO, paper's form": FISMO.paper,
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "SOAP, every 10 steps": lambda p: pytorch_optimizer.SOAP(p, precondition_frequency=10),
    "Shampoo, every 10 steps": lambda p: pytorch_optimizer.ScalableShampoo(p, preconditioning_compute_steps=10),
    "heavyball's Muon": lambda p: heavyball("Muon", p),
    "heavyball's SOAP, every 10 steps": lambda p: heavyball(
        "SOAP", p, precondition_frequency=10, use_precond_schedule=False
    ),
    "Emerging-Optimizers' Muon": lambda p: emerging("orthogonalized_optimizers", "Muon", p),
    "Emerging-Optimizers' SOAP, every 10 steps": lambda p: emerging("soap", "SOAP", p, precondition_frequency=10),
}
PACKAGES = ("heavyball", "emerging_optimizers")
"""Of contenders that take part if they are installed."""


def missing(name: str) -> str | None:
    """The package that a contender needs and that is not installed."""
    package = next((package for package in PACKAGES if name.lower().replace("-", "_").startswith(package)), None)
    return package if package and importlib.util.find_spec(package) is None else None


QUICK = (
    *(MUON, "Muon, float32", DEFAULT, "FISMO, economy some", "FISMO, economy none", "FISMO, float32", DENSE),
    *("AdamW, foreach", "AdamW, fused"),
)
"""The contenders that take part at every width; the others would take minutes a step at the larger ones."""


@dataclass
class Contender:
    """An optimizer on parameters of its own, and the seconds of its steps."""

    name: str
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    seconds: list[float] = field(default_factory=list)

    def step(self) -> float:
        for parameter in self.parameters:
            parameter.grad = torch.randn_like(parameter)
        started = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - started


def fused_projections(shapes: Shapes) -> Shapes:
    """Each run of query, key and value projections as the one matrix that many models store."""
    result: Shapes = []
    index = 0
    while index < len(shapes):
        (m, n), following = shapes[index], shapes[index + 1 : index + 3]
        if m == n and len(following) == 2 and following[0] == following[1] and following[0][1] == n >= following[0][0]:
            result.append((m + 2 * following[0][0], n))
            index += 3
        else:
            result.append((m, n))
            index += 1
    return result


def make(name: str, shapes: Shapes) -> Contender:
    if "one matrix" in name:
        shapes = fused_projections(shapes)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    return Contender(name, parameters, CONTENDERS[name](parameters))


def measure(shapes: Shapes, names: list[str], intervals: int, budget: float) -> list[Contender]:
    """Let the contenders take turns; whoever has used up the budget in seconds stops at the end of an interval."""
    contenders = [make(name, shapes) for name in names]
    for contender in contenders:
        for _ in range(WARM_UP):
            contender.step()
    running = list(contenders)
    for number in range(intervals * INTERVAL):
        if number and number % INTERVAL == 0:
            running = [c for c in running if c.name == MUON or sum(c.seconds) < budget]
        for contender in running:
            contender.seconds.append(contender.step())
    return contenders


def phases(shapes: Shapes) -> dict[str, float]:
    """Mean seconds of each part of the default step over an interval."""
    contender = make(DEFAULT, shapes)
    for _ in range(WARM_UP):
        contender.step()
    seconds = dict.fromkeys(("gather", "statistics", "roots", "whitening", "polar factor", "apply"), 0.0)
    with clocked(seconds):
        total = sum(contender.step() for _ in range(INTERVAL))
    seconds["statistics"] -= seconds["roots"]  # they are computed within
    seconds["momentum, norms, the rest"] = total - sum(seconds.values())
    return {name: value / INTERVAL for name, value in seconds.items()}


@contextmanager
def clocked(seconds: dict[str, float]) -> Iterator[None]:
    def clock(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[name] += time.perf_counter() - started

        return timed

    with (
        mock.patch.object(stacks, "gathered", clock("gather", stacks.gathered)),
        mock.patch.object(update, "_update_factors", clock("statistics", update._update_factors)),
        mock.patch.object(update, "_refresh_roots", clock("roots", update._refresh_roots)),
        mock.patch.object(update, "_whiten", clock("whitening", update._whiten)),
        mock.patch.object(update, "polar_factor", clock("polar factor", update.polar_factor)),
        mock.patch.object(stacks, "_apply", clock("apply", stacks._apply)),
    ):
        yield


def flops_a_step(name: str, shapes: Shapes) -> float:
    """Floating point operations in the matrix products of a step, averaged over an interval."""
    contender = make(name, shapes)
    for _ in range(WARM_UP):
        contender.step()
    with FlopCounterMode(display=False) as counter:
        for _ in range(INTERVAL):
            contender.step()
    return counter.get_total_flops() / INTERVAL


def matmul_peak() -> dict[str, float]:
    """Operations a second of products of 1024 x 1024 matrices: the best of several."""
    result = {}
    for dtype in (torch.float32, torch.bfloat16):
        X: Tensor = torch.randn(1024, 1024).to(dtype)
        best = float("inf")
        for _ in range(10):
            started = time.perf_counter()
            X @ X
            best = min(best, time.perf_counter() - started)
        result[str(dtype).removeprefix("torch.")] = 2 * 1024**3 / best
    return result


def ratios(contender: Contender, muon: Contender) -> tuple[float, float]:
    """Mean and median of the contender's steps over Muon's in the same rounds."""
    mine, theirs = contender.seconds, muon.seconds[: len(contender.seconds)]
    return statistics.mean(mine) / statistics.mean(theirs), statistics.median(mine) / statistics.median(theirs)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intervals", type=int, default=2, help=f"timed intervals of {INTERVAL} steps each")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds that one contender may use in one set")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--quick", action="store_true", help="only the contenders that take part at every width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "step_time.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peak = matmul_peak()
    record: dict[str, Any] = {"environment": environment(), "threads": arguments.threads, "matmul_peak": peak}
    record["not_installed"] = sorted({package for name in CONTENDERS if (package := missing(name))})
    record["sets"] = {}
    summary, parts = [], []
    for name in arguments.sets:
        shapes = SETS[name]()
        numbers = sum(m * n for m, n in shapes)
        names = list(CONTENDERS) if max(map(max, shapes)) <= 1024 and not arguments.quick else list(QUICK)
        names = [contender for contender in names if missing(contender) is None]
        contenders = {c.name: c for c in measure(shapes, names, arguments.intervals, arguments.budget)}
        rows, entry = [], {}
        for contender in contenders.values():
            mean, median = ratios(contender, contenders[MUON])
            flops = flops_a_step(contender.name, shapes) if contender.name in (MUON, DEFAULT) else None
            seconds = statistics.mean(contender.seconds)
            share = flops / seconds / peak["bfloat16"] if flops else None
            entry[contender.name] = {
                "mean_ratio_to_muon": mean,
                "median_ratio_to_muon": median,
                "steps": len(contender.seconds),
                "mean_seconds": seconds,
                "seconds": contender.seconds,
                "flops_a_step": flops,
                "share_of_matmul_peak": share,
                "state_bytes_a_parameter": optimizer_state_bytes(contender.optimizer) / numbers,
            }
            rows.append(
                [
                    *(
                        contender.name,
                        f"{mean:.2f}",
                        f"{median:.2f}",
                        f"{1e3 * seconds:.1f}",
                        f"{1e3 * statistics.quantiles(contender.seconds, n=20)[-1]:.1f}",
                        str(len(contender.seconds)),
                    ),
                    *(f"{share:.0%}" if share else "", f"{entry[contender.name]['state_bytes_a_parameter']:.1f}"),
                ]
            )
        spent = phases(shapes)
        record["sets"][name] = {"matrices": shapes, "parameters": numbers, "contenders": entry, "phases": spent}
        head = [
            "optimizer",
            "mean / Muon",
            "median / Muon",
            "ms",
            "95 % below",
            "steps",
            "of bfloat16 peak",
            "state bytes a parameter",
        ]
        print(f"\n### {name} ({numbers / 1e6:.1f} million parameters)\n\n{table(head, rows)}", flush=True)
        mean, median = ratios(contenders[DEFAULT], contenders[MUON])
        dense, _ = ratios(contenders["FISMO, economy none"], contenders[MUON])
        adamw, _ = ratios(contenders[DEFAULT], contenders["AdamW, fused"])
        summary.append([name, f"{mean:.2f}", f"{median:.2f}", f"{dense:.2f}", f"{adamw:.0f}"])
        total = sum(spent.values())
        parts.append([name, *(f"{value / total:.0%}" for value in spent.values())])
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    head = ["matrices", "FISMO, economy most / Muon, mean", "median", "none / Muon, mean", "most / fused AdamW"]
    print(f"\n### Summary\n\n{table(head, summary)}")
    print(f"\n### Where FISMO's step spends its time\n\n{table(['matrices', *spent], parts)}")
    absent = sorted({package for name in CONTENDERS if (package := missing(name))})
    print(f"\nnot installed, and so not measured: {', '.join(absent) or 'nothing'}")
    print(f"\nmatmul peak: {peak['float32'] / 1e9:.0f} GFLOP/s float32, {peak['bfloat16'] / 1e9:.0f} bfloat16")
    print(f"results written to {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
