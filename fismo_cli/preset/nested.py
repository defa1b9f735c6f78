"""Nested dictionaries by dotted names, such as `metric.damping`. Nothing given is changed."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["MISSING", "leaf", "leaves", "merged", "put", "without"]

MISSING = object()
"""What `leaf` gives for a name that is not there, if asked to."""


def leaf(values: Any, name: str, default: Any = None) -> Any:
    """The value of a name."""
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All names and values that are no sections themselves."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, section by section; what `over` has wins."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = merged(base[key], value) if both else value
    return result


def put(values: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The values with one more."""
    head, _, rest = name.partition(".")
    inner = values.get(head)
    return {**values, head: put(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value}


def without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values less one, and less the sections that this leaves empty."""
    head, _, rest = name.partition(".")
    inner = values.get(head)
    if rest and isinstance(inner, Mapping) and (less := without(inner, rest)):
        return {**values, head: less}
    return {key: item for key, item in values.items() if key != head or (rest and not isinstance(inner, Mapping))}
