"""Whether the local files that a preset names are there. Looks, but opens nothing and reaches no network."""

from glob import glob
from pathlib import Path

from fismo_cli.errors import PresetError
from fismo_cli.preset.loading import LoadedPreset
from fismo_cli.preset.schema import ImagePreset, Preset

__all__ = ["check_files", "missing_files"]

Problem = tuple[tuple[str, ...], str]


def check_files(loaded: LoadedPreset) -> None:
    """Make sure that all are there.

    Raises:
        PresetError: with every one that is not.
    """
    if problems := [loaded.problem(path, message) for path, message in missing_files(loaded.preset)]:
        raise PresetError(problems)


def missing_files(preset: Preset) -> list[Problem]:
    """The key and the message of each file or folder that the preset needs and that is not there."""
    problems: list[Problem] = []
    pretrained = preset.model.pretrained
    if isinstance(pretrained, str) and not Path(pretrained).expanduser().exists():
        problems.append((("model", "pretrained"), f"no such file or folder: {pretrained}"))
    message = _missing_images(preset) if isinstance(preset, ImagePreset) else _missing_texts(preset.data.path)
    if message:
        problems.append((("data", "path"), message))
    return problems


def _missing_images(preset: ImagePreset) -> str:
    data = preset.data
    if data.path is None or (data.source == "torchvision" and data.download):
        return ""
    path = Path(data.path).expanduser()
    if data.source == "npz":
        return "" if path.is_file() else f"no such file: {data.path}"
    if data.source in ("image-folder", "torchvision"):
        return "" if path.is_dir() else f"no such folder: {data.path}"
    return ""


def _missing_texts(given: str | list[str] | None) -> str:
    patterns = [given] if isinstance(given, str) else given or []
    missing = [pattern for pattern in patterns if not _matches(Path(pattern).expanduser())]
    return f"no such file or folder: {', '.join(missing)}" if missing else ""


def _matches(pattern: Path) -> bool:
    # Path.glob refuses patterns that start at the root.
    return pattern.exists() or bool(glob(str(pattern), recursive=True))  # noqa: PTH207
