"""How a model does on each class: what it takes the samples of each for, and what follows from that. No torch.

`classes.json` of a run holds it, for the final model on the validation and the test part.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fismo_cli.runs.directory import read_json

__all__ = ["ClassCounts", "ClassRow", "Confused", "classes_document", "read_classes"]


@dataclass(frozen=True)
class ClassRow:
    """One class.

    Attributes:
        name: its name.
        support: samples of it.
        recall: which share of them the model takes for it; None if there are none.
        precision: which share of those that the model takes for it are; None if there are none.
    """

    name: str
    support: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Confused:
    """So many samples of a class, which are this share of it, were taken for another."""

    name: str
    taken_for: str
    count: int
    share: float


@dataclass(frozen=True)
class ClassCounts:
    """What samples were taken for.

    Attributes:
        classes: names of the classes.
        counts: (class, class it was taken for) -> samples; what is not there is zero.
    """

    classes: tuple[str, ...]
    counts: Mapping[tuple[int, int], int]

    @classmethod
    def from_matrix(cls, classes: Sequence[str], matrix: Sequence[Sequence[float]]) -> "ClassCounts":
        """From a confusion matrix: a row for each class, a column for each class that it was taken for."""
        counts = {(i, j): int(count) for i, row in enumerate(matrix) for j, count in enumerate(row) if count}
        return cls(tuple(classes), counts)

    @cached_property
    def rows(self) -> list[ClassRow]:
        """Each class, in the order of the model's outputs."""
        support, guessed = Counter[int](), Counter[int]()
        for (own, other), count in self.counts.items():
            support[own] += count
            guessed[other] += count
        found = []
        for index, name in enumerate(self.classes):
            right = self.counts.get((index, index), 0)
            recall = right / support[index] if support[index] else None
            precision = right / guessed[index] if guessed[index] else None
            found.append(ClassRow(name, support[index], recall, precision))
        return found

    def most_confused(self, most: int) -> list[Confused]:
        """The pairs of classes with the most mistakes, the most frequent first."""
        wrong = sorted(
            ((pair, count) for pair, count in self.counts.items() if pair[0] != pair[1]), key=lambda e: (-e[1], e[0])
        )
        return [
            Confused(self.classes[own], self.classes[other], count, count / self.rows[own].support)
            for (own, other), count in wrong[:most]
        ]

    def as_json(self) -> dict[str, Any]:
        """Rows, and the counts as [class, taken for, samples] by number."""
        return {
            "classes": [
                {"class": row.name, "support": row.support, "recall": row.recall, "precision": row.precision}
                for row in self.rows
            ],
            "confusion": [[own, other, count] for (own, other), count in sorted(self.counts.items())],
        }


def classes_document(parts: Mapping[str, ClassCounts]) -> dict[str, Any]:
    """What `classes.json` holds, of each part of the data that was measured."""
    return {part: counts.as_json() for part, counts in parts.items()}


def read_classes(path: Path) -> dict[str, ClassCounts]:
    """What a `classes.json` says of each part; nothing where there is none that can be read."""
    found = {}
    for part, content in read_json(path).items():
        try:
            names = tuple(str(row["class"]) for row in content["classes"])
            counts = {(int(own), int(other)): int(count) for own, other, count in content["confusion"]}
        except (KeyError, TypeError, ValueError):
            continue
        if all(0 <= index < len(names) for pair in counts for index in pair):
            found[part] = ClassCounts(names, counts)
    return found
