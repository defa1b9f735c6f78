"""The optimizer section of a preset: FISMO, or any other optimizer by its name."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from fismo_cli.preset.optimizer_names import MATRIX_NAMES, driven_argument, is_optimizer_name, why_refused
from fismo_cli.preset.schema_base import Betas, Config, Fraction, NonNegative, Positive, PositiveInt, refuse

__all__ = ["FORMS", "AdamWConfig", "BaselineConfig", "BaselineConfigs", "FismoConfig", "OptimizerConfig"]


def _regular_expressions(rules: dict[str, Literal["matrix", "adamw"]]) -> dict[str, Literal["matrix", "adamw"]]:
    for pattern in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'"{pattern}" is not a regular expression: {error}') from error
    return rules


VarianceReduction = Annotated[
    Literal["mars"] | None,
    Field(description="mars: correct gradients by their difference from the last ones, before the momentum."),
]

MarsGamma = Annotated[Positive, Field(description="How much of the correction of mars is applied.")]

WeightDecayOn = Annotated[
    Literal["matrices", "all"],
    Field(
        description="matrices: weights of linear layers (the head too) and convolutions; no norms, biases, embeddings, "
        "positions, tokens, nor what the model lists in no_weight_decay(). all: every parameter."
    ),
]

Rules = Annotated[dict[str, Literal["matrix", "adamw"]], AfterValidator(_regular_expressions)]


class AdamWConfig(Config):
    """AdamW for the parameters that a matrix optimizer does not treat: embeddings, heads, norms, biases."""

    lr: Positive = Field(default=3e-3, description="Learning rate.")
    betas: Betas = Field(default=(0.9, 0.95), description="Decay of the first and second moment.")
    eps: Positive = Field(default=1e-8, description="Added to the root of the second moment.")
    weight_decay: NonNegative = Field(default=0.0, description="Decoupled weight decay.")


PAPER_FORM: dict[str, Any] = {
    "power": 0.5,
    "damping_scale": "absolute",
    "momentum_space": "whitened",
    "nesterov": False,
    "statistics": "both",
    "refresh_interval": 1,
    "roots": "eigh",
    "max_factor_ratio": None,
    "shape_scale": "none",
    "grafting": False,
}
"""What defines the paper's form; equal to `fismo_core.PAPER_FORM` (a test holds them together)."""

PAPER_DEFAULTS: dict[str, Any] = {"damping": 1e-3, "polar": "quintic", "polar_steps": 5}
"""Defaults that are other ones in the paper's form, which leaves them open."""

DENSE_FORM: dict[str, Any] = {
    "statistics": "both",
    "refresh_interval": 5,
    "roots": "eigh",
    "max_factor_ratio": None,
    "polar": "quintic",
    "polar_steps": 3,
}
"""What defines the dense form; equal to `fismo_core.DENSE_FORM` (a test holds them together)."""

FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": (PAPER_FORM, PAPER_DEFAULTS),
    "dense": (DENSE_FORM, {}),
}
"""Of each form the keys that it fixes, and defaults that are other ones in it."""


class FismoConfig(Config):
    """The FISMO optimizer. Every key is an argument of `fismo_core.FISMO`, where it is explained in full."""

    name: Literal["fismo"] = Field(description="The optimizer.")
    form: Literal["default", "dense", "paper"] = Field(
        default="default",
        description="paper: the published algorithm to the letter; dense: the default without its economies. Each "
        "fixes the keys that define it.",
    )
    trust_radius: Positive = Field(default=0.02, description="FISMO's learning rate: the length of a step.")
    momentum: Fraction = Field(default=0.95, description="Decay of the momentum.")
    nesterov: bool = Field(default=True, description="Look ahead by one momentum step.")
    momentum_space: Literal["raw", "whitened"] = Field(default="raw", description="Where the momentum is averaged.")
    power: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        default=0.25, description="Power of the inverse Fisher factors on each side; 1/2 is the paper's, 0 is Muon."
    )
    damping: NonNegative = Field(default=0.1, description="Added to the Fisher factors.")
    damping_scale: Literal["relative", "absolute"] = Field(
        default="relative", description="relative: to factors of scale-free statistics. absolute: as the paper has it."
    )
    fisher_decay: Fraction = Field(default=0.95, description="Decay of the Fisher factors.")
    statistics: Literal["alternating", "both"] = Field(
        default="alternating", description="Whether a step updates one factor, in turn, or both."
    )
    refresh_interval: PositiveInt = Field(default=10, description="Steps between new roots of the factors.")
    roots: Literal["polynomial", "eigh"] = Field(
        default="polynomial", description="How the roots are computed. eigh is exact and slow, for reference."
    )
    polar: Literal["composite", "quintic", "polar-express", "exact"] = Field(
        default="composite", description="How the polar factor is computed. exact is an SVD: slow, for reference."
    )
    polar_steps: PositiveInt = Field(default=2, description="Polynomials of the polar factor; composite has 2.")
    shape_scale: Literal["spectral", "rms", "none"] = Field(
        default="spectral", description="How a matrix's shape scales its step. rms: AdamW's learning rates carry over."
    )
    grafting: bool = Field(default=True, description="Give the step the norm of the polar factor.")
    weight_decay: NonNegative = Field(default=0.0, description="Decoupled weight decay.")
    weight_decay_on: WeightDecayOn = "matrices"
    cautious_weight_decay: bool = Field(default=False, description="Decay only where the step points to zero too.")
    max_factor_dim: PositiveInt = Field(default=8192, description="A longer side keeps a diagonal factor.")
    max_factor_ratio: Annotated[float, Field(ge=1.0)] | None = Field(
        default=1.5, description="So does a side longer than this times the other one; null: however long."
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Type of the large products. auto: bfloat16 where the hardware is fast at it."
    )
    adapt_radius: PositiveInt | None = Field(
        default=None,
        description="Adapt the trust radius by what steps achieve: at most so many steps apart, a step's batch is "
        "evaluated again after it. null: fixed.",
    )
    variance_reduction: VarianceReduction = None
    mars_gamma: MarsGamma = 0.025
    adamw: AdamWConfig = Field(default=AdamWConfig(), description="For parameters that FISMO does not treat.")
    rules: Rules = Field(
        default={}, description="Regular expression on the parameter's name -> who treats it; the first match wins."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_form(cls, values: Any) -> Any:
        form = values.get("form") if isinstance(values, dict) else None
        if not isinstance(form, str) or form not in FORMS:  # a list of words is no key to look up
            return values
        fixed, defaults = FORMS[form]
        contradicted = [(key, value) for key, value in fixed.items() if values.get(key, value) != value]
        message = f"must be {{}}, as optimizer.form: {form} fixes it"
        refuse(*((True, key, message.format(_yaml(value)), ("form",)) for key, value in contradicted))
        return {**defaults, **values, **fixed}

    @model_validator(mode="after")
    def _check(self) -> "FismoConfig":
        polynomial = self.roots == "polynomial" and self.power > 0
        message = "must be {} where optimizer.roots is polynomial; eigh takes any"
        composite = self.polar == "composite" and self.polar_steps != 2
        refuse(
            (composite, "polar_steps", "must be 2 where optimizer.polar is composite", ("polar",)),
            (polynomial and self.power not in (0.125, 0.25, 0.5), "power", message.format("0.125, 0.25 or 0.5"), ()),
            (polynomial and self.damping_scale == "absolute", "damping_scale", message.format("relative"), ()),
            (polynomial and self.damping < 1e-4, "damping", message.format("at least 1e-4"), ()),
        )
        return self


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _known_optimizer(name: str) -> str:
    if not is_optimizer_name(name):
        raise ValueError(why_refused(name) or "unknown optimizer")
    return name


class BaselineConfig(Config):
    """Any other optimizer: adam, adamw, sgd, muon (torch), soap, shampoo, lion, ... (pytorch-optimizer), timm/NAME."""

    name: Annotated[str, AfterValidator(_known_optimizer)] = Field(
        description="The optimizer.", json_schema_extra={"expected": "the name of an optimizer"}
    )
    lr: Positive | None = Field(default=None, description="Learning rate; null: this tool's default for the optimizer.")
    weight_decay: NonNegative = Field(default=0.0, description="Weight decay, as the optimizer defines it.")
    weight_decay_on: WeightDecayOn = "matrices"
    momentum: Fraction | None = Field(default=None, description="Momentum, where the optimizer has it.")
    betas: Betas | None = Field(default=None, description="Decay rates, where the optimizer has two.")
    args: dict[str, Any] = Field(default={}, description="Any other argument of the optimizer's constructor.")
    variance_reduction: VarianceReduction = None
    mars_gamma: MarsGamma = 0.025
    adamw: AdamWConfig = Field(
        default=AdamWConfig(), description="muon, soap, shampoo, ...: for the parameters that they do not treat."
    )
    rules: Rules = Field(
        default={}, description="muon, soap, shampoo, ...: regular expression on a name -> who treats it."
    )

    @model_validator(mode="after")
    def _check(self) -> "BaselineConfig":
        message = f"{self.name} treats all parameters alike; rules are for matrix optimizers"
        refuse(
            (bool(self.rules) and self.name not in MATRIX_NAMES, "rules", message, ("name",)),
            *(
                (
                    key in self.args and getattr(self, key) is not None,
                    f"args.{key}",
                    f"optimizer.{key} is set too",
                    (key,),
                )
                for key in ("lr", "momentum", "betas")
            ),
            *((True, f"args.{key}", why, ("name",)) for key in self.args if (why := driven_argument(self.name, key))),
        )
        return self


def _optimizer_tag(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "fismo" if name == "fismo" else "baseline"


def _named_by_key(entries: Any) -> Any:
    """Let an entry whose key is an optimizer's name do without `name`."""
    if not isinstance(entries, dict):
        return entries
    return {
        label: {"name": label, **entry} if isinstance(entry, dict) and isinstance(label, str) else entry
        for label, entry in entries.items()
    }


OptimizerConfig = Annotated[
    Annotated[FismoConfig, Tag("fismo")] | Annotated[BaselineConfig, Tag("baseline")], Discriminator(_optimizer_tag)
]

BaselineConfigs = Annotated[dict[str, OptimizerConfig], BeforeValidator(_named_by_key)]
"""Optimizer sections under labels of the user's; a label that is an optimizer's name says which."""
