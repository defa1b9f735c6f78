"""Names that `optimizer.name` may have, and default settings: plain data, so that a preset is checked without imports.

Tests hold them against the libraries: each name is built, trained, saved and resumed. What is left out is in `REFUSED`,
with the reason.
"""

from typing import Any

from fismo_cli.own_optimizers import OWN_MATRICES, is_own, why_no_own

__all__ = [
    "COUPLED_DECAY",
    "DEFAULTS",
    "LOW_RANK_NAMES",
    "MATRIX_NAMES",
    "NO_WEIGHT_DECAY",
    "PYTORCH_OPTIMIZER_NAMES",
    "RANDOM_NAMES",
    "TIMM_NAMES",
    "TIMM_PREFIX",
    "TORCH_NAMES",
    "driven_argument",
    "is_optimizer_name",
    "optimizer_names",
    "takes_matrices",
    "why_refused",
]

# fmt: off
TORCH_NAMES = (
    "adadelta", "adagrad", "adam", "adamax", "adamw", "asgd", "muon", "nadam", "radam", "rmsprop", "sgd",
)
"""Taken from torch.optim, also where pytorch-optimizer has the name."""

PYTORCH_OPTIMIZER_NAMES = (
    "accsgd", "adabelief", "adabound", "adafactor", "adagc", "adai", "adalite", "adamc", "adamg", "adamod", "adamp",
    "adams", "adamwsn", "adan", "adanorm", "adapnm", "adashift", "adasmooth", "adatam", "ademamix", "adopt", "aggmo",
    "aida", "alice", "amos", "ano", "apollo", "apollodqn", "avagrad", "bcos", "came", "conda", "dadaptadagrad",
    "dadaptadam", "dadaptadan", "dadaptlion", "dadaptsgd", "dash", "diffgrad", "dualadam", "exadam", "fadam", "fira",
    "flashadamw", "focus", "fromage", "galore", "grams", "grokfastadamw", "kate", "kron", "lamb", "laprop",
    "lars", "lion", "madgrad", "mars", "msvag", "nero", "novograd", "padam", "pid", "pnm", "prodigy", "qhadam", "qhm",
    "racs", "ranger", "rose", "scion", "scionlight", "sgdp", "sgdsai", "sgdw", "shampoo", "signsgd",
    "simplifiedademamix", "sm3", "soap", "spam", "stableadamw", "stablespam", "swats", "tam", "tiger", "vsgd", "yogi",
)
"""Taken from pytorch-optimizer, spelt as its `load_optimizer` takes them."""

TIMM_NAMES = (
    "adabelief", "adadelta", "adafactor", "adafactorbv", "adafactorbvc", "adagrad", "adam", "adamax", "adamc",
    "adamp", "adamuon", "adamw", "adamwlegacy", "adan", "adanw", "adopt", "adoptc", "adoptw", "cadafactor",
    "cadafactorbv", "cadafactorbvc", "cadamc", "cadamp", "cadamw", "cadan", "cadanw", "cadopt", "cadoptc", "cadoptw",
    "clamb", "clambw", "claprop", "clion", "clionc", "cmars", "cnadamc", "cnadamw", "crmsproptf", "csgdc", "csgdp",
    "csgdw", "lamb", "lambc", "lambcd", "lambcw", "lambw", "laprop", "lapropc", "larc", "lars", "lion", "lionc",
    "madgrad", "madgradw", "mars", "momentum", "muon", "nadam", "nadamc", "nadamlegacy", "nadamuon", "nadamw",
    "nesterov", "nesterovw", "nlarc", "nlars", "nmuon", "novograd", "novogradc", "novogradw", "radabelief", "radam",
    "radamlegacy", "radamw", "rmsprop", "rmsproptf", "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdp", "sgdw",
)
"""Taken from timm's factory, as timm/NAME."""
# fmt: on

TIMM_PREFIX = "timm/"

LOW_RANK_NAMES = ("apollo", "fira", "galore")
"""Project the gradients of matrices to a lower rank; without `rank` in a parameter group they would be AdamW."""

MATRIX_NAMES = ("muon", "soap", "shampoo", "adamwsn", "conda", *LOW_RANK_NAMES)
"""Given FISMO's matrices, with AdamW for all other parameters; `optimizer.rules` means nothing to any other name."""

RANDOM_NAMES = ("apollo", "dash", "kron")
"""Draw random numbers in a step, which would be other ones in each process of DDP."""

_COUPLED = ("adadelta", "adagrad", "adam", "adamax", "asgd", "nadam", "radam", "rmsprop", "sgd")
COUPLED_DECAY = frozenset((*_COUPLED, *(f"{TIMM_PREFIX}{name}" for name in _COUPLED), f"{TIMM_PREFIX}momentum"))
"""Optimizers whose weight decay goes through the gradient: its values mean something else than decoupled ones."""

NO_WEIGHT_DECAY = frozenset(("adashift", "amos", "fromage", "msvag", "nero", "sm3"))
"""Optimizers that take none."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 1e-3},
    "adamw": {"lr": 1e-3},
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "muon": {"lr": 0.02},
    "soap": {"lr": 3e-3},
    "shampoo": {"lr": 1e-2},
    "lion": {"lr": 1e-4},
    # What makes the method what it is, and its library leaves out.
    "adamc": {"normalized": True},  # corrects the decay of all weights, as timm's does
    "adamwsn": {"sn": True},
    "apollo": {"scale_type": "channel", "update_proj_gap": 200, "scale": 1.0, "projection_type": "std"},
    "fira": {"update_proj_gap": 200, "scale": 0.25, "projection_type": "std"},
    "galore": {"update_proj_gap": 200, "scale": 0.25, "projection_type": "std"},
    "pid": {"momentum": 0.9},
    "qhadam": {"nus": (0.7, 1.0), "betas": (0.995, 0.999)},  # recommended in arXiv 1810.06801, as the next line
    "qhm": {"momentum": 0.999, "nu": 0.7},
    "sgdp": {"momentum": 0.9},
    "sgdw": {"momentum": 0.9},
    # The library's own rate and warm-up would take the place of optimizer.lr and train.schedule.
    "adafactor": {"relative_step": False, "scale_parameter": False},
    "apollodqn": {"warmup_steps": 0},
    "timm/adafactor": {"lr": 1e-3},
    "timm/cadafactor": {"lr": 1e-3},
    # The library has no default.
    "timm/csgdp": {"lr": 0.1},
    "timm/sgdp": {"lr": 0.1},
}
"""Used where the preset gives no value; any other optimizer keeps its library's own defaults."""

_SCHEDULE = "the rate is optimizer.lr and its course train.schedule"
_DRIVEN = {
    "weight_decay": "set optimizer.weight_decay",
    "params": "the parameters are the model's",
    "maximize": "the loss is minimised",
    **dict.fromkeys(("capturable", "differentiable"), "steps are not captured or differentiated here"),
    **dict.fromkeys(("relative_step", "warmup_init"), _SCHEDULE),
}
_DRIVEN_OF = {"apollodqn": dict.fromkeys(("init_lr", "warmup_steps"), _SCHEDULE)}

_WRAPPER = "wraps another optimizer"
_CLOSURE = "evaluates the loss several times in a step (a closure), which is not done here"
_LOSS = "goes by the value of the loss, which an optimizer is not told here"
_SECOND_ORDER = "needs second derivatives of the loss, which are not computed here"
_SWITCHED = (
    "trains other weights than it evaluates and saves (train() and eval() of the optimizer), which is not done here"
)
_BACKWARD = "takes its steps within the backward pass, which is not done here"
_MODEL = "needs to be told the structure of the model"
_PROCESSES = "averages gradients between processes by itself"
_SCHEDULED = "brings a schedule of its own, and needs to know the length of the run"
_MATRICES = "is not offered; take muon, soap or fismo for the matrices"
_APEX, _BITSANDBYTES = "needs apex, which is not tried here", "needs bitsandbytes, which is not tried here"
_OWN_GENERATOR = (
    "draws from a generator that its state leaves out, so that a resumed run would be another one; take kron"
)

REFUSED: dict[str, str] = {
    "magma": _WRAPPER,
    **dict.fromkeys(("lbfgs", "bsam"), _CLOSURE),
    **dict.fromkeys(("alig", "emofact", "emolynx", "emonavi"), _LOSS),
    **dict.fromkeys(("adahessian", "sophiah", f"{TIMM_PREFIX}adahessian"), _SECOND_ORDER),
    **dict.fromkeys(("schedulefreeadamw", "schedulefreeradam", "schedulefreesgd", "splus"), _SWITCHED),
    **dict.fromkeys(("lomo", "adalomo"), _BACKWARD),
    **dict.fromkeys(("adammini", "lorarite", "muonclip"), _MODEL),
    **dict.fromkeys(("demo", "distributedmuon"), _PROCESSES),
    **dict.fromkeys(("a2grad", "ranger21"), _SCHEDULED),
    **dict.fromkeys(("adago", "adamuon", "normuon", "sara", "spectralsphere"), _MATRICES),
    "scalableshampoo": "keeps preconditioners that a checkpoint cannot hold; take shampoo or soap",
    "gravity": "draws its first velocity by the rate of the first step, which a warm-up makes small: it would diverge",
    "ftrl": "has weights in proportion to the rate of the moment: any schedule would shrink them",
    "srmm": "starts its average of the weights at zero, and so takes away a third of them in the first step",
    **dict.fromkeys((f"{TIMM_PREFIX}{name}" for name in ("kron", "kronc", "kronw")), _OWN_GENERATOR),
    **dict.fromkeys(
        (f"{TIMM_PREFIX}fused{name}" for name in ("adam", "adamw", "lamb", "novograd", "sgd")),
        _APEX,
    ),
    **dict.fromkeys(
        (
            f"{TIMM_PREFIX}bnb{name}{bits}"
            for name in ("adam", "adamw", "ademamix", "lion", "sgd")
            for bits in ("", "8bit")
        ),
        _BITSANDBYTES,
    ),
}
"""Names that the libraries know and that are not offered, and why."""


def optimizer_names() -> tuple[str, ...]:
    """All names."""
    return ("fismo", *TORCH_NAMES, *PYTORCH_OPTIMIZER_NAMES, *(f"{TIMM_PREFIX}{name}" for name in TIMM_NAMES))


def is_optimizer_name(name: str) -> bool:
    """Whether the name is one of `optimizer_names`, or of the user's own."""
    return name in optimizer_names() or (is_own(name) and why_no_own(name) is None)


def takes_matrices(name: str) -> bool:
    """Whether the optimizer is given the hidden matrices alone, and AdamW treats the rest."""
    return name == "fismo" or name in MATRIX_NAMES or name.startswith(OWN_MATRICES)


def why_refused(name: str) -> str | None:
    """Why an optimizer that a library has, or the user is to have, is not there; None where nothing is known of it."""
    return f"{name} {REFUSED[name]}" if name in REFUSED else why_no_own(name)


def driven_argument(name: str, key: str) -> str | None:
    """Why `optimizer.args` may not have an argument of an optimizer, or what to set; None where it may."""
    return {**_DRIVEN, **_DRIVEN_OF.get(name, {})}.get(key)
