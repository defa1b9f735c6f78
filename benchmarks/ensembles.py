"""How the defaults were chosen: dozens of small models trained at once, each in one slice of every tensor.

    python benchmarks/ensembles.py            # one GPU; about ten minutes on an H100

Each sweep trains Muon or a form of FISMO on one task at all settings of a grid and on several seeds, as one ensemble of
E members; the arithmetic of a step is that of `fismo_core`. Finished sweeps are kept in the JSON file. Tasks: a small
GPT-2 on the source text of Python's standard library, a small Llama on JavaScript (`--javascript`: a folder of *.js
files), a small vision transformer on scikit-learn's digits, shifted by up to a pixel.
"""

import argparse
import itertools
import json
import math
import random
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from fismo_core import fisher
from fismo_core.inverse_roots import polynomial_powers
from fismo_core.polar import polar_factor
from fismo_core.precision import frobenius_norm, normalize_scale

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMAT = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
RESULTS = Path(__file__).with_name("results") / "ensembles.json"
Settings = dict[str, float]


@dataclass(frozen=True)
class Task:
    """A transformer (a causal one unless `arch` is vit) and its data."""

    arch: Literal["gpt2", "llama", "vit"]
    width: int
    hidden: int
    block: int
    vocabulary: int
    layers: int = 3
    heads: int = 4


@dataclass(frozen=True)
class Form:
    """An optimizer of matrices. `long` and `statistics` are the economies of FISMO: see docs/algorithm.md."""

    fismo: bool = True
    long: Literal["dense", "blocks", "diagonal"] = "dense"
    both: bool = True
    every: int = 5


TASKS = {
    "gpt2": Task("gpt2", 96, 384, 64, 256),
    "llama": Task("llama", 128, 384, 128, 256),
    "vit": Task("vit", 64, 128, 16, 10),
}
FORMS = {
    "muon": Form(fismo=False),
    "none": Form(),
    "blocks": Form(long="blocks"),
    "some": Form(long="diagonal"),
    "most": Form(long="diagonal", both=False, every=10),
}
USUAL: Settings = {"lr": 0.04, "momentum": 0.9, "aux": 3e-3, "decay": 0.95, "damping": 0.1}


@dataclass(frozen=True)
class Sweep:
    """An ensemble: a form on a task, for all settings of the grid and all seeds."""

    task: str
    form: str
    rows: int
    steps: int
    grid: dict[str, tuple[float, ...]]
    seeds: tuple[int, ...] = (0, 1)
    fixed: Settings = field(default_factory=dict)

    @property
    def name(self) -> str:
        searched = ", ".join(key for key in self.grid if key not in ("lr", "momentum"))
        return f"{self.task}, {self.rows} a step, {self.steps} steps, {self.form}" + (
            f": {searched}" if searched else ""
        )

    def members(self) -> list[Settings]:
        combinations = itertools.product(*self.grid.values(), self.seeds)
        return [
            {**USUAL, **self.fixed, **dict(zip((*self.grid, "seed"), values, strict=True))} for values in combinations
        ]


def sweeps() -> Iterator[Sweep]:
    """What was run, in order."""
    moms = {"8k": (0.8, 0.85, 0.9), "2k": (0.8, 0.87, 0.92), "vit": (0.8, 0.87, 0.94)}
    forms = ("muon", "none", "blocks", "some", "most")
    for task, rows, steps, lrs, momentum in (
        ("gpt2", 8192, 300, (0.045, 0.07, 0.1, 0.15), moms["8k"]),
        ("llama", 8192, 300, (0.03, 0.045, 0.07, 0.1), moms["8k"]),
        ("gpt2", 2048, 900, (0.02, 0.03, 0.045, 0.07), moms["2k"]),
        ("vit", 256, 300, (0.01, 0.02, 0.04, 0.08), moms["vit"]),
        ("vit", 64, 900, (0.005, 0.01, 0.02, 0.04), moms["vit"]),
        ("llama", 2048, 900, (0.015, 0.025, 0.04, 0.06), moms["2k"]),
    ):
        for form in forms:
            yield Sweep(task, form, rows, steps, {"lr": lrs, "momentum": momentum})
    best = {
        ("gpt2", "none"): (0.05, 0.075),
        ("gpt2", "muon"): (0.05, 0.075),
        ("llama", "none"): (0.055, 0.08),
        ("llama", "muon"): (0.015, 0.025),
    }
    rest = {"momentum": 0.82}
    for task in ("gpt2", "llama"):
        for steps in (375, 450):
            grid = {"lr": (0.015, 0.03, 0.045, 0.07), "momentum": (0.8, 0.85)}
            yield Sweep(task, "muon", 8192, steps, grid, (0, 1, 2))
        metric = {"lr": best[task, "none"], "decay": (0.8, 0.9, 0.95, 0.98), "damping": (0.03, 0.1, 0.3)}
        yield Sweep(task, "none", 8192, 300, metric, fixed=rest)
        for form in ("none", "muon"):
            aux = {"lr": best[task, form], "aux": (1.5e-3, 3e-3, 6e-3, 1.2e-2)}
            yield Sweep(task, form, 8192, 300, aux, (0, 1, 2), rest)
        for form in ("none", "muon"):
            decays = {"weight_decay": (0.05, 0.1, 0.2, 0.4), "cautious": (0.0, 1.0), "falling": (0.0, 1.0)}
            yield Sweep(task, form, 8192, 300, {"lr": best[task, form], **decays}, fixed=rest)
        for form in ("muon", "none"):
            lrs = {"gpt2": (0.03, 0.05, 0.08), "llama": (0.01, 0.02, 0.035) if form == "muon" else (0.03, 0.05, 0.08)}
            yield Sweep(task, form, 8192, 900, {"lr": lrs[task], "momentum": (0.8, 0.87)}, (0, 1, 2))
    for form in ("muon", "none"):
        yield Sweep("vit", form, 256, 300, {"lr": (0.03, 0.06, 0.1), "momentum": (0.85, 0.92)}, tuple(range(8)))


# -- data -------------------------------------------------------------------------------------------------------------


def text_of(folder: Path, pattern: str, most: int, skipped: tuple[str, ...] = ()) -> bytes:
    files = sorted(file for file in folder.rglob(pattern) if file.is_file() and not set(skipped) & set(file.parts))
    files = [file for file in files if 500 < file.stat().st_size < 400_000]
    random.Random(0).shuffle(files)
    text = bytearray()
    while files and len(text) <= most:
        text += files.pop(0).read_bytes()
    return bytes(text)


def load(task: Task, javascript: Path) -> dict[str, Tensor]:
    """Training and validation data on the device: text as bytes, every twentieth 64 KiB of it kept for validation."""
    if task.arch == "vit":
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
        images, labels = torch.tensor(digits.images / 16)[order].float(), torch.tensor(digits.target)[order]
        parts = {"images": images[:1300], "labels": labels[:1300], "held": images[1300:], "held labels": labels[1300:]}
        return {name: part.to(DEVICE) for name, part in parts.items()}
    if task.arch == "gpt2":
        skipped = ("site-packages", "test", "tests", "idlelib")
        text = text_of(Path(sysconfig.get_path("stdlib")), "*.py", 14_000_000, skipped)
    else:
        text = text_of(javascript, "*.js", 10_000_000)
    chunks = torch.frombuffer(bytearray(text), dtype=torch.uint8)[: len(text) // 65536 * 65536].view(-1, 65536)
    held = torch.arange(len(chunks)) % 20 == 7
    return {"text": chunks[~held].flatten().to(DEVICE), "held": chunks[held].flatten().to(DEVICE)}


def drawn(task: Task, data: dict[str, Tensor], generator: torch.Generator, count: int, sets: int) -> tuple[Tensor, ...]:
    """`sets` batches of `count` samples: inputs and targets."""
    if task.arch == "vit":
        index = torch.randint(len(data["images"]), (sets, count), generator=generator, device=DEVICE)
        dx, dy = torch.randint(-1, 2, (2, sets, count, 1, 1), generator=generator, device=DEVICE)
        row = torch.arange(8, device=DEVICE)
        y, x = row[:, None] + dy, row[None, :] + dx
        inside = (y >= 0) & (y < 8) & (x >= 0) & (x < 8)
        place = (y.clamp(0, 7) * 8 + x.clamp(0, 7)).expand(sets, count, 8, 8).reshape(sets, count, 64)
        shifted = data["images"][index].flatten(2).gather(2, place).view(sets, count, 8, 8) * inside
        return patches(shifted), data["labels"][index]
    start = torch.randint(len(data["text"]) - task.block - 1, (sets, count), generator=generator, device=DEVICE)
    window = data["text"][start[..., None] + torch.arange(task.block + 1, device=DEVICE)].long()
    return window[..., :-1], window[..., 1:]


def patches(images: Tensor) -> Tensor:
    """Sixteen patches of 2 x 2 pixels."""
    lead = images.shape[:-2]
    return ((images - 0.305) / 0.376).view(*lead, 4, 2, 4, 2).transpose(-3, -2).reshape(*lead, 16, 4)


# -- the models -------------------------------------------------------------------------------------------------------

MEMBER_AXIS = {"attn": 2, "attn_b": 2, "mlp_in": 2, "mlp_in_b": 2, "norm": 2, "norm_b": 2, "mlp_out": 1, "mlp_out_b": 1}
"""Of a parameter; the others have their members first."""
MATRICES = ("attn", "mlp_in", "mlp_out")


def initial(task: Task, seeds: list[int]) -> dict[str, Tensor]:
    """Parameters of all members, those of one seed alike."""
    drawn_of = {seed: _one(task, torch.Generator().manual_seed(1000 + seed)) for seed in set(seeds)}
    stacked = {
        name: torch.stack([drawn_of[seed][name] for seed in seeds], dim=MEMBER_AXIS.get(name, 0))
        for name in drawn_of[seeds[0]]
    }
    return {name: value.to(DEVICE).contiguous().requires_grad_() for name, value in stacked.items()}


def _one(task: Task, generator: torch.Generator) -> dict[str, Tensor]:
    def normal(*shape: int, std: float = 0.02) -> Tensor:
        return torch.randn(*shape, generator=generator) * std

    D, L, H, V = task.width, task.layers, task.hidden, task.vocabulary
    p = {"attn": normal(L, 4, D, D), "mlp_out": normal(L, D, H)}
    p["mlp_in"] = normal(L, 2 if task.arch == "llama" else 1, H, D)
    p["norm"], p["last"] = torch.ones(L, 2, D), torch.ones(D)
    if task.arch == "gpt2":
        p["attn"][:, 3] /= math.sqrt(2 * L)
        p["mlp_out"] /= math.sqrt(2 * L)
    if task.arch != "llama":
        p["norm_b"], p["last_b"] = torch.zeros(L, 2, D), torch.zeros(D)
        p["attn_b"], p["mlp_in_b"], p["mlp_out_b"] = torch.zeros(L, 4, D), torch.zeros(L, 1, H), torch.zeros(L, D)
        p["position"] = normal(task.block, D)
    if task.arch == "vit":
        p["patch"], p["head_b"] = normal(D, 4, std=0.5), torch.zeros(V)
    else:
        p["embedding"] = normal(V, D)
    if task.arch != "gpt2":  # whose head is the embedding
        p["head"] = normal(V, D)
    return p


def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    y = torch.bmm(x, W.to(FORMAT).mT)
    return y if b is None else y + b.to(FORMAT)[:, None]


def normed(task: Task, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    size = x.shape[-1:]
    y = (F.rms_norm(x, size, eps=1e-6) if task.arch == "llama" else F.layer_norm(x, size)) * w.to(FORMAT)[:, None]
    return y if b is None else y + b.to(FORMAT)[:, None]


def rotated(x: Tensor) -> Tensor:
    length, d = x.shape[-2:]
    frequencies = 1 / 10000 ** (torch.arange(0, d, 2, device=x.device) / d)
    angles = torch.arange(length, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    u, v = x.chunk(2, -1)
    return torch.cat([u * cos - v * sin, v * cos + u * sin], -1)


def logits(task: Task, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """`(E, N, vocabulary)` of tokens `(E, B, block)`, or of patches `(E, B, block, 4)`."""
    E, B, T, D, V = *x.shape[:3], task.width, task.vocabulary
    if task.arch == "vit":
        h = linear(x.reshape(E, B * T, 4).to(FORMAT), p["patch"])
    else:
        own = x + torch.arange(E, device=x.device)[:, None, None] * V
        h = F.embedding(own.reshape(E, B * T), p["embedding"].reshape(E * V, D)).to(FORMAT)
    if "position" in p:
        h = (h.view(E, B, T, D) + p["position"].to(FORMAT)[:, None]).view(E, B * T, D)

    def bias(name: str, *index: int) -> Tensor | None:
        return p[name][index] if name in p else None

    for layer in range(task.layers):
        y = normed(task, h, p["norm"][layer, 0], bias("norm_b", layer, 0))
        q, k, v = (
            linear(y, p["attn"][layer, i], bias("attn_b", layer, i))
            .view(E * B, T, task.heads, D // task.heads)
            .transpose(1, 2)
            for i in range(3)
        )
        if task.arch == "llama":
            q, k = rotated(q), rotated(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=task.arch != "vit")
        mixed = mixed.transpose(1, 2).reshape(E, B * T, D)
        h = h + linear(mixed, p["attn"][layer, 3], bias("attn_b", layer, 3))
        y = normed(task, h, p["norm"][layer, 1], bias("norm_b", layer, 1))
        inner = linear(y, p["mlp_in"][layer, 0], bias("mlp_in_b", layer, 0))
        gated = F.silu(inner) * linear(y, p["mlp_in"][layer, 1]) if task.arch == "llama" else F.gelu(inner)
        h = h + linear(gated, p["mlp_out"][layer], bias("mlp_out_b", layer))
    if task.arch == "vit":
        h = h.view(E, B, T, D).mean(2)
    h = normed(task, h, p["last"], p.get("last_b"))
    return linear(h, p["head"] if "head" in p else p["embedding"], p.get("head_b"))


def losses(task: Task, p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of each member."""
    found = logits(task, p, x).float().flatten(0, 1)
    return F.cross_entropy(found, y.reshape(-1), reduction="none").view(len(x), -1).mean(1)


@torch.no_grad()
def validation(task: Task, p: dict[str, Tensor], data: dict[str, Tensor], members: int) -> list[float]:
    """The validation loss of each member: of 65,536 tokens, or of all images kept for it."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return losses(task, p, x.expand(members, *x.shape), y.expand(members, *y.shape).contiguous())

    if task.arch == "vit":
        return list(loss(patches(data["held"]), data["held labels"]).tolist())
    count = 65536 // task.block
    start = torch.linspace(0, len(data["held"]) - task.block - 2, count, device=DEVICE).long()
    window = data["held"][start[:, None] + torch.arange(task.block + 1, device=DEVICE)].long()
    parts = [loss(part[:, :-1], part[:, 1:]) * len(part) for part in window.split(8192 // task.block)]
    return list((torch.stack(parts).sum(0) / count).tolist())


# -- the optimizers ---------------------------------------------------------------------------------------------------


class Side:
    """The factor of one side of a stack of B matrices, and its roots."""

    def __init__(self, count: int, length: int, other: int, form: Form) -> None:
        is_long = length > 1.5 * other
        self.diagonal = is_long and form.long == "diagonal"
        self.blocks = length // other if is_long and form.long == "blocks" else 1
        self.length = length // self.blocks
        shape = (count, length) if self.diagonal else (count * self.blocks, self.length, self.length)
        identity = torch.ones(length) if self.diagonal else torch.eye(self.length)
        self.factor = torch.zeros(shape, device=DEVICE)
        self.root = self.inverse_sqrt = identity.to(DEVICE, FORMAT).expand(shape)

    def times(self, root: Tensor, X: Tensor) -> Tensor:
        if self.diagonal:
            return root[:, :, None] * X
        return (root @ X.reshape(len(root), self.length, -1)).view(X.shape)

    def fold(self, X: Tensor, decay: Tensor) -> None:
        """Take in the second moment of the rows of X."""
        L = X.float().square().sum(-1) if self.diagonal else (Y := X.reshape(-1, self.length, X.shape[-1])) @ Y.mT
        size = fisher.trace(L)
        L = L.float() * fisher.expand(self.factor.shape[1] / torch.where(size > 0, size, 1.0), L)
        weight = (1 - decay.repeat_interleave(self.blocks)) * (size > 0)
        self.factor.lerp_(L, fisher.expand(weight, self.factor))

    def refresh(self, damping: Tensor) -> None:
        A = fisher.damped(self.factor, damping.repeat_interleave(self.blocks))  # type: ignore[arg-type]
        least = float(damping.min())
        if self.diagonal:
            self.root, self.inverse_sqrt = (A**-0.25).to(FORMAT), A.rsqrt().to(FORMAT)
        else:
            self.root, self.inverse_sqrt, _ = polynomial_powers(A.to(FORMAT), 0.25, (self.length + least) / least)


class Matrices:
    """Muon or FISMO on one parameter's matrices, those of all members stacked."""

    def __init__(self, W: Tensor, axis: int, form: Form) -> None:
        self.W, self.form, self.axis = W, form, axis
        self.m, self.n = W.shape[-2:]
        self.count = W.numel() // (self.m * self.n)
        self.M = torch.zeros(self.count, self.m, self.n, device=DEVICE)
        if form.fismo:
            self.P, self.Q = Side(self.count, self.m, self.n, form), Side(self.count, self.n, self.m, form)

    def of_matrices(self, members: Tensor) -> Tensor:
        """A value of each member as one of each matrix, `(B,)`."""
        shape = [1] * (self.W.ndim - 2)
        shape[self.axis] = -1
        return members.view(shape).expand(self.W.shape[:-2]).reshape(self.count)

    def step(self, t: int, done: float, share: float, settings: dict[str, Tensor]) -> None:
        value = {name: self.of_matrices(members) for name, members in settings.items()}
        assert self.W.grad is not None
        G = self.W.grad.reshape(-1, self.m, self.n)
        if self.form.fismo:
            self._renew(normalize_scale(G, FORMAT), t, value)
        momentum = value["momentum"][:, None, None]
        self.M.lerp_(G, 1 - momentum)
        X = normalize_scale(G.lerp(self.M, momentum), FORMAT)
        if self.form.fismo:
            Z = polar_factor(self._whitened(X), method="composite", steps=2)
            D = self._whitened(Z).float()
            D *= frobenius_norm(Z).float() / frobenius_norm(D).clamp_min(1e-30)
        else:
            D = polar_factor(X, method="quintic", steps=5).float()
        lr = value["lr"][:, None, None] * share
        W = self.W.view(-1, self.m, self.n)
        if "weight_decay" in value:
            decay = value["weight_decay"] * (1 - value["falling"] * done)
            spared = (value["cautious"][:, None, None] > 0) & (W * D <= 0)
            W.mul_(1 - lr * decay[:, None, None] * ~spared)
        W.sub_(lr * math.sqrt(max(1.0, self.m / self.n)) * D)
        self.W.grad = None

    def _renew(self, G: Tensor, t: int, value: dict[str, Tensor]) -> None:
        every = self.form.every
        due = t % every == 0 or (t < every and t.bit_count() == 1)
        for turn, (own, other, X) in enumerate(((self.P, self.Q, G), (self.Q, self.P, G.mT))):
            if self.form.both or t == 0 or t % 2 == turn:
                own.fold(other.times(other.inverse_sqrt, X.mT).mT, value["decay"])
            if due:
                own.refresh(value["damping"])

    def _whitened(self, X: Tensor) -> Tensor:
        return self.Q.times(self.Q.root, self.P.times(self.P.root, X).mT).mT


class Adam:
    """Adam on one parameter that is no matrix."""

    def __init__(self, p: Tensor, axis: int) -> None:
        self.p, self.axis, self.a, self.b = p, axis, torch.zeros_like(p), torch.zeros_like(p)

    def step(self, t: int, lr: Tensor) -> None:
        assert self.p.grad is not None
        self.a.lerp_(self.p.grad, 0.1)
        self.b.lerp_(self.p.grad.square(), 0.05)
        shape = [1] * self.p.ndim
        shape[self.axis] = -1
        step = (self.a / (1 - 0.9 ** (t + 1))) / ((self.b / (1 - 0.95 ** (t + 1))).sqrt() + 1e-8)
        self.p.sub_(step * lr.view(shape))
        self.p.grad = None


def schedule(t: int, steps: int) -> float:
    """A cosine to zero after a warm-up of a tenth."""
    warm = max(1, round(0.1 * steps))
    return (t + 1) / warm if t < warm else 0.5 * (1 + math.cos(math.pi * (t - warm) / max(1, steps - warm)))


def run(sweep: Sweep, data: dict[str, Tensor], steps: int) -> list[float]:
    """Train an ensemble; the validation loss of each member."""
    task, form, members = TASKS[sweep.task], FORMS[sweep.form], sweep.members()
    settings = {name: torch.tensor([m[name] for m in members], device=DEVICE) for name in members[0] if name != "seed"}
    seeds = sorted(set(sweep.seeds))
    batch_of = torch.tensor([seeds.index(int(member["seed"])) for member in members], device=DEVICE)
    p = initial(task, [int(member["seed"]) for member in members])
    stacks = [Matrices(p[name], MEMBER_AXIS[name], form) for name in MATRICES]
    others = [Adam(value, MEMBER_AXIS.get(name, 0)) for name, value in p.items() if name not in MATRICES]
    generator = torch.Generator(DEVICE).manual_seed(7 + seeds[0])
    count = sweep.rows if task.arch == "vit" else sweep.rows // task.block
    for t in range(steps):
        x, y = drawn(task, data, generator, count, len(seeds))
        losses(task, p, x[batch_of], y[batch_of]).sum().backward()  # type: ignore[no-untyped-call]
        share = schedule(t, steps)
        with torch.no_grad():
            for stack in stacks:
                stack.step(t, t / steps, share, settings)
            for other in others:
                other.step(t, settings["aux"] * share)
    return validation(task, p, data, len(members))


def summary(sweep: Sweep, found: list[float]) -> dict[str, Any]:
    """Of each setting the loss of every seed; the best one by its mean."""
    values: dict[tuple[float, ...], list[float]] = {}
    for member, loss in zip(sweep.members(), found, strict=True):
        values.setdefault(tuple(member[key] for key in sweep.grid), []).append(round(loss, 5))
    rows = [dict(zip((*sweep.grid, "losses"), (*key, own), strict=True)) for key, own in values.items()]
    best = min(rows, key=lambda row: sum(row["losses"]))
    return {"name": sweep.name, "best": best, "settings": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--javascript", type=Path, default=Path("/usr/lib/node_modules"), help="folder of *.js files")
    parser.add_argument("--only", default="", help="sweeps whose name has this in it")
    parser.add_argument("--steps", type=int, help="so many steps in place of each sweep's own, to try it out")
    asked = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    kept: dict[str, Any] = json.loads(asked.out.read_text())["sweeps"] if asked.out.exists() else {}
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    loaded: dict[str, dict[str, Tensor]] = {}
    for sweep in sweeps():
        if asked.only not in sweep.name or sweep.name in kept:
            continue
        if sweep.task not in loaded:
            loaded[sweep.task] = load(TASKS[sweep.task], asked.javascript)
        started = time.perf_counter()
        result = summary(sweep, run(sweep, loaded[sweep.task], asked.steps or sweep.steps))
        kept[sweep.name] = {**result, "device": device, "seconds": round(time.perf_counter() - started, 1)}
        asked.out.write_text(json.dumps({"sweeps": kept}, indent=1) + "\n")
    for name, result in kept.items():
        best = result["best"]
        mean = sum(best["losses"]) / len(best["losses"])
        at = ", ".join(f"{key} {value:g}" for key, value in best.items() if key != "losses")
        print(f"{name:48}  {mean:.4f}  at {at}")


if __name__ == "__main__":
    main()
