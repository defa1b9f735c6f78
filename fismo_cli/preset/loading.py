"""A preset's source and overrides -> a validated, frozen `Preset`, and back to YAML.

This file ties the steps together: find the file, parse it with line numbers, lay the overrides over it, validate, and
put every problem on its line.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

from fismo_cli.errors import PresetError
from fismo_cli.files import encodable
from fismo_cli.own_optimizers import own_origin
from fismo_cli.preset.document import RESOLVERS, Document, DocumentError, Path, dotted, parse_document
from fismo_cli.preset.locate import PresetFile, find_preset, shipped_presets
from fismo_cli.preset.overrides import Layered, apply_overrides, parse_overrides
from fismo_cli.preset.renamed import modern_document, modern_overrides
from fismo_cli.preset.schema import Preset
from fismo_cli.preset.validation import validate

__all__ = ["LoadedPreset", "identity", "load_preset", "resolved_yaml", "shipped_presets"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class LoadedPreset:
    """A validated preset and where it came from.

    Attributes:
        preset: the preset.
        name: the file's stem, fit for the name of a directory; a resolved preset keeps the name it was made from.
        source: the file, as messages call it.
        notes: keys that are called otherwise now, and what an override made meaningless in the file and was left out;
            one sentence each, for people.
        lines: the line of each key in the file.
        origins: keys that overrides set, and how these were written.
    """

    preset: Preset
    name: str
    source: str
    notes: tuple[str, ...] = ()
    lines: Mapping[Path, int] = field(default_factory=dict, repr=False, compare=False)
    origins: Mapping[Path, str] = field(default_factory=dict, repr=False, compare=False)

    def problem(self, path: Path, message: str) -> str:
        """A full line about one key, as `load_preset` words its own: `preset error: file:line  key: message`."""
        return _located(self.source, self.lines, self.origins, path, message)


def load_preset(source: str, overrides: Sequence[str] = ()) -> LoadedPreset:
    """Load a preset and lay `key=value` overrides over it.

    Args:
        source: a path, or the name of a preset that comes with fismo.
        overrides: such as `optimizer.metric.damping=0.03`; they win over the file, the last one over those before.

    Raises:
        PresetError: with every problem at once, each on its line of the file or with its override.
    """
    file = find_preset(source)
    document, notes = modern_document(_parse(file))
    parsed, malformed = parse_overrides(overrides)
    parsed, more_notes = modern_overrides(parsed, document.values)
    layered = apply_overrides(document.values, parsed, file.source)
    preset, findings = validate(layered.values)
    problems = [
        *(
            _one_line(f"preset error: command line: {text}  {message}")
            for text, message in (*malformed, *layered.problems)
        ),
        *(
            _located(file.source, document.lines, layered.origins, finding.path, finding.message)
            for finding in sorted(findings, key=lambda finding: _order(document, layered, finding.path))
        ),
    ]
    if preset is None or problems:
        raise PresetError(problems)
    return LoadedPreset(
        preset=preset,
        name=file.name,
        source=file.source,
        notes=(*notes, *more_notes, *layered.notes),
        lines=document.lines,
        origins=layered.origins,
    )


def resolved_yaml(loaded: LoadedPreset) -> str:
    """The full preset with all defaults, as YAML that `load_preset` reads back to an equal preset and the same name."""
    values = _plain(loaded.preset.model_dump())
    first = {key: values[key] for key in ("task", "model", "data")}  # The order in which presets are written.
    body = yaml.dump({**first, **values}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)
    origin = f"{loaded.name} ({encodable(loaded.source)})"
    return f"# Resolved by fismo from the preset {origin}, with all defaults and overrides.\n{body}"


def identity(preset: Preset) -> str:
    """A hash of the resolved preset: equal for two presets exactly if all their values are equal.

    And, where the optimizer is the user's own, its file or its package's version.
    """
    canonical = json.dumps(_plain(preset.model_dump()), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    origin = own_origin(preset.optimizer.name)
    canonical += "" if origin is None else json.dumps({**origin, "file": None}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 or of YAML 1.2 would take for something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _ in RESOLVERS:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)


def _parse(file: PresetFile) -> Document:
    try:
        document = parse_document(file.text)
    except DocumentError as error:
        raise PresetError(
            [f"preset error: {file.source}{f':{line}' if line else ''}  {message}" for line, message in error.problems]
        ) from error
    if document.values is None:
        raise PresetError([f"preset error: {file.source}  is empty; a preset has at least task, model, data, ..."])
    if not isinstance(document.values, dict):
        kind = "a list" if isinstance(document.values, list) else "plain text"
        raise PresetError([f"preset error: {file.source}:1  must be keys and values, not {kind}"])
    return document


def _located(source: str, lines: Mapping[Path, int], origins: Mapping[Path, str], path: Path, message: str) -> str:
    override = _nearest(origins, path)
    if override is not None:
        return _one_line(f"preset error: command line: {override}  {dotted(path)}: {message}")
    line = _nearest(lines, path)
    return _one_line(f"preset error: {source}{f':{line}' if line else ''}  {dotted(path)}: {message}")


def _one_line(text: str) -> str:
    """Line breaks and other control characters of quoted text as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _order(document: Document, layered: Layered, path: Path) -> tuple[bool, int]:
    """The file's problems in the order of its lines, then those of overrides."""
    return _nearest(layered.origins, path) is not None, _nearest(document.lines, path) or 0


def _nearest(places: Mapping[Path, Value], path: Path) -> Value | None:
    """What is known of a path or of the nearest part around it; a missing key thus has its section's line."""
    for length in range(len(path), -1, -1):
        if path[:length] in places:
            return places[path[:length]]
    return None


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
