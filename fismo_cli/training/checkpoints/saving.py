"""What a checkpoint holds of a run, and how the run goes on from it."""

from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from fismo_cli.errors import FismoError
from fismo_cli.training.averaging import WeightAverage
from fismo_cli.training.distributed.sharding import placed_alike, placed_state
from fismo_cli.training.distributed.world import World
from fismo_cli.training.seeding import derive_seed, restore_rng_state, rng_state, seed_everything
from fismo_cli.training.state import LossWindow, RunState
from fismo_cli.training.stepping import Stepper

__all__ = ["Saving"]


class Saving:
    """The parts of a run whose states make up a checkpoint.

    Args:
        model: that is trained.
        average: of its weights, where there is one.
        optimizer: over its parameters.
        stepper: with the instruments.
        window: of the losses since the last progress record.
        world: the processes that train together.
        seed: of the run.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        average: WeightAverage | None,
        optimizer: torch.optim.Optimizer,
        stepper: Stepper,
        window: LossWindow,
        world: World,
        seed: int,
    ) -> None:
        self._model, self._average, self._optimizer = model, average, optimizer
        self._stepper, self._window, self._world, self._seed = stepper, window, world, seed

    def content(self, state: RunState, *, with_optimizer: bool = True) -> dict[str, Any]:
        """A checkpoint's content; all processes call it together."""
        return {
            "run": asdict(state),
            "model": dict(self._model.state_dict()),
            "average": None if self._average is None else dict(self._average.state_dict()),
            "optimizer": self._optimizer.state_dict() if with_optimizer else None,
            "stepper": self._stepper.state_dict(),
            "window": self._window.state_dict(),
            "rng": rng_state(),
            "rng_of_others": self._world.gather(None if self._world.main else rng_state())[1:],
        }

    def load(self, saved: dict[str, Any]) -> RunState:
        """Make all parts what they were, and return the run's counters.

        Raises:
            FismoError: if an earlier version of this tool has written it.
        """
        if saved["run"].keys() != {field.name for field in fields(RunState)}:
            raise FismoError(
                "this checkpoint is of an earlier version of fismo, which counted other things; start anew"
            )
        state = RunState(**saved["run"])
        self.load_weights(saved)
        if saved["optimizer"] is not None:
            self._optimizer.load_state_dict(placed_state(saved["optimizer"], self._optimizer))
        self._stepper.load_state_dict(saved["stepper"])
        self._window.load_state_dict(saved["window"])
        self._stepper.clock.start_at(state.optimizer_seconds)
        others = saved["rng_of_others"]
        if self._world.main:
            restore_rng_state(saved["rng"])
        elif self._world.rank <= len(others):
            restore_rng_state(others[self._world.rank - 1])
        else:  # there were fewer processes before
            seed_everything(derive_seed("training", self._seed, state.step, *self._world.apart()))
        return state

    def load_weights(self, saved: dict[str, Any]) -> None:
        """Make the model, and the average of its weights, what they were."""
        self._model.load_state_dict(placed_alike(saved["model"], self._model.state_dict()))
        if self._average is not None:
            self._average.load_state_dict(placed_alike(saved["average"], self._average.state_dict()))
