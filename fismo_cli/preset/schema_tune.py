"""The tune section of a preset: what `fismo tune` searches, and by which metric.

`search_checks.py` looks at the keys of the space.
"""

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from fismo_cli.preset.schema_base import Config, refuse

__all__ = ["METRICS", "Scalar", "SearchedConfig", "TuneConfig"]

METRICS: dict[str, tuple[str, ...]] = {
    "image-classification": ("loss", "top1", "top5"),
    "language-modelling": ("loss", "perplexity", "bits_per_byte"),
}
"""Metrics of a task; the top-k accuracies are better when higher, all others when lower."""

Scalar = bool | int | float | str | None


class SearchedConfig(Config):
    """Where one setting is searched: between `low` and `high`, or among `choices`."""

    low: int | float | None = Field(default=None, description="The lowest value.")
    high: int | float | None = Field(default=None, description="The highest value.")
    log: bool = Field(
        default=False, description="Search on a logarithmic scale; for momentum and betas, that of 1 less the value."
    )
    choices: Annotated[tuple[Scalar, ...], Strict(False)] | None = Field(
        default=None, description="The values to choose from."
    )

    @model_validator(mode="after")
    def _check(self) -> "SearchedConfig":
        bounds = (self.low, self.high)
        given = self.choices is not None
        refuse(
            (given and bounds != (None, None), "choices", "give either choices or low and high, not both", ("low",)),
            (given and not self.choices, "choices", "must hold at least one value", ()),
            (given and _twice(self.choices or ()), "choices", "must hold no value twice", ()),
            (not given and self.low is None, "low", "missing; must be a number (or give choices)", ("high",)),
            (not given and self.low is not None and self.high is None, "high", "missing; must be a number", ("low",)),
        )
        if self.low is not None and self.high is not None:
            refuse((self.low >= self.high, "low", f"must be below high ({self.high:g}), got {self.low:g}", ("high",)))
        return self


def _twice(values: tuple[Scalar, ...]) -> bool:
    return len({(isinstance(value, bool), value) for value in values}) < len(values)


class TuneConfig(Config):
    """What `fismo tune` searches."""

    metric: Literal["loss", "top1", "top5", "perplexity", "bits_per_byte"] = Field(
        default="loss", description="The validation metric that is made best."
    )
    range: Annotated[float, Field(gt=1.0)] = Field(
        default=10.0,
        json_schema_extra={"expected": "a number above 1"},
        description="Learning rates and damping are searched between their usual value divided and multiplied by this; "
        "by fismo compare, too.",
    )
    space: dict[str, SearchedConfig | None] = Field(
        default={},
        description="Key of this preset -> `{low, high, log}` or `{choices}`; over the optimizer's own space. null "
        "takes a key out of it.",
    )
