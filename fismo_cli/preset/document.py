"""YAML text -> plain values and the line of every key; every problem found has a line.

Differs from PyYAML's own loading on purpose: scalars resolve the YAML 1.2 way (`1e-3` is a number, `on` and `yes` are
text), keys are always text, duplicate keys are refused, and only plain data is read (no tags that build objects).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

__all__ = ["Document", "DocumentError", "Path", "parse_document", "parse_scalar"]

Path = tuple[str | int, ...]
"""Keys and list positions from the top of a document, such as `("optimizer", "adamw", "betas", 0)`."""

_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"

# The core schema of YAML 1.2, section 10.3.2, in the order in which patterns are tried.
RESOLVERS: tuple[tuple[str, re.Pattern[str], Callable[[str], Any]], ...] = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), lambda text: None),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), lambda text: text.lower() == "true"),
    ("int", re.compile(r"^[-+]?[0-9]+$"), int),
    ("int", re.compile(r"^0o[0-7]+$"), lambda text: int(text[2:], 8)),
    ("int", re.compile(r"^0x[0-9a-fA-F]+$"), lambda text: int(text[2:], 16)),
    ("float", re.compile(rf"^{_FLOAT}$"), float),
    ("float", re.compile(r"^[-+]?(?:\.inf|\.Inf|\.INF)$"), lambda text: float(text.replace(".", "").lower())),
    ("float", re.compile(r"^(?:\.nan|\.NaN|\.NAN)$"), lambda text: float("nan")),
)

_MAX_VALUES = 100_000
"""Far more than any preset has; aliases of aliases can stand for billions."""

_CORE_TAGS = {"str", "null", "bool", "int", "float", "map", "seq"}
_PREFIX = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _ in RESOLVERS:
    # The key None makes PyYAML try the pattern whatever the first character is.
    _Loader.add_implicit_resolver(_PREFIX + _tag, _pattern, None)


class DocumentError(Exception):
    """Text that is no plain YAML: `(line, message)` of each problem; the line is None where there is none."""

    def __init__(self, problems: list[tuple[int | None, str]]) -> None:
        super().__init__("\n".join(message for _, message in problems))
        self.problems = problems


@dataclass
class Document:
    """The values of a YAML text, and on which line each key and list item stands (from 1)."""

    values: Any = None
    lines: dict[Path, int] = field(default_factory=dict)


def parse_document(text: str) -> Document:
    """Parse one YAML document.

    Raises:
        DocumentError: not YAML, more than one document, duplicate keys, tags, or references to an enclosing part.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError([(line, f"not YAML: the character {error.character!r} is not allowed")]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        parts = [part for part in (error.context, error.problem) if part]
        raise DocumentError([(mark.line + 1 if mark else None, f"not YAML: {', '.join(parts)}")]) from error
    except RecursionError as error:
        raise DocumentError([(None, "not a preset: nested too deeply")]) from error
    document = Document()
    problems: list[tuple[int | None, str]] = []
    if node is not None:
        document.values = _build(node, (), document.lines, problems, [])
    if problems:
        raise DocumentError(problems)
    return document


def parse_scalar(text: str) -> Any:
    """The value of an override: a YAML 1.2 scalar, or a list or mapping in flow style such as `[0.9, 0.99]`.

    Raises:
        DocumentError: it is not YAML.
    """
    return parse_document(text).values


def _build(
    node: yaml.Node,
    path: Path,
    lines: dict[Path, int],
    problems: list[tuple[int | None, str]],
    enclosing: list[yaml.Node],
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if len(lines) > _MAX_VALUES:
        raise DocumentError([(line, f"not a preset: more than {_MAX_VALUES:,} values, counting each alias in full")])
    tag = node.tag.removeprefix(_PREFIX)
    if tag not in _CORE_TAGS:
        problems.append((line, f"{_label(path)}the tag {node.tag.replace(_PREFIX, '!!')} is not supported"))
        return None
    if any(node is outer for outer in enclosing):
        problems.append((line, f"{_label(path)}an alias refers to a part that it is in"))
        return None
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, tag, path, problems)
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(item, (*path, index), lines, problems, [*enclosing, node]) for index, item in enumerate(node.value)
        ]
    return _mapping(node, path, lines, problems, enclosing)


def _mapping(
    node: yaml.Node,
    path: Path,
    lines: dict[Path, int],
    problems: list[tuple[int | None, str]],
    enclosing: list[yaml.Node],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append((line, f"{_label(path)}a key must be plain text"))
            continue
        key = key_node.value
        if key in values:
            problems.append((line, f"{_label((*path, key))}given twice; it already stands on line {first_lines[key]}"))
            continue
        first_lines[key] = line
        lines[(*path, key)] = line
        values[key] = _build(value_node, (*path, key), lines, problems, [*enclosing, node])
    return values


def _scalar(node: yaml.ScalarNode, tag: str, path: Path, problems: list[tuple[int | None, str]]) -> Any:
    if tag == "str":
        return node.value
    for name, pattern, convert in RESOLVERS:
        # An explicit !!float may stand before what reads as an integer.
        if (name == tag or (tag, name) == ("float", "int")) and pattern.match(node.value):
            try:
                value = convert(node.value)
            except ValueError:  # Python refuses to convert thousands of digits.
                break
            return float(value) if tag == "float" else value
    problems.append((node.start_mark.line + 1, f"{_label(path)}not a valid {tag}: {node.value[:40]}"))
    return None


def _label(path: Path) -> str:
    return f"{dotted(path)}: " if path else ""


def dotted(path: Path) -> str:
    """A path as people write it: `optimizer.adamw.betas[0]`; keys that hold dots or brackets stand in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.search(r"[.\[\]\s]", part) or not part:
            text += f'["{part}"]'
        else:
            text += f".{part}" if text else part
    return text
