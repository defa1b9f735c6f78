"""The optimizer section of a preset: FISMO, or any other optimizer by its name."""

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, create_model, model_validator

from fismo_cli.preset.nested import MISSING, leaf, put
from fismo_cli.preset.optimizer_names import driven_argument, is_optimizer_name, takes_matrices, why_refused
from fismo_cli.preset.schema_base import Betas, Config, Fraction, NonNegative, Positive, PositiveInt, refuse
from fismo_core.checked import to_plain
from fismo_core.config import FORMS, AdamW, ComputeDtype, Economy, FisherMetric, FismoOptions, Polar, Scale

__all__ = ["BaselineConfig", "BaselineConfigs", "FismoConfig", "OptimizerConfig", "fismo_options", "plain"]


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


LayerDecay = Annotated[
    Annotated[float, Field(gt=0.0, le=1.0)] | None,
    Field(
        description="Each layer's learning rate is so many times that of the layer behind it (0.65 to 0.9 in "
        "fine-tuning); the head has the full one. null: all layers have."
    ),
]


def _polar_section(polar: Any) -> Any:
    """A word alone is the method."""
    return {"method": polar} if isinstance(polar, str) else polar


Rules = Annotated[dict[str, Literal["matrix", "adamw"]], AfterValidator(_regular_expressions)]


def _section_of(kind: Any) -> Any:
    """A section of a preset with the fields of one of the library's dataclasses: their types, bounds and checks."""
    hints = get_type_hints(kind)

    def check(section: Any) -> Any:
        kind(**section.model_dump())
        return section

    entries: Any = {f.name: (hints[f.name], Field(default=f.default, **f.metadata)) for f in fields(kind)}
    validators: Any = {"check": model_validator(mode="after")(check)}
    return create_model(kind.__name__, __base__=Config, __doc__=kind.__doc__, __validators__=validators, **entries)


if TYPE_CHECKING:
    MetricSection: TypeAlias = FisherMetric
    PolarSection: TypeAlias = Polar
    AdamWSection: TypeAlias = AdamW
else:
    _as_keys = BeforeValidator(to_plain)
    MetricSection = Annotated[_section_of(FisherMetric), _as_keys]
    PolarSection = Annotated[_section_of(Polar), BeforeValidator(_polar_section), _as_keys]
    AdamWSection = Annotated[_section_of(AdamW), _as_keys]


def _option(name: str) -> Any:
    """Default, description and bounds of a field of `FismoOptions`."""
    field = FismoOptions.__dataclass_fields__[name]
    return Field(default=to_plain(field.default), **field.metadata)


class FismoConfig(Config):
    """The FISMO optimizer; keys are arguments of `fismo_core.FISMO`."""

    name: Literal["fismo"] = Field(description="The optimizer.")
    form: Literal["default", "dense", "paper"] = Field(
        default="default",
        description="paper: the published algorithm to the letter; dense: the default without its economies. Each "
        "fixes the keys that define it.",
    )
    lr: Positive = _option("lr")
    momentum: float = _option("momentum")
    nesterov: bool = _option("nesterov")
    weight_decay: float = _option("weight_decay")
    weight_decay_on: WeightDecayOn = "matrices"
    cautious: bool = _option("cautious")
    metric: MetricSection = _option("metric")
    economy: Economy = _option("economy")
    polar: PolarSection = _option("polar")
    scale: Scale = _option("scale")
    graft: bool = _option("graft")
    compute_dtype: ComputeDtype = _option("compute_dtype")
    adapt_radius: PositiveInt | None = Field(
        default=None,
        description="Adapt the trust radius by what steps achieve: at most so many steps apart, a step's batch is "
        "evaluated again after it. null: fixed.",
    )
    layer_decay: LayerDecay = None
    variance_reduction: VarianceReduction = None
    mars_gamma: MarsGamma = 0.025
    adamw: AdamWSection = _option("adamw")
    rules: Rules = Field(
        default={}, description="Regular expression on the parameter's name -> who treats it; the first match wins."
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_form(cls, values: Any) -> Any:
        name = values.get("form") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in FORMS:  # a list of words is no key to look up
            return values
        form, given = FORMS[name], dict(values)
        if "polar" in given:
            given["polar"] = _polar_section(given["polar"])
        changes = form.changes()
        message = f"must be {{}}, as optimizer.form: {name} fixes it"
        wrong = [key for key in form.fixed if leaf(given, key, MISSING) not in (MISSING, changes[key])]
        refuse(*((True, key, message.format(_yaml(changes[key])), ("form",)) for key in wrong))
        for key, value in changes.items():
            if leaf(given, key, MISSING) is MISSING:
                given = put(given, key, value)
        return given


def fismo_options(config: FismoConfig) -> FismoOptions:
    """The options of the library that a section asks for."""
    values: dict[str, Any] = {entry.name: getattr(config, entry.name) for entry in fields(FismoOptions)}
    for name, kind in {"metric": FisherMetric, "polar": Polar, "adamw": AdamW}.items():
        values[name] = kind(**plain(values[name]))
    return FismoOptions(**values)


def plain(section: Any) -> dict[str, Any]:
    """The keys and values of a section."""
    return dict(section.model_dump())


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _known_optimizer(name: str) -> str:
    if not is_optimizer_name(name):
        raise ValueError(why_refused(name) or "unknown optimizer")
    return name


class BaselineConfig(Config):
    """Any other: adam, adamw, sgd, muon (torch), soap, shampoo, lion, ... (pytorch-optimizer), timm/NAME, own/NAME."""

    name: Annotated[str, AfterValidator(_known_optimizer)] = Field(
        description="The optimizer.", json_schema_extra={"expected": "the name of an optimizer"}
    )
    lr: Positive | None = Field(default=None, description="Learning rate; null: this tool's default for the optimizer.")
    weight_decay: NonNegative = Field(default=0.0, description="Weight decay, as the optimizer defines it.")
    weight_decay_on: WeightDecayOn = "matrices"
    momentum: Fraction | None = Field(default=None, description="Momentum, where the optimizer has it.")
    betas: Betas | None = Field(default=None, description="Decay rates, where the optimizer has two.")
    args: dict[str, Any] = Field(default={}, description="Any other argument of the optimizer's constructor.")
    layer_decay: LayerDecay = None
    variance_reduction: VarianceReduction = None
    mars_gamma: MarsGamma = 0.025
    adamw: AdamWSection = Field(
        default=to_plain(AdamW()), description="muon, soap, shampoo, ...: for the parameters that they do not treat."
    )
    rules: Rules = Field(
        default={}, description="muon, soap, shampoo, ...: regular expression on a name -> who treats it."
    )

    @model_validator(mode="after")
    def _check(self) -> "BaselineConfig":
        message = f"{self.name} treats all parameters alike; rules are for matrix optimizers"
        refuse(
            (bool(self.rules) and not takes_matrices(self.name), "rules", message, ("name",)),
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
