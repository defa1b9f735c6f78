"""Names that keys of an optimizer section once had: they are accepted, with a word about the new ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fismo_cli.preset.document import Document, dotted
from fismo_cli.preset.nested import MISSING, leaf, put
from fismo_cli.preset.overrides import Override

__all__ = ["RENAMED", "modern_document", "modern_overrides"]

RENAMED = {
    "trust_radius": "lr",
    "momentum_space": "metric.momentum_space",
    "power": "metric.power",
    "damping": "metric.damping",
    "damping_scale": "metric.damping_scale",
    "fisher_decay": "metric.decay",
    "statistics": "metric.statistics",
    "refresh_interval": "metric.refresh_every",
    "roots": "metric.roots",
    "max_factor_dim": "metric.max_dim",
    "max_factor_ratio": "metric.max_ratio",
    "polar_steps": "polar.steps",
    "shape_scale": "scale",
    "grafting": "graft",
    "cautious_weight_decay": "cautious",
}
"""Keys of FISMO's section, and what they are called now."""


def modern_document(document: Document) -> tuple[Document, list[str]]:
    """A preset's document with the names of now, each on the line of the old one, and a note if there were others."""
    values, lines, found = dict(document.values), dict(document.lines), []
    for path, section in _fismo_sections(values):
        if isinstance(section.get("polar"), str):  # a word alone is the method
            section["polar"] = {"method": section["polar"]}
            lines[(*path, "polar", "method")] = lines.get((*path, "polar"), 1)
        for old in sorted(RENAMED.keys() & section.keys()):
            new = RENAMED[old].split(".")
            if leaf(section, RENAMED[old], MISSING) is not MISSING:
                continue  # both are there: then the old one is an unknown key
            value = section.pop(old)
            section.update(put(section, RENAMED[old], value))
            for length in range(1, len(new) + 1):
                lines.setdefault((*path, *new[:length]), lines.get((*path, old), 1))
            found.append((dotted((*path, old)), dotted((*path, *new))))
        if path[0] == "compare":
            values["compare"] = {**values["compare"], path[1]: section}
        else:
            values["optimizer"] = section
    space = leaf(values, "tune.space")
    if isinstance(space, Mapping) and leaf(values, "optimizer.name", "fismo") == "fismo":
        values["tune"] = {**values["tune"], "space": {_modern_name(name): where for name, where in space.items()}}
        for place, line in document.lines.items():
            if place[:2] == ("tune", "space") and len(place) > 2:
                lines[(*place[:2], _modern_name(str(place[2])), *place[3:])] = line
        found += [(f"tune.space: {name}", _modern_name(name)) for name in space if _modern_name(name) != name]
    return Document(values, lines), _notes(found)


def modern_overrides(overrides: Sequence[Override], values: Any) -> tuple[list[Override], list[str]]:
    """Overrides of the keys of FISMO's section with the names of now, and a note if there were others."""
    chosen = [o.value for o in overrides if o.path == ("optimizer", "name")]
    if (chosen[-1] if chosen else leaf(values, "optimizer.name", "fismo")) != "fismo":
        return list(overrides), []
    modern, found = [], []
    for override in overrides:
        path = override.path
        if path[0] == "optimizer" and len(path) == 2 and path[1] in RENAMED:
            path = ("optimizer", *RENAMED[path[1]].split("."))
        elif path == ("optimizer", "polar") and isinstance(override.value, str):
            modern.append(replace(override, path=(*path, "method")))
            continue
        elif path[:2] == ("tune", "space") and len(path) > 2:
            path = ("tune", "space", _modern_name(path[2]), *path[3:])
        if path != override.path:
            found.append((".".join(override.path), ".".join(path)))
        modern.append(replace(override, path=path))
    return modern, _notes(found)


def _notes(found: Sequence[tuple[str, str]]) -> list[str]:
    """One sentence for all of them."""
    renamed = ", ".join(f"{old} is {new}" for old, new in found)
    return [f"keys have other names now: {renamed}"] if found else []


def _fismo_sections(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Copies of the sections of FISMO, and where they are."""
    section, compare = values.get("optimizer"), values.get("compare")
    if isinstance(section, dict) and section.get("name") == "fismo":
        yield ("optimizer",), dict(section)
    for label, entry in compare.items() if isinstance(compare, dict) else ():
        if isinstance(entry, dict) and entry.get("name", label) == "fismo":
            yield ("compare", label), dict(entry)


def _modern_name(name: str) -> str:
    section, _, key = name.partition(".")
    if name == "optimizer.polar":
        return "optimizer.polar.method"
    return f"optimizer.{RENAMED[key]}" if section == "optimizer" and key in RENAMED else name
