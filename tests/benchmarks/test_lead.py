"""The tables of docs/results.md on FISMO against Muon are those of the records beside it."""

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import lead, rates

PAGE = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
RECORDS = sorted(path for path in lead.RESULTS.glob("*.json") if not path.stem.startswith("tasks"))


STUDIES = sorted(lead.RESULTS.parent.glob("lead-*/*.json"))


@pytest.mark.parametrize("path", [*RECORDS, *STUDIES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_page_has_the_row_of_each_record(path: Path) -> None:
    record = json.loads(path.read_text())
    assert all(row in PAGE for row in (lead.row(record), *lead.budget_rows(record)))


def test_the_page_has_what_a_wrong_rate_costs() -> None:
    sweeps = json.loads(rates.SWEEPS.read_text())["sweeps"]
    assert all(row in PAGE for row in rates.rows(sweeps))
    assert rates.cells({0.1: 2.0, 0.2: 1.5, 0.4: 1.75}) == ["0.5: +0.500", "2: +0.250"]


def test_steps_taken_are_read_off_the_curves() -> None:
    def curve(label: str, values: list[float | None]) -> dict[str, object]:
        return {"label": label, "seed": 0, "step": [10, 20, 30, 40], "value": values}

    record = {"curves": [curve("fismo", [3.0, None, 1.9, 1.0]), curve("muon", [4.0, 3.0, 2.5, 2.0])]}
    assert lead.steps_taken(record) == [0.75]
    record["curves"][0] = curve("fismo", [3.0, 2.5, 2.4, 2.1])
    assert lead.steps_taken(record) == [math.inf]


def test_the_figure_is_well_formed() -> None:
    records = [json.loads(path.read_text()) for path in RECORDS[:2]]
    drawn = ET.fromstring(lead.drawing(records))
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 3 * len(records)
    assert "nan" not in lead.drawing(records)
