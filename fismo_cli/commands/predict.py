"""`fismo predict`: the classes of image files by a trained model."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fismo_cli.commands.output import print_json
from fismo_cli.errors import ExitCode, UsageError
from fismo_cli.files import whole_file

if TYPE_CHECKING:
    from fismo_cli.inference.images import Prediction

__all__ = ["predict"]


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or the folder of its model.")],
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="Images, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="How many classes to show, the likeliest first.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images at once.")] = 64,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, mps, cuda or cuda:N.")] = "auto",
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table to a file.", dir_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")] = False,
) -> None:
    """Say the classes of images by a trained model."""
    from fismo_cli.commands.trained import refuse_other_task

    refuse_other_task(run, "image-classification", f"fismo generate {run} TEXT")
    from fismo_cli.inference.images import Predictor, image_files
    from fismo_cli.reporting.console import answer_console, print_rows, say, stderr_console

    found = image_files(files)
    if csv_file is not None and csv_file.resolve() in {Path(file).resolve() for file in found}:
        raise UsageError(f"--csv {csv_file}: it is one of the images")
    predictor = Predictor(run, device)
    predictions = list(predictor.predict(found, top=top, batch_size=batch_size))
    readable = [prediction for prediction in predictions if prediction.problem is None]
    headings = _headings(min(top, len(predictor.classes)))
    if csv_file is not None:
        _write(csv_file, headings, readable)
    if as_json:
        print_json({"run": str(run), "predictions": [_plain(prediction) for prediction in predictions]})
    elif readable:
        rows = [[cell if isinstance(cell, str) else f"{100 * cell:.2f} %" for cell in _cells(p)] for p in readable]
        print_rows(answer_console(as_json=False), headings, rows)
    unread = [prediction.problem for prediction in predictions if prediction.problem is not None]
    if unread:
        console = stderr_console()
        for problem in unread:
            say(console, f"error: {problem}")
        raise typer.Exit(ExitCode.FAILED)


def _headings(top: int) -> list[str]:
    numbers = ["", *(f" {number}" for number in range(2, top + 1))]
    return ["file", *(name + number for number in numbers for name in ("class", "probability"))]


def _cells(prediction: "Prediction") -> list[str | float]:
    return [prediction.file, *(cell for pair in prediction.classes for cell in pair)]


def _plain(prediction: "Prediction") -> dict[str, object]:
    classes = [{"class": name, "probability": probability} for name, probability in prediction.classes]
    return {"file": prediction.file, "classes": classes, "problem": prediction.problem}


def _write(path: Path, headings: Sequence[str], predictions: Iterable["Prediction"]) -> None:
    try:
        with (
            whole_file(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            csv.writer(file).writerows([headings, *map(_cells, predictions)])
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
