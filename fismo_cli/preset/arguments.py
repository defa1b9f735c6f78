"""The first arguments of a command: a preset, which may be left out, and overrides. Never imports torch."""

from collections.abc import Sequence
from pathlib import Path

from fismo_cli.errors import PresetError
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.preset.locate import DEFAULT_PRESET

__all__ = ["load_arguments"]


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


def _is_override(argument: str) -> bool:
    if "=" not in argument:
        return False
    try:
        path = Path(argument).expanduser()
        return not path.is_file() and not (path / "preset.yaml").is_file()  # a run's folder: its preset is pointed at
    except (OSError, RuntimeError, ValueError):  # too long for a path, an unknown home, a null character
        return True
