"""What mkdocs does besides for this site (hooks of mkdocs.yml).

What the pages link to outside docs/ (benchmarks, their figures, CONTRIBUTING.md) comes along into the site: one link
serves readers of the repository and of the site, and `mkdocs build --strict` finds those that lead nowhere. And
`<!-- fields of NAME -->` becomes a table of the fields of an option class of `fismo_core`.
"""

import dataclasses
import posixpath
import re
from pathlib import Path
from typing import Any, get_type_hints

from mkdocs.structure.files import File, Files

import fismo_core.config

OUTSIDE = "repository"
"""Folder of the site for them."""

_FIELDS = re.compile(r"<!-- fields of (\w+) -->")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to outside docs/, and those that these link to."""
    root = Path(config.docs_dir).parent
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    while waiting:
        page = waiting.pop()
        for target in _LINK.findall(page.content_string):
            uri = _in_site(_leads_to(page.src_uri, target))
            outside = root / posixpath.relpath(uri, OUTSIDE)
            if uri.startswith(OUTSIDE) and outside.is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(outside)))
                if uri.endswith(".md"):
                    waiting.append(files.src_uris[uri])
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they must be in the site."""
    here = page.file.src_uri

    def moved(found: re.Match[str]) -> str:
        return posixpath.relpath(_in_site(_leads_to(here, found[1])), posixpath.dirname(here) or ".")

    return _FIELDS.sub(lambda found: _fields(found[1]), _LINK.sub(moved, markdown))


def _fields(name: str) -> str:
    """A table of what an option class has."""
    options = getattr(fismo_core.config, name)
    hints = get_type_hints(options)
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(options):
        hint = hints[field.name]
        kind = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
        kind = re.sub(r"Optional\[(.*)\]$", r"\1 or None", kind.replace("typing.", "").replace(" | ", " or "))
        nested = dataclasses.is_dataclass(field.default)
        default = f"{type(field.default).__name__}()" if nested else repr(field.default)
        lines.append(f"| `{field.name}` | `{kind}` | `{default}` | {field.metadata['description']} |")
    return "\n".join(lines)


def _leads_to(page: str, target: str) -> str:
    """Where a page's link leads, from the repository's root."""
    outside = page.startswith(f"{OUTSIDE}/")
    here = page.removeprefix(f"{OUTSIDE}/") if outside else f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), target))


def _in_site(path: str) -> str:
    """Where the site has a file of the repository."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"
