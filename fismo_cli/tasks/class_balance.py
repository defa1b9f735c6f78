"""Weights of classes in the training loss: in inverse proportion to their samples, or as a preset has them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fismo_cli.errors import UsageError
from fismo_cli.preset.suggestions import did_you_mean, near
from fismo_cli.words import listed

__all__ = ["class_weights"]


def class_weights(
    asked: str | Mapping[str, float] | None, labels: NDArray[np.int64], classes: Sequence[str]
) -> tuple[float, ...]:
    """The weight of each class, by label; none where all weigh alike.

    Args:
        asked: `balanced`: N / (K n) for a class with n of N samples, of K classes that have any: 1 on average over the
            samples, and as much for each class in all. Or weights by name; what is left out weighs 1. None: none.
        labels: of the training samples.
        classes: their names.

    Raises:
        UsageError: There is no class of a name.
    """
    if asked is None:
        return ()
    if isinstance(asked, Mapping):
        unknown = [
            f"{name} is no class.{did_you_mean(near(name, list(classes)))}" for name in asked if name not in classes
        ]
        if unknown:
            raise UsageError(f"data.class_weights: {' '.join(unknown)} The classes are {listed(classes, 10)}")
        return tuple(float(asked.get(name, 1.0)) for name in classes)
    counts = np.bincount(labels, minlength=len(classes))
    present = int((counts > 0).sum())
    return tuple(len(labels) / (present * int(count)) if count else 1.0 for count in counts)
