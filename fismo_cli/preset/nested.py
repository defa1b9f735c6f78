"""Nested dictionaries by dotted names, such as `metric.damping`. Nothing given is changed."""

from collections.abc import Mapping
from typing import Any

__all__ = ["MISSING", "flat", "leaf", "put", "without"]

MISSING = object()
"""What `leaf` gives for a name that is not there, if asked to."""


def leaf(values: Any, name: str, default: Any = None) -> Any:
    """The value of a name."""
    for part in name.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All values that are not sections, by name; of a section without keys, that it is empty."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return found


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
