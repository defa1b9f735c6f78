"""What FISMO costs on a GPU: its step against Muon and AdamW at the shapes of GPT-2, and whole training steps.

    python benchmarks/gpu.py [--out PATH]

Under eight minutes on one GPU; `--device cpu --small` runs all of it where there is none, for what that is worth. All
contenders of a table take turns in one process. Prints tables in Markdown and writes a JSON file.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fismo_cli.optimizers import optimizer_state_bytes
from fismo_core import DENSE, FISMO, FisherMetric, split_parameters
from fismo_core.arithmetic import arithmetic_of
from fismo_core.update import fismo_update, initial_state

ROUNDS = 40
"""Of each contender: whole refresh intervals of FISMO."""

WARM_UP = 17
SLOW = ("FISMO, dense", "SOAP, every 10 steps")
VOCABULARY = 50_304

Make = Callable[[nn.Module], list[Optimizer]]


@dataclass(frozen=True)
class Size:
    name: str
    width: int
    layers: int
    block: int = 1024
    tokens_at_once: int = 16_384
    slow: bool = True
    """Whether contenders with matrix decompositions take part, which take seconds a step at the larger widths."""


SIZES = (Size("GPT-2 124M", 768, 12), Size("GPT-2 350M", 1024, 24, tokens_at_once=8_192, slow=False))
SMALL = (Size("GPT-2, width 64", 64, 2, block=64, tokens_at_once=256),)
STEPS = (8_192, 32_768, 131_072, 524_288)
"""Tokens of a whole training step."""


def fismo(**options: Any) -> Make:
    return lambda model: [FISMO(split_parameters(model), 0.02, **options)]


def split(model: nn.Module, matrices: Callable[[list[nn.Parameter]], Optimizer]) -> list[Optimizer]:
    """Another optimizer for what FISMO takes for matrices, AdamW for the rest."""
    groups = split_parameters(model)
    hidden = [p for group in groups if group["rule"] == "matrix" for _, p in group["params"]]
    rest = [p for group in groups if group["rule"] == "adamw" for _, p in group["params"]]
    return [matrices(hidden), torch.optim.AdamW(rest, 3e-3, fused=True)]


CONTENDERS: dict[str, Make] = {
    "AdamW, fused": lambda model: [torch.optim.AdamW(model.parameters(), 3e-4, fused=True)],
    "Muon": lambda model: split(model, lambda p: torch.optim.Muon(p, lr=0.02)),
    "FISMO, economy most": fismo(economy="most"),
    "FISMO, economy most, roots every 40": fismo(economy="most", metric=FisherMetric(refresh_every=40)),
    "FISMO, economy most, float32": fismo(economy="most", compute_dtype="float32"),
    "FISMO, economy some": fismo(economy="some"),
    "FISMO, economy none": fismo(economy="none"),
    "FISMO, dense": lambda model: [FISMO.of(split_parameters(model), DENSE)],
    "FISMO, economy none, roots every 10": fismo(economy="none", metric=FisherMetric(refresh_every=10)),
}
if importlib.util.find_spec("pytorch_optimizer") is not None:
    import pytorch_optimizer

    CONTENDERS["SOAP, every 10 steps"] = lambda model: split(
        model, lambda p: pytorch_optimizer.SOAP(p, precondition_frequency=10)
    )


def gpt2(size: Size, device: torch.device, vocabulary: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": size.width, "n_layer": size.layers, "n_head": max(1, size.width // 64)}
    config = GPT2Config(vocab_size=vocabulary, n_positions=size.block, use_cache=False, **sizes)
    for rate in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, rate, 0.0)
    return GPT2LMHeadModel(config).to(device)


class Clock:
    """Seconds of the device between two moments; the host waits only where they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def between(self) -> list[float]:
        """From each odd mark to the next one."""
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "mean": statistics.fmean(ordered),
        "median": ordered[len(ordered) // 2],
        "p90": ordered[int(0.9 * (len(ordered) - 1))],
        "max": ordered[-1],
    }


def optimizer_steps(size: Size, device: torch.device, rounds: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Seconds of the optimizer's part of a step, and bytes of its state."""
    model = gpt2(size, device, vocabulary)
    gradients = [torch.randn_like(p) * 1e-3 for p in model.parameters()]
    result = {}
    for name, make in CONTENDERS.items():
        if name in SLOW and not size.slow:
            continue
        optimizers = make(model)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clock, host = Clock(device), []
        try:
            for number in range(WARM_UP + rounds):
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    # never twice the same; made outside of what is timed
                    parameter.grad = gradient.roll(number).mul_(1 + 0.1 * number)
                if number >= WARM_UP:
                    clock.mark()
                    started = time.perf_counter()
                for step in [optimizer.step for optimizer in optimizers]:
                    step()
                if number >= WARM_UP:
                    host.append(time.perf_counter() - started)
                    clock.mark()
        except torch.OutOfMemoryError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        result[name] = {**percentiles(clock.between()), "host": statistics.median(host)}
        result[name]["state_gib"] = sum(map(optimizer_state_bytes, optimizers)) / 2**30
        if device.type == "cuda":  # beyond weights, gradients and state
            in_steps = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
            result[name]["working_gib"] = in_steps / 2**30
        model.zero_grad()
        del optimizers, step
        print(f"{size.name} {name}: {result[name]}", file=sys.stderr, flush=True)
    return result


def whole_steps(size: Size, device: torch.device, vocabulary: int, tokens: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of forward and backward of a micro-batch; a step has as many as its tokens need."""
    model = gpt2(size, device, vocabulary)
    blocks = max(1, size.tokens_at_once // size.block)
    batch = torch.randint(vocabulary, (blocks, size.block), device=device)
    clock = Clock(device)
    for number in range(3 + 10):
        if number >= 3:
            clock.mark()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        if number >= 3:
            clock.mark()
    return [
        {"tokens": count, "passes": statistics.fmean(clock.between()) * count / (blocks * size.block)}
        for count in tokens
    ]


def compiled_update(size: Size, device: torch.device) -> dict[str, float]:
    """Seconds of the update of one layer's 4 widths, eager and compiled, between refreshes."""
    weight = nn.Parameter(torch.zeros(size.width, 4 * size.width, device=device))
    group = FISMO([weight], economy="most").param_groups[0]
    arithmetic = arithmetic_of(group, torch.float32, device)
    gradient = torch.randn(size.layers, size.width, 4 * size.width, device=device)
    result = {}
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    for name, update in (("eager", fismo_update), ("compiled", torch.compile(fismo_update, backend=backend))):
        state = initial_state(*gradient.shape, arithmetic, torch.float32, device)
        clock = Clock(device)
        for number in range(25):
            given: Tensor = gradient.clone()
            if number >= 5:
                clock.mark()
            update(given, state, arithmetic, refresh=False)
            if number >= 5:
                clock.mark()
        result[name] = percentiles(clock.between())["median"]
    return result


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model, a few rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --device cpu --small runs the same on the CPU")
    sizes, rounds, vocabulary = (SMALL, 10, 256) if arguments.small else (SIZES, ROUNDS, VOCABULARY)
    called = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    record: dict[str, Any] = {"device": called, "torch": torch.__version__, "sizes": {}}
    print(f"On {called}, torch {torch.__version__}.\n")
    for size in sizes:
        passes = whole_steps(size, device, vocabulary, STEPS[:1] if arguments.small else STEPS)
        steps = optimizer_steps(size, device, rounds, vocabulary)
        compiled = compiled_update(size, device)
        record["sizes"][size.name] = {"passes": passes, "optimizers": steps, "update": compiled}
        muon = steps["Muon"]["mean"]
        rows = []
        for name, measured in steps.items():
            shares = [f"{measured['mean'] / (measured['mean'] + step['passes']):.1%}" for step in passes]
            times = [f"{1000 * measured[key]:.2f}" for key in ("mean", "median", "p90", "max", "host")]
            memory = [f"{measured[key]:.2f}" if key in measured else "" for key in ("state_gib", "working_gib")]
            rows.append([name, *times, f"{measured['mean'] / muon:.2f}", *memory, *shares])
        tokens = [f"share at {step['tokens']:,}" for step in passes]
        head = ["optimizer", "mean ms", "median", "p90", "max", "host", "of Muon", "state GiB", "working GiB", *tokens]
        print(f"{size.name}: {1000 * passes[0]['passes']:.1f} ms forward and backward for {passes[0]['tokens']:,}.\n")
        print(table(head, rows))
        eager, after = 1000 * compiled["eager"], 1000 * compiled["compiled"]
        print(f"Update of {size.layers} matrices of 1 to 4: {eager:.2f} ms, compiled {after:.2f} ms.\n", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
