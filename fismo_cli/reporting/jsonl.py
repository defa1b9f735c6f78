"""`metrics.jsonl`: one JSON object an event, appended and flushed, so that it survives a crash."""

import json
from pathlib import Path
from typing import Any

from fismo_cli.files import whole_file
from fismo_cli.runs.directory import json_safe
from fismo_cli.training.events import Event, as_record

__all__ = ["JsonlSink", "truncate_after"]


class JsonlSink:
    """Appends every event to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: Event) -> None:
        """Append and flush one event."""
        self._file.write(json.dumps(json_safe(as_record(event)), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def truncate_after(path: Path, step: int) -> None:
    """Drop what a resumed run will say again: records after the step, the end of the run, and a line cut in half."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and _belongs_before(record, step):
            kept.append(line + "\n")
    with whole_file(path) as file:
        file.write_text("".join(kept), encoding="utf-8")


def _belongs_before(record: dict[str, Any], step: int) -> bool:
    match record.get("event"):
        case "Finished":
            return False
        case "Evaluated" if record.get("split") == "test":
            return False  # comes after the last checkpoint, so the resumed run measures it again
    return int(record.get("step", 0)) <= step
