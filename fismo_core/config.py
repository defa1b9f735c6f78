"""What `FISMO` can be asked for: frozen dataclasses that check themselves. The one place of names, defaults and ranges.

Imports no torch, so that a tool can read settings without it; pydantic reads these classes as they are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fismo_core.checked import Checked, leaves, option

__all__ = [
    "DENSE",
    "FORMS",
    "MIN_POLYNOMIAL_DAMPING",
    "PAPER",
    "AdamW",
    "ComputeDtype",
    "Economy",
    "FisherMetric",
    "FismoOptions",
    "Form",
    "Polar",
    "PolarMethod",
    "Rule",
    "Scale",
]

PolarMethod = Literal["composite", "quintic", "polar-express", "exact"]
Scale = Literal["spectral", "rms", "none"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]
Economy = Literal["auto", "none", "some", "most"]
Rule = Literal["matrix", "adamw"]

ROOT_POWERS = (0.125, 0.25, 0.5)
"""The powers that products alone can give: their reciprocals are powers of two."""

MIN_POLYNOMIAL_DAMPING = 1e-4
"""With less, a polynomial root of a large factor would need condition numbers that float32 cannot express."""


@dataclass(frozen=True)
class FisherMetric(Checked):
    """The metric of the trust region: Kronecker factors P and Q of a layer's Fisher matrix, and how they are kept."""

    power: float = option(
        0.25, "Power of the inverse Fisher factors on each side; 1/2 is the paper's, 0 is Muon.", ge=0.0, le=0.5
    )
    damping: float = option(
        0.1, "Added to the Fisher factors: with relative scale, in units of their mean eigenvalue.", ge=0.0
    )
    damping_scale: Literal["relative", "absolute"] = option(
        "relative",
        "relative: scale-free statistics, damped as (P + damping I) / (1 + damping). absolute: each statistic is "
        "damped by damping tr(P) / m I, as the paper has it; it depends on the gradient's scale.",
    )
    decay: float = option(0.95, "Decay of the factors' averages.", ge=0.0, lt=1.0)
    statistics: Literal["alternating", "both"] | None = option(
        None, "Whether a step updates one factor, in turn, or both; null: as the economy has it."
    )
    refresh_every: int | None = option(
        None,
        "Steps between new roots of the factors; at the start also after 1, 2, 4, 8, ... steps; null: as the economy "
        "has it.",
        ge=1,
    )
    roots: Literal["polynomial", "eigh"] = option(
        "polynomial", "How the roots are computed: by matrix products; or exactly from eigenvalues, slowly."
    )
    max_dim: int = option(8192, "A longer side keeps a diagonal factor, which bounds memory and time.", ge=1)
    max_ratio: float | None = option(
        None, "So does a side longer than this times the other one; null: as the economy has it.", ge=1.0
    )
    momentum_space: Literal["raw", "whitened"] = option(
        "raw", "Whether gradients are averaged and the average is whitened, or whitened gradients are averaged."
    )

    def is_diagonal(self, side: int, other: int) -> bool:
        """Whether a side, beside another one, keeps a diagonal factor; asked of a metric that is settled.

        So a matrix of dense sides costs at most max_ratio^2 times what its short side costs.
        """
        return side > self.max_dim or (self.max_ratio is not None and side > self.max_ratio * other)

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        if self.roots == "polynomial" and self.power > 0:
            where = "where roots is polynomial (eigh takes any)"
            if self.power not in ROOT_POWERS:
                yield "power", f"must be 0, {', '.join(map(str, ROOT_POWERS[:-1]))} or {ROOT_POWERS[-1]} {where}"
            if self.damping_scale != "relative":
                yield "damping_scale", f"must be relative {where}"
            if self.damping < MIN_POLYNOMIAL_DAMPING:
                yield "damping", f"must be at least {MIN_POLYNOMIAL_DAMPING} {where}"


@dataclass(frozen=True)
class Polar(Checked):
    """How the polar factor U V^T of a matrix U S V^T is computed."""

    method: PolarMethod = option(
        "composite",
        "composite: a polynomial of degree five and one of nine. quintic: Muon's Newton-Schulz; three steps suffice on "
        "whitened matrices, Muon itself needs five. exact: an SVD, slow, for reference.",
    )
    steps: int = option(2, "How many polynomials; composite has 2, exact ignores it.", ge=1)

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        if self.method == "composite" and self.steps != 2:
            yield "steps", "must be 2 where method is composite"


@dataclass(frozen=True)
class AdamW(Checked):
    """AdamW for the parameters that are no hidden matrices: embeddings, heads, norms, biases."""

    lr: float = option(3e-3, "Learning rate.", ge=0.0)
    betas: tuple[float, float] = option((0.9, 0.95), "Decay of the first and second moment.", strict=False)
    eps: float = option(1e-8, "Added to the root of the second moment.", gt=0.0)
    weight_decay: float = option(0.0, "Decoupled weight decay.", ge=0.0)
    fused: bool | None = option(
        None, "Use torch's fused kernel; null: on CUDA devices, where it is faster and has other last digits."
    )

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        if not all(0 <= beta < 1 for beta in self.betas):
            yield "betas", f"must be two numbers from 0 to below 1, got {list(self.betas)}"


@dataclass(frozen=True)
class FismoOptions(Checked):
    """All options of `FISMO` but what depends on the parameters and the processes."""

    lr: float = option(
        0.02, "Learning rate: the radius of the trust region, which is the length of a step of the matrices.", ge=0.0
    )
    momentum: float = option(0.85, "Decay of the momentum.", ge=0.0, lt=1.0)
    nesterov: bool = option(True, "Look ahead by one momentum step.")
    weight_decay: float = option(0.0, "Decoupled weight decay of the matrices.", ge=0.0)
    cautious: bool = option(False, "Decay only entries that the step moves towards zero.")
    metric: FisherMetric = option(FisherMetric(), "The Fisher metric of the trust region.")
    economy: Economy = option(
        "auto",
        "What is saved of the metric. none: dense factors of all sides, both renewed in each step. some: long sides "
        "keep diagonal factors. most: and a step renews one factor, in turn. auto: what takes the least time to a "
        "loss, by the share of a step that the optimizer takes.",
    )
    polar: Polar = option(Polar(), "How the polar factor is computed; a word alone is its method.")
    scale: Scale = option(
        "spectral",
        "What multiplies a step of an m x n matrix. spectral: sqrt(max(1, m/n)), as in Muon; rms: 0.2 sqrt(max(m, n)), "
        "so that AdamW's learning rates carry over; none: 1.",
    )
    graft: bool = option(True, "Give the step the norm of the polar factor, so that one lr means the same everywhere.")
    compute_dtype: ComputeDtype = option(
        "auto", "Type of the large products. auto: bfloat16 where the hardware is fast at it, else float32."
    )
    adamw: AdamW = option(AdamW(), "For parameters that FISMO does not treat as matrices.")


@dataclass(frozen=True)
class Form:
    """A way to run FISMO that has a name.

    Attributes:
        options: of the form; what is not fixed are its defaults.
        fixed: names of the options that define it, such as `metric.power`.
    """

    options: FismoOptions
    fixed: tuple[str, ...]

    def changes(self) -> dict[str, Any]:
        """Names and values of all options that it fixes, or of which it has another default."""
        usual = dict(leaves(FismoOptions()))
        return {name: value for name, value in leaves(self.options) if name in self.fixed or value != usual[name]}


PAPER = FismoOptions(
    nesterov=False,
    metric=FisherMetric(
        power=0.5,
        damping=1e-3,
        damping_scale="absolute",
        statistics="both",
        refresh_every=1,
        roots="eigh",
        momentum_space="whitened",
    ),
    economy="none",
    polar=Polar("quintic", 5),
    scale="none",
    graft=False,
)
"""The published algorithm (arXiv 2601.21750); it leaves damping and the polar factor open."""

DENSE = FismoOptions(
    metric=FisherMetric(statistics="both", refresh_every=5, roots="eigh"), economy="none", polar=Polar("quintic", 3)
)
"""The default form with exact roots and no economy at all: what it is compared with."""

_ECONOMIES = ("economy", "metric.statistics", "metric.refresh_every", "metric.roots", "metric.max_ratio")
FORMS: Mapping[str, Form] = {
    "default": Form(FismoOptions(), ()),
    "dense": Form(DENSE, (*_ECONOMIES, "polar.method", "polar.steps")),
    "paper": Form(
        PAPER,
        (
            *("nesterov", "scale", "graft", *_ECONOMIES),
            *("metric.power", "metric.damping_scale", "metric.momentum_space"),
        ),
    ),
}
