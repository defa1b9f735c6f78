"""Holds runs to the data that they, their study or their comparison began with."""

import json
from pathlib import Path

from fismo_cli.errors import DataError, UsageError
from fismo_cli.preset.files import missing_files
from fismo_cli.preset.loading import load_preset
from fismo_cli.preset.schema import Preset
from fismo_cli.runs.directory import RunDirectory, read_json
from fismo_cli.tasks.identity import Identity, changes

__all__ = [
    "check_as_recorded",
    "check_as_trained",
    "data_of_run",
    "names_other_data",
    "names_other_source",
    "refuse_other_data",
    "say_where",
    "splits_anew",
]

_NO_OTHER_DATA = {"workers", "cache_dir", "download"}
"""Keys under `data` that say how it is read, not what is read."""


def data_of_run(run: RunDirectory) -> Identity | None:
    """The identity of the data that a run began with; None where it says nothing of it."""
    found = read_json(run.environment).get("data")
    found = found.get("identity") if isinstance(found, dict) else None
    return found if isinstance(found, dict) and found else None


def check_as_trained(
    run: RunDirectory, now: Identity | None, *, allowed: bool, instead: str
) -> tuple[list[str], list[str]]:
    """What has changed of a run's data since it began, and what to tell about it.

    Args:
        run: the run.
        now: the identity of the data as it is.
        allowed: whether changed data is used all the same.
        instead: what a user can do besides putting the data back.

    Raises:
        DataError: if it has changed and that is not allowed.
    """
    before = data_of_run(run)
    if not now:
        return [], []
    if before is None:
        return [], [f"{run.path} does not say what its data was: whether it is still the same is not checked"]
    found = changes(before, now)
    if not found:
        return [], []
    what = f"the data of {run.path} has changed since it began: {'; '.join(found)}"
    if not allowed:
        raise DataError(f"{what}. Put it back, {instead}, or use it as it is by --allow-changed-data")
    return found, [f"{what}; it is used as it is"]


def refuse_other_data(directory: Path, before: Identity | None, now: Identity | None) -> None:
    """Make sure that a study or a comparison sees the data that it recorded; an older one that did not, takes any.

    Args:
        directory: of the study or comparison.
        before: the identity that it recorded.
        now: the identity of the data as it is.

    Raises:
        DataError: if it is other data.
    """
    found = changes(before, now) if before and now else []
    if found:
        raise DataError(
            f"the data has changed since {directory} was begun: {'; '.join(found)}. Its runs must all see the same: "
            "put the data back, or begin anew in another directory"
        )


def check_as_recorded(file: Path | None, now: Identity | None) -> None:
    """`refuse_other_data` for one run of a study or a comparison.

    Args:
        file: JSON of the study or comparison, which has the identity as `data` under `environment`.
        now: the identity of the data as it is.

    Raises:
        DataError: if it is other data.
        UsageError: if the file cannot be read.
    """
    if file is None:
        return
    try:
        refuse_other_data(file.parent, json.loads(file.read_text(encoding="utf-8"))["environment"].get("data"), now)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); it says what the data of {file.parent} is") from error


def names_other_data(run: RunDirectory, preset: Preset) -> bool:
    """Whether a preset names other data than that of a run."""
    saved = load_preset(str(run.preset)).preset
    return saved.data.model_dump(exclude=_NO_OTHER_DATA) != preset.data.model_dump(exclude=_NO_OTHER_DATA)


def names_other_source(run: RunDirectory, preset: Preset) -> bool:
    """Whether a preset names other data than that of a run, and leaves open which shares of it are held out."""
    before, now = load_preset(str(run.preset)).preset.data, preset.data
    sources = ("source", "path", "name", "config_name", "splits")
    same = all(getattr(before, key, None) == getattr(now, key, None) for key in sources)
    return not same and not splits_anew(run, preset)


def splits_anew(run: RunDirectory, preset: Preset) -> bool:
    """Whether a preset holds out other shares of the data than a run did."""
    before, now = load_preset(str(run.preset)).preset.data, preset.data
    return any(
        getattr(before, key) != getattr(now, key) for key in ("validation_fraction", "test_fraction", "split_seed")
    )


def say_where(run: RunDirectory | None, preset: Preset, error: UsageError) -> UsageError:
    """The error of files that are not there, with the folder in which the run was started if they may be there."""
    began = None if run is None else read_json(run.environment).get("folder")
    if began is None or began == str(Path.cwd()) or not missing_files(preset):
        return error
    return UsageError(
        f"{error}. The run was started in {began}: relative paths of a preset count from where fismo runs"
    )
