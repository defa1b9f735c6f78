"""What each key of a preset may hold, in words people use. One source for error messages and for docs/presets.md.

Read off the JSON schema that pydantic makes of `schema.py`, so that neither can say anything else than what is checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from fismo_cli.preset.schema import preset_adapter

__all__ = ["TASKS", "Key", "OptimizerKind", "reference", "shown"]

OptimizerKind = Literal["fismo", "baseline"]

TASKS = {"image-classification": "ImagePreset", "language-modelling": "TextPreset"}
_OPTIMIZERS = {"fismo": "FismoConfig", "baseline": "BaselineConfig"}


@dataclass(frozen=True)
class Key:
    """One key of a preset.

    Attributes:
        path: where it stands.
        kind: section: has keys of its own that are known; mapping: has keys that the user names; value: all else.
        expected: what it must be, fit for "must be ...".
        choices: the words to choose from, where there are such.
        items: what each item of a list must be, where it is a list.
        number: integer or number, where it holds one (or null).
        default: the default; None where it is required.
        required: whether it has to be given.
        description: what it means.
    """

    path: tuple[str, ...]
    kind: Literal["section", "mapping", "value"]
    expected: str
    choices: tuple[str, ...]
    items: str
    number: Literal["integer", "number"] | None
    default: Any
    required: bool
    description: str


@cache
def reference(task: str, optimizer: OptimizerKind) -> dict[tuple[str, ...], Key]:
    """All keys of a preset of one task with one kind of optimizer, in the schema's order."""
    schema = preset_adapter.json_schema()
    return {key.path: key for key in _walk(schema["$defs"], schema["$defs"][TASKS[task]], (), _OPTIMIZERS[optimizer])}


def shown(value: Any) -> str:
    """A value as an error message quotes it."""
    if isinstance(value, dict):
        return "a section (keys and values)" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]" if len(value) <= 4 else f"a list of {len(value)}"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _walk(
    definitions: dict[str, Any], section: dict[str, Any], prefix: tuple[str, ...], optimizer: str
) -> Iterator[Key]:
    for name, node in section["properties"].items():
        path = (*prefix, name)
        inner, nullable = _section(definitions, node, optimizer), "anyOf" in node
        is_mapping = node.get("type") == "object"
        yield Key(
            path=path,
            kind="section" if inner and not nullable else "mapping" if is_mapping else "value",
            expected=_describe(node),
            choices=tuple(_choices(node)) or tuple(_choices(node.get("propertyNames", {}))),
            items=_items(node),
            number=_number(node),
            default=node.get("default"),
            required=name in section.get("required", ()),
            description=node.get("description") or (inner or {}).get("description", ""),
        )
        if inner:
            yield from _walk(definitions, inner, path, optimizer)


def _section(definitions: dict[str, Any], node: dict[str, Any], optimizer: str) -> dict[str, Any] | None:
    references = (
        [node["$ref"]]
        if "$ref" in node
        else [option.get("$ref") for option in node.get("oneOf", node.get("anyOf", ()))]
    )
    names = [reference.rsplit("/", 1)[1] for reference in references if reference]
    if not names:
        return None
    found: dict[str, Any] = definitions[names[0] if len(names) == 1 else optimizer]
    return found


def _choices(node: dict[str, Any]) -> list[str]:
    values = [node["const"]] if "const" in node else node.get("enum", [])
    return [str(value) for value in values]


def _items(node: dict[str, Any]) -> str:
    for option in (node, *node.get("anyOf", ())):
        if option.get("type") == "array":
            return _describe(option["prefixItems"][0] if "prefixItems" in option else option["items"])
        if option.get("type") == "object" and isinstance(option.get("additionalProperties"), dict):
            return _describe(option["additionalProperties"])
    return ""


def _number(node: dict[str, Any]) -> Literal["integer", "number"] | None:
    types = {option.get("type") for option in (node, *node.get("anyOf", ()))}
    return "number" if "number" in types else "integer" if "integer" in types else None


def _describe(node: dict[str, Any]) -> str:
    if "expected" in node:
        return str(node["expected"])
    if "anyOf" in node:
        options = sorted(node["anyOf"], key=lambda option: option.get("type") == "null")
        return " or ".join(_describe(option) for option in options)
    if "const" in node or "enum" in node:
        choices = _choices(node)
        if node.get("type") == "integer" or all(isinstance(value, int) for value in node.get("enum", [""])):
            return " or ".join(choices)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    kind = node.get("type")
    if kind in ("integer", "number"):
        return _describe_number(node, "integer" if kind == "integer" else "number")
    if kind == "array":
        count = node.get("minItems")
        plural = {"a": "numbers", "an": "integers", "text": "texts"}.get(_items(node).split()[0], "values")
        return f"a list of {count} numbers" if "prefixItems" in node else f"a list of {plural}"
    return {"boolean": "true or false", "string": "text", "null": "null"}.get(str(kind), "a section (keys and values)")


def _describe_number(node: dict[str, Any], noun: str) -> str:
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    article = "an" if noun == "integer" else "a"
    if high is None and below is None:
        if above == 0 or (noun == "integer" and low == 1):
            return f"a positive {noun}"
        return f"{article} {noun}" if low is None else f"{article} {noun} of at least {low:g}"
    start = f"from {low:g}" if low is not None else f"above {above:g} up"
    end = f"to {high:.10g}" if high is not None else f"to below {below:.10g}"
    return f"{article} {noun} {start} {end}"
