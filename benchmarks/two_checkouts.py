"""Whether a change makes the optimizer's step slower: two checkouts take turns, in processes of their own.

    python benchmarks/two_checkouts.py OLD NEW

Each has the whole optimizer (matrices and AdamW's part) of small GPT-2, Llama, ViT and ResNet models, with random
gradients, on one thread. Turns are a refresh interval of ten steps; the ratio is that of the medians of turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = ("gpt2", "llama", "vit", "resnet")

WORKER = """
import sys, time
import torch
sys.path.insert(0, sys.argv[1])
from fismo_core import FISMO, split_parameters
import fismo_core
assert fismo_core.__file__.startswith(sys.argv[1]), fismo_core.__file__
torch.set_num_threads(1)
torch.manual_seed(0)
name = sys.argv[2]
if name == "gpt2":
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_positions=256, n_embd=256, n_layer=4, n_head=4))
elif name == "llama":
    from transformers import LlamaConfig, LlamaForCausalLM
    sizes = dict(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1024, num_key_value_heads=2, **sizes))
else:
    import timm
    wanted = {"vit": ("vit_tiny_patch16_224", dict(depth=4)), "resnet": ("resnet18", {})}[name]
    model = timm.create_model(wanted[0], num_classes=10, **wanted[1])
optimizer = FISMO(split_parameters(model), 0.02)
parameters = list(model.parameters())
for line in sys.stdin:
    seconds = 0.0
    for _ in range(int(line)):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        started = time.perf_counter()
        optimizer.step()
        seconds += time.perf_counter() - started
    print(seconds, flush=True)
"""


def turn(worker: "subprocess.Popen[str]", steps: int) -> float:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def compare(checkouts: list[Path], model: str, turns: int) -> dict[str, Any]:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(checkout), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        for checkout in checkouts
    ]
    try:
        for worker in workers:
            turn(worker, 20)  # beyond the early refreshes
        seconds: list[list[float]] = [[], []]
        for _ in range(turns):
            for mine, worker in zip(seconds, workers, strict=True):
                mine.append(turn(worker, 10) / 10)
    finally:
        for worker in workers:
            worker.kill()
    old, new = (statistics.median(mine) for mine in seconds)
    by_turn = sorted(b / a for a, b in zip(*seconds, strict=True))
    return {"old_ms": 1e3 * old, "new_ms": 1e3 * new, "ratio": new / old, "quartiles": statistics.quantiles(by_turn)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    print("| model | old, ms | new, ms | new / old | quartiles of turns |\n| --- | --- | --- | --- | --- |")
    record = {}
    for model in arguments.models:
        found = record[model] = compare([arguments.old.resolve(), arguments.new.resolve()], model, arguments.turns)
        low, _, high = found["quartiles"]
        cells = (
            f"{found['old_ms']:.1f}",
            f"{found['new_ms']:.1f}",
            f"{found['ratio']:.3f}",
            f"{low:.3f} to {high:.3f}",
        )
        print(f"| {model} | {' | '.join(cells)} |", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
