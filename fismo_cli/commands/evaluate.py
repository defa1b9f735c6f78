"""`fismo evaluate`: the metrics of a trained model, again or on other data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset

__all__ = ["evaluate"]


def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory that `fismo train` made.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides of its preset, such as data.path=other.npz."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON on stdout.")] = False,
) -> None:
    """Measure a trained model again, or on other data."""
    if not (run_dir / "preset.yaml").is_file():
        raise UsageError(f"{run_dir}: not a run directory (it has no preset.yaml)")
    if not (run_dir / "model").is_dir():
        raise UsageError(f"{run_dir}: this run has no model yet; continue it with fismo train --resume {run_dir}")
    loaded = load_preset(str(run_dir / "preset.yaml"), overrides or ())
    from rich.console import Console

    from fismo_cli.reporting.tables import metrics_table
    from fismo_cli.runs.directory import json_safe
    from fismo_cli.runs.measuring import measure

    metrics = measure(run_dir, loaded)
    Console(stderr=True).print(metrics_table(metrics))
    if as_json:
        print(json.dumps(json_safe({"run_dir": str(run_dir), "metrics": metrics}), allow_nan=False))
