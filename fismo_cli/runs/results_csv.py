"""`results.csv`: a row for each step that was logged or evaluated, made from `metrics.jsonl`. Never imports torch."""

import csv
from collections.abc import Iterable, Mapping
from typing import Any

from fismo_cli.files import whole_file
from fismo_cli.runs.directory import RunDirectory
from fismo_cli.runs.record import RunRecord

__all__ = ["result_rows", "write_results"]

_FIRST = ("step", "samples", "seconds", "train_loss")


def write_results(record: RunRecord) -> None:
    """Write `results.csv` of a run as a whole."""
    rows = result_rows(record)
    columns = list(dict.fromkeys((*_FIRST, *(name for row in rows for name in row))))
    with whole_file(RunDirectory(record.path).results) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def result_rows(record: RunRecord) -> list[dict[str, Any]]:
    """A row for each step, by the names of columns; what was not measured at a step is not in its row."""
    rows: dict[int, dict[str, Any]] = {}
    for event in record.events:
        if "step" in event and (values := dict(_values(event))):
            rows.setdefault(event["step"], {"step": event["step"]}).update(values)
    return [rows[step] for step in sorted(rows)]


def _values(event: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    match event["event"]:
        case "StepLogged":
            yield "samples", event["samples"]
            yield "train_loss", event["loss"]
            yield "samples_per_second", event["samples_per_second"]
            if event["gradient_norm"] is not None:
                yield "gradient_norm", event["gradient_norm"]
            yield from ((f"lr_{group}", lr) for group, lr in event["lr"].items())
        case "Evaluated":
            yield "samples", event["samples"]
            yield "seconds", event["training_seconds"]
            yield from ((f"{event['split']}_{name}", value) for name, value in event["metrics"].items())
        case "NoiseMeasured":
            yield "noise_scale", event["noise_scale"]
