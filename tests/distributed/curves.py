"""Loss curves of several presets, one after the other, by the ranks that torchrun started, or in this process alone.

torchrun --nproc-per-node N curves.py RESULT JSON, a list of lists: a preset and its overrides.
"""

import json
import os
import sys
from pathlib import Path

import torch

from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.preparation import prepare
from fismo_cli.training.distributed.world import World, join_world
from fismo_cli.training.events import Finished, StepLogged


def curve(preset: str, *overrides: str, world: World = World(), noise: int | None = None) -> tuple[list[float], dict]:
    """The training losses of a run by steps, and its summary.

    Args:
        preset: its name or path.
        overrides: of its keys; `train.log_every` is 1.
        world: the processes.
        noise: seed of noise that moves every entry of every gradient by a part in ten million; None: none.
    """
    trainer = prepare(load_preset(preset, [*overrides, "train.log_every=1"]), world).trainer
    if noise is not None:
        generator = torch.Generator().manual_seed(noise)
        for parameter in trainer.model.parameters():
            parameter.register_hook(
                lambda gradient: gradient * (1 + 1e-7 * torch.randn(gradient.shape, generator=generator))
            )
    losses, summary = [], {}
    for event in trainer.fit():
        if isinstance(event, StepLogged):
            losses.append(event.loss)
        if isinstance(event, Finished):
            summary = event.summary
    return losses, summary


def main() -> None:
    result, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    with join_world() as world:
        found = [curve(*run, world=world) for run in wanted]
        if world.main:
            result.write_text(json.dumps(found))
    os._exit(0)  # see app.main


if __name__ == "__main__":
    main()
