"""Dataclasses of options whose instances are within their bounds.

A field's metadata has its description and its bounds, in the words of pydantic: `ge`, `gt`, `le`, `lt`.
"""

import dataclasses
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Checked", "OptionError", "leaves", "option", "to_plain"]


class OptionError(ValueError):
    """Options that are out of range, or do not go together.

    Attributes:
        problems: of each the field, and what is wrong with it.
    """

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name} {message}" for name, message in problems))
        self.problems = problems


def option(default: Any, description: str, **metadata: Any) -> Any:
    """A field with its description and bounds."""
    return field(default=default, metadata={"description": description, **metadata})


class Checked:
    """A dataclass whose instances are within their bounds; raises an `OptionError` that names all that are not."""

    def __post_init__(self) -> None:
        problems = list(_out_of_bounds(self)) or list(self._conflicts())
        if problems:
            raise OptionError(problems)

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        """Fields that do not go together, each within its own bounds."""
        yield from ()


def to_plain(options: Any) -> Any:
    """Options as a dictionary of plain values, such as a checkpoint or a preset holds; anything else as it is."""
    is_options = dataclasses.is_dataclass(options) and not isinstance(options, type)
    return dataclasses.asdict(options) if is_options else options


def leaves(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of all options that have no options of their own, such as `metric.damping`."""
    for entry in fields(options):
        value = getattr(options, entry.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", value


def _out_of_bounds(options: Any) -> Iterator[tuple[str, str]]:
    hints = _hints(options.__class__)
    for entry in fields(options):
        value, wanted = getattr(options, entry.name), hints[entry.name]
        if not _fits(value, wanted, entry.metadata):
            yield entry.name, f"must be {_expected(wanted, entry.metadata)}, got {value!r}"


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, wanted: Any, bounds: Mapping[str, Any]) -> bool:
    """Whether a value has the type that an annotation says, and is within bounds where it is a number."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return value in parts
    if origin in (UnionType, Union):
        return any(_fits(value, part, bounds) for part in parts)
    if origin is tuple:
        return (
            isinstance(value, tuple | list)
            and len(value) == len(parts)
            and all(_fits(item, part, {}) for item, part in zip(value, parts, strict=True))
        )
    if wanted not in (int, float):
        return isinstance(value, wanted)
    kinds = (int, float) if wanted is float else (int,)
    return (
        isinstance(value, kinds)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and all(compare(value, bounds[name]) for name, (compare, _) in _BOUNDS.items() if name in bounds)
    )


_BOUNDS = {
    "gt": (operator.gt, "above"),
    "ge": (operator.ge, "of at least"),
    "lt": (operator.lt, "below"),
    "le": (operator.le, "of at most"),
}


def _expected(wanted: Any, bounds: Mapping[str, Any]) -> str:
    """What `_fits` accepts, in words."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin in (UnionType, Union):
        return " or ".join(_expected(part, bounds) for part in parts)
    if origin is tuple:
        return f"{len(parts)} numbers"
    if wanted in (int, float):
        limits = [f"{words} {bounds[name]:g}" for name, (_, words) in _BOUNDS.items() if name in bounds]
        return " ".join(["an integer" if wanted is int else "a number", " and ".join(limits)]).rstrip()
    return {bool: "True or False", NoneType: "None"}.get(wanted, f"a {wanted.__name__}")
