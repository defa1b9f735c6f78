"""The first arguments of a command: presets, which may be left out, and overrides."""

from collections.abc import Sequence
from pathlib import Path

from fismo_cli.errors import PresetError
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.preset.locate import DEFAULT_PRESET

__all__ = ["load_all", "load_arguments"]


def load_arguments(first: str | None, rest: Sequence[str]) -> tuple[LoadedPreset, bool]:
    """The preset of a command that has a default one, and whether that was taken.

    Args:
        first: a path, the name of a shipped preset, or an override already: with an equals sign, and no such file.
        rest: overrides.

    Raises:
        PresetError: with every problem at once.
    """
    if first is None or not _is_override(first):
        return load_preset(DEFAULT_PRESET if first is None else first, rest), first is None
    try:
        return load_preset(DEFAULT_PRESET, [first, *rest]), True
    except PresetError as error:
        if "/" not in first and not first.endswith((".yaml", ".yml")):
            raise
        either = "; nor is there a file of this name, if it was to be the preset"
        about = f"command line: {first}  "
        raise PresetError([text + either if about in text else text for text in error.problems]) from error


def load_all(arguments: Sequence[str]) -> tuple[list[LoadedPreset], bool]:
    """The presets of a command that takes several, and whether the default one was taken.

    Args:
        arguments: presets, then overrides, which are for all of them.

    Raises:
        PresetError: with every problem of every preset at once.
    """
    count = next((index for index, text in enumerate(arguments) if _is_override(text)), len(arguments))
    if count < 2:
        loaded, by_default = load_arguments(arguments[0] if arguments else None, arguments[1:])
        return [loaded], by_default
    found: list[LoadedPreset] = []
    problems: list[str] = []
    for name in arguments[:count]:
        try:
            found.append(load_preset(name, arguments[count:]))
        except PresetError as error:
            problems += error.problems
    names = [loaded.name for loaded in found]
    problems += [f"preset error: {name}: given twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise PresetError(list(dict.fromkeys(problems)))
    return found, False


def _is_override(argument: str) -> bool:
    if "=" not in argument:
        return False
    try:
        path = Path(argument).expanduser()
        return not path.is_file() and not (path / "preset.yaml").is_file()  # a run's folder: its preset is pointed at
    except (OSError, RuntimeError, ValueError):  # too long for a path, an unknown home, a null character
        return True
