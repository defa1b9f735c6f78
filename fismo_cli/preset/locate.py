"""Where presets are: a path, or the name of a shipped one. Reads no YAML."""

import re
from dataclasses import dataclass
from pathlib import Path

from fismo_cli.errors import PresetError
from fismo_cli.preset.suggestions import did_you_mean, near

__all__ = ["DEFAULT_PRESET", "PresetFile", "find_preset", "find_shipped", "shipped_presets"]

DEFAULT_PRESET = "digits-vit"

_PACKAGE = Path(__file__).resolve().parents[1]
_ORIGIN = re.compile(r"^# Resolved by fismo from the preset ([\w.-]+)")


@dataclass(frozen=True)
class PresetFile:
    """A preset file that was found and read: its name, the source as messages call it, and its text."""

    name: str
    source: str
    text: str


def shipped_presets() -> dict[str, Path]:
    """Names and files of the presets that come with fismo, from an installed package or a checkout."""
    installed = _PACKAGE / "shipped_presets"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "presets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_shipped(name: str) -> Path:
    """The file of a preset that comes with fismo.

    Raises:
        PresetError: there is none of this name.
    """
    shipped = shipped_presets()
    if name not in shipped:
        suggestion = did_you_mean(near(name, shipped, count=2))
        raise _error(f"{name}  no preset of this name comes with fismo.{suggestion}", shipped)
    return shipped[name]


def find_preset(source: str) -> PresetFile:
    """Find and read a preset; the name of a shipped preset goes before a file of that name.

    Raises:
        PresetError: there is no such preset, or the file cannot be read as text.
    """
    shipped = shipped_presets()
    path = shipped.get(source) or Path(source).expanduser()
    label = f"presets/{path.name}" if source in shipped else source
    if not source.strip():
        raise _error("the name of a preset is empty", shipped)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _not_found(source, shipped) from None
    except IsADirectoryError:
        inner = path / "preset.yaml"
        hint = f"; did you mean {inner}?" if inner.is_file() else ", not a preset file"
        raise PresetError([f"preset error: {source}  is a folder{hint}"]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PresetError([f"preset error: {source}  cannot be read: {reason}"]) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PresetError([f"preset error: {label}:{line}  not a text file in UTF-8"]) from error
    return PresetFile(_name(path, text), label, text)


def _name(path: Path, text: str) -> str:
    """The preset's name; a resolved preset, whose first line says so, keeps the name it was made from."""
    origin = _ORIGIN.match(text)
    if origin:
        return origin.group(1)
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "preset"


def _not_found(source: str, shipped: dict[str, Path]) -> PresetError:
    if "=" in source:
        hint = "; if it is to be an override, it goes after the preset"
        return PresetError([f"preset error: {source}  no such file{hint}"])
    stem = Path(source).stem if source.endswith((".yaml", ".yml")) else source
    if "/" in source or "\\" in source:
        return PresetError([f"preset error: {source}  no such file"])
    like = near(stem, shipped, count=2)
    return _error(f"{source}  no such file, and no preset of this name comes with fismo.{did_you_mean(like)}", shipped)


def _error(message: str, shipped: dict[str, Path]) -> PresetError:
    return PresetError([f"preset error: {message}\nPresets that come with fismo: {', '.join(shipped)}"])
