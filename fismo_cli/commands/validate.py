"""`fismo validate`: check a preset, its overrides and the local files that it names."""

import json
import sys
from typing import Annotated, Any

import typer

from fismo_cli.commands.options import Overrides, PresetName
from fismo_cli.errors import PresetError
from fismo_cli.preset.files import check_files
from fismo_cli.preset.loading import LoadedPreset, load_preset
from fismo_cli.preset.schema import FismoConfig, Preset
from fismo_cli.runs.directory import run_identity

__all__ = ["validate"]


def validate(
    preset: PresetName,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Check a preset and show every error at once."""
    try:
        loaded = load_preset(preset, overrides or ())
        check_files(loaded)
    except PresetError as error:
        if as_json:
            print(json.dumps({"valid": False, "problems": error.problems}))
        raise
    if as_json:
        print(json.dumps(_record(loaded)))
        return
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    from fismo_cli.reporting.console import answer_console, print_pairs

    print_pairs(answer_console(as_json=False), {"ok": loaded.source, **dict(_essentials(loaded.preset))})


def _record(loaded: LoadedPreset) -> dict[str, Any]:
    return {
        "valid": True,
        "name": loaded.name,
        "source": loaded.source,
        "identity": run_identity(loaded.preset),
        "notes": list(loaded.notes),
        "preset": loaded.preset.model_dump(mode="json"),
    }


def _essentials(preset: Preset) -> list[tuple[str, str]]:
    model, data, optimizer, train = preset.model, preset.data, preset.optimizer, preset.train
    if isinstance(optimizer, FismoConfig):
        rate: str = f"lr {optimizer.lr:g}, {optimizer.form} form"
    else:
        rate = "its default learning rate" if optimizer.lr is None else f"lr {optimizer.lr:g}"
    length = f"{train.steps} steps" if train.steps is not None else f"{train.epochs:g} epochs"
    start = "from scratch" if model.pretrained is False else "pretrained"
    return [
        ("task", preset.task),
        ("model", f"{model.library} {model.name}, {start}"),
        ("data", " ".join(part for part in (data.source, data.name, str(data.path or "")) if part)),
        ("optimizer", f"{optimizer.name}, {rate}"),
        ("train", f"{length}, batch size {train.batch_size}, {train.schedule.name} schedule, {train.precision}"),
        ("seed", str(train.seed)),
        ("identity", run_identity(preset)),
    ]
