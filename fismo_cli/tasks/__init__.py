"""Tasks: data, loss and metrics of image classification and language modelling, behind one small interface."""

import os
from typing import TYPE_CHECKING

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import ImagePreset, Preset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fismo_cli.tasks.base import Progress, Task

__all__ = ["build_task"]


def build_task(
    preset: Preset,
    *,
    known: "Sequence[str] | None" = None,
    split: bool = True,
    progress: "Progress" = lambda done, total: None,
) -> "Task":
    """The task that a preset describes, with its data opened (and downloaded or tokenised where that is asked for).

    Args:
        preset: A validated preset.
        known: The classes of a model that is to be measured on images; None for training.
        split: Cut off the parts that the source does not have.
        progress: Told how many images have been looked at.

    Returns:
        The task. Image tasks keep their images in memory where that is sensible, text tasks their tokens.

    Raises:
        UsageError: The data is missing, empty, unreadable, unreachable or not what the source needs,
            or `data.workers` is far beyond what this machine has processors for.
    """
    processors = os.cpu_count() or 1
    if preset.data.workers > (most := max(16, 4 * processors)):
        raise UsageError(
            f"data.workers is {preset.data.workers}, but this machine has {processors} processors; give at most {most}"
        )
    if isinstance(preset, ImagePreset):
        from fismo_cli.tasks.images import build_image_task

        return build_image_task(preset, known=known, split=split, progress=progress)
    from fismo_cli.tasks.text import build_text_task

    return build_text_task(preset, split=split)
