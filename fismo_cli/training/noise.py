"""Measures the gradient's noise scale while a run trains, from pieces of its batches. Knows no presets and no files.

A piece is what one process sees of one micro-batch; where the whole batch is a single one, half of it is a piece, of
which the trainer takes the gradient besides in the steps that are measured.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fismo_cli.training.events import NoiseMeasured
from fismo_cli.training.world import World
from fismo_core import FISMO, fisher_square_norms, signal_and_noise

__all__ = ["NoiseMeter"]

DECAY = 0.8
"""Of the averages of signal and noise from one measurement to the next: each alone is unbiased, but noisy."""


class NoiseMeter:
    """Signal |G|^2 and noise tr(S) of the gradient, for each parameter and in total, averaged over measurements.

    Args:
        optimizer: of the parameters. The Fisher metric is that of a FISMO whose state is all in this process.
        names: of the parameters, in the order of the optimizer's groups.
        every: steps between measurements; None: none.
        world: the processes that train together.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, names: Sequence[str], *, every: int | None, world: World = World()
    ) -> None:
        self._optimizer, self._names, self._every, self._world = optimizer, list(names), every, world
        self._parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._metrics = ["euclidean"]
        if isinstance(optimizer, FISMO) and world.size == 1:
            self._metrics.append("fisher")
        self._weight = 0.0
        self._averages = torch.zeros(len(self._metrics), 2, len(self._parameters), dtype=torch.float64, device="cpu")
        self._pieces: list[Tensor] = []
        self._failure: Exception | None = None

    def due(self, step: int) -> bool:
        """Whether the step (from 0) is measured."""
        return self._every is not None and (step + 1) % self._every == 0

    @contextmanager
    def piece(self, count: int) -> Iterator[None]:
        """Around the backward pass of one of `count` pieces in this process, each of which adds its share of the mean.

        Takes the norms of its own gradient, before it is added to the others'.
        """
        gradients: dict[Tensor, Tensor] = {}
        handles = [
            parameter.register_hook(partial(gradients.__setitem__, parameter))  # type: ignore[no-untyped-call]
            for parameter in self._parameters
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        try:
            self.add_piece(gradients, count)
        except Exception as error:  # not of the step: `finish` says so
            self._failure = error

    def add_piece(self, gradients: Mapping[Tensor, Tensor], count: int = 1) -> None:
        """Take the norms of a piece's mean gradient, divided by `count`."""
        self._pieces.append(self._square_norms(gradients) * count**2)

    def finish(self, step: int, batch_size: int, *, pieces: int, scale: float = 1.0) -> NoiseMeasured | None:
        """Take in a measured step, once all gradients are complete and before they are clipped or used.

        Args:
            step: the number of the step that is about to be done, from 1.
            batch_size: samples of the whole batch.
            pieces: of which size those that were added are: how many of them a batch has.
            scale: what the loss was multiplied by.

        Returns:
            The averages, as an event; None if a gradient was not finite, or nothing was measured.

        Raises:
            Exception: whatever went wrong in measuring; then in all processes.
        """
        added, self._pieces = self._pieces, []
        failure, self._failure = self._failure, None
        self._world.agree(failure)
        if not added:
            return None
        piece = self._world.mean(torch.stack(added).mean(dim=0))
        # The same on all ranks already, but for the last digit, on which decisions must not depend.
        whole = self._world.mean(self._square_norms({p: p.grad for p in self._parameters if p.grad is not None}))
        signal, noise = signal_and_noise(piece, whole, pieces=pieces, batch_size=batch_size)
        found = torch.stack([signal, noise], dim=1).cpu().double() / scale**2
        if not bool(found.isfinite().all()):
            return None
        self._averages = DECAY * self._averages + (1 - DECAY) * found
        self._weight = DECAY * self._weight + (1 - DECAY)
        return self._event(step, batch_size)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"weight": self._weight, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; anew if another number of processes measures in other metrics."""
        if len(state["averages"]) == len(self._averages):
            self._weight, self._averages = state["weight"], state["averages"].clone()

    def _square_norms(self, gradients: Mapping[Tensor, Tensor]) -> Tensor:
        """Squared norms `(metrics, parameters)`, in float32 at least; zero where there is no gradient."""
        device = self._parameters[0].device
        zero = torch.zeros((), device=device)
        present = [p for p in self._parameters if p in gradients]
        norms = torch._foreach_norm([gradients[p].detach().float() for p in present]) if present else []
        by_metric: list[Mapping[Tensor, Tensor]] = [dict(zip(present, (n.square() for n in norms), strict=True))]
        if "fisher" in self._metrics:
            assert isinstance(self._optimizer, FISMO)
            by_metric.append(fisher_square_norms(self._optimizer, gradients))
        return torch.stack(
            [torch.stack([squares.get(p, zero).float() for p in self._parameters]) for squares in by_metric]
        )

    def _event(self, step: int, batch_size: int) -> NoiseMeasured:
        averages = self._averages / self._weight
        totals = averages.sum(dim=-1)
        by_parameter = {
            name: {
                metric: {"signal": averages[m, 0, i].item(), "noise": averages[m, 1, i].item()}
                for m, metric in enumerate(self._metrics)
                if averages[m, 1, i] != 0
            }
            for i, name in enumerate(self._names)
        }
        scales = {metric: _ratio(*totals[m].tolist()) for m, metric in enumerate(self._metrics)}
        return NoiseMeasured(
            step=step,
            batch_size=batch_size,
            signal=totals[0, 0].item(),
            noise=totals[0, 1].item(),
            noise_scale=scales["euclidean"],
            fisher_noise_scale=scales.get("fisher"),
            by_parameter=by_parameter,
        )


def _ratio(signal: float, noise: float) -> float | None:
    """tr(S) / |G|^2, in samples; None where the averages do not tell a signal from zero."""
    ratio = noise / signal if signal > 0 else math.inf
    return ratio if math.isfinite(ratio) and ratio > 0 else None
