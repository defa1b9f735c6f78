"""`fismo evaluate`: the metrics of a trained model, again or on other data."""

from pathlib import Path
from typing import Annotated

import typer

from fismo_cli.commands.options import Quiet
from fismo_cli.commands.output import print_json
from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset

__all__ = ["evaluate"]


def evaluate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory that `fismo train` made.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Overrides of its preset, such as train.device=cpu, or other data of the same kind.",
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            metavar="N|best|last",
            help="The weights in the checkpoint of a step, of the lowest validation loss, or the last one; by default "
            "the final model.",
        ),
    ] = None,
    allow_changed_data: Annotated[
        bool, typer.Option("--allow-changed-data", help="Measure also where the data has changed since the run began.")
    ] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also recall and precision of each class, and what is confused most.")
    ] = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON on stdout.")] = False,
) -> None:
    """Measure a trained model again, or on other data."""
    from fismo_cli.commands.trained import no_model
    from fismo_cli.runs.directory import RunDirectory
    from fismo_cli.runs.weights import check_step

    run = RunDirectory(run_dir)
    if not run.preset.is_file():
        raise UsageError(f"{run_dir}: not a run directory (it has no preset.yaml)")
    check_step(step)
    if step is None and not run.model.is_dir():
        raise UsageError(f"{run_dir}: this run {no_model(run)}")
    loaded = load_preset(str(run.preset), overrides or ())
    if per_class and loaded.preset.task != "image-classification":
        raise UsageError(f"--per-class: the task {loaded.preset.task} has no classes")
    from fismo_cli.reporting.class_report import print_classes
    from fismo_cli.reporting.console import answer_console, looking, print_rows, say, stderr_console
    from fismo_cli.reporting.tables import metrics_rows
    from fismo_cli.runs.class_counts import classes_document
    from fismo_cli.runs.measuring import measure

    console = stderr_console(quiet=quiet)
    measured = measure(
        run_dir,
        loaded,
        step=step,
        allow_changed_data=allow_changed_data,
        tell=lambda note: say(console, f"note: {note}"),
        progress=looking(console),
    )
    metrics = {part: None if found is None else found.metrics for part, found in measured.items()}
    counts = {part: found.classes for part, found in measured.items() if found and found.classes}
    answer = answer_console(as_json=as_json, quiet=quiet)
    print_rows(answer, *metrics_rows(metrics))
    if per_class:
        print_classes(answer, counts)
    if as_json:
        classes = {"classes": classes_document(counts)} if per_class else {}
        print_json({"run_dir": str(run_dir), "metrics": metrics, **classes})
