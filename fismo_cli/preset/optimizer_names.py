"""Names that `optimizer.name` may have, and default settings: plain data, so that a preset is checked without imports.

Tests hold the names against the libraries: each is really built and takes steps. Left out are pytorch-optimizer's
wrappers, and what needs a closure, second derivatives, extra arguments or calls, or only treats matrices.
"""

from typing import Any

__all__ = [
    "COUPLED_DECAY",
    "DEFAULTS",
    "MATRIX_NAMES",
    "NO_WEIGHT_DECAY",
    "PYTORCH_OPTIMIZER_NAMES",
    "TORCH_NAMES",
    "is_optimizer_name",
    "optimizer_names",
]

# fmt: off
TORCH_NAMES = (
    "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "muon", "nadam", "radam", "rmsprop", "sgd",
)
"""Taken from torch.optim, also where pytorch-optimizer has the name."""

PYTORCH_OPTIMIZER_NAMES = (
    "accsgd", "adabelief", "adabound", "adafactor", "adagc", "adai", "adalite", "adamc", "adamg", "adamod", "adamp",
    "adams", "adamwsn", "adan", "adanorm", "adapnm", "adashift", "adasmooth", "adatam", "ademamix", "adopt",
    "aggmo", "aida", "alice", "amos", "ano", "apollo", "apollodqn", "avagrad", "bcos", "came", "conda",
    "dadaptadagrad", "dadaptadam", "dadaptadan", "dadaptlion", "dadaptsgd", "dash", "diffgrad", "dualadam",
    "emofact", "emolynx", "emonavi", "exadam", "fadam", "fira", "flashadamw", "focus", "fromage", "ftrl", "galore",
    "grams", "gravity", "grokfastadamw", "kate", "kron", "lamb", "laprop", "lars", "lion", "madgrad", "magma",
    "mars", "msvag", "nero", "novograd", "padam", "pid", "pnm", "prodigy", "qhadam", "qhm", "racs", "ranger",
    "rose", "scalableshampoo", "scion", "scionlight", "sgdp", "sgdsai", "sgdw", "shampoo", "signsgd",
    "simplifiedademamix", "sm3", "soap", "spam", "srmm", "stableadamw", "stablespam", "swats", "tam", "tiger",
    "vsgd", "yogi",
)
"""Taken from pytorch-optimizer, spelt as its `load_optimizer` takes them."""
# fmt: on

MATRIX_NAMES = ("muon", "soap", "shampoo", "scalableshampoo")
"""Given FISMO's matrices, with AdamW for all other parameters; `optimizer.rules` means nothing to any other name."""

TIMM_PREFIX = "timm/"

_COUPLED = ("adadelta", "adagrad", "adam", "adamax", "asgd", "nadam", "radam", "rmsprop", "sgd")
COUPLED_DECAY = frozenset((*_COUPLED, *(f"{TIMM_PREFIX}{name}" for name in _COUPLED), f"{TIMM_PREFIX}momentum"))
"""Optimizers whose weight decay goes through the gradient: its values mean something else than decoupled ones."""

NO_WEIGHT_DECAY = frozenset(("adashift", "amos", "fromage", "ftrl", "gravity", "magma", "msvag", "nero", "sm3", "srmm"))
"""Optimizers that take none."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 1e-3},
    "adamw": {"lr": 1e-3},
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "muon": {"lr": 0.02},
    "soap": {"lr": 3e-3},
    "shampoo": {"lr": 1e-2},
    "lion": {"lr": 1e-4},
}
"""Used where the preset gives no value; any other optimizer keeps its library's own defaults."""


def optimizer_names() -> tuple[str, ...]:
    """All plain names; any of timm's optimizers besides, as timm/NAME."""
    return ("fismo", *TORCH_NAMES, *PYTORCH_OPTIMIZER_NAMES)


def is_optimizer_name(name: str) -> bool:
    """Whether the name is one of `optimizer_names` or has the form timm/NAME."""
    return name in optimizer_names() or (name.startswith(TIMM_PREFIX) and len(name) > len(TIMM_PREFIX))
