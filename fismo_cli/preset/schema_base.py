"""What all parts of the preset schema share: the strict base model, number ranges, and problems across keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

__all__ = [
    "Betas",
    "Config",
    "Fraction",
    "KeyedError",
    "NonNegative",
    "Positive",
    "PositiveInt",
    "Seed",
    "refuse",
]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
PositiveInt = Annotated[int, Field(ge=1)]
# Strict about their items, but YAML has lists only, so the tuples themselves accept one.
Betas = Annotated[tuple[Fraction, Fraction], Strict(False)]
MAX_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]  # what numpy takes

Problem = tuple[str, str, tuple[str, ...]]
"""The key that a cross-field problem belongs to, what is wrong, and the other keys that were looked at."""


class KeyedError(ValueError):
    """Cross-field problems, each of which belongs to one key of the part being validated."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{key}: {message}" for key, message, _ in problems))
        self.problems = problems


def refuse(*checks: tuple[bool, str, str, tuple[str, ...]]) -> None:
    """Raise one KeyedError with every `(wrong, key, message, other keys looked at)` that is wrong."""
    problems = [(key, message, others) for wrong, key, message, others in checks if wrong]
    if problems:
        raise KeyedError(problems)


class Config(BaseModel):
    """Base of every part of a preset: frozen, no unknown keys, no silent conversion of strings to numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
    )
