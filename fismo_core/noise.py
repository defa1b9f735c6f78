"""The gradient's noise scale: how large a batch must be for its gradient to be more signal than noise.

Two batch sizes tell signal and noise apart: E|g_B|^2 = |G|^2 + tr(S) / B for the mean gradient g_B of B samples, with
the true gradient G and the covariance S of one sample's. Source: McCandlish, Kaplan, Amodei et al., "An Empirical Model
of Large-Batch Training" (2018), arXiv 1812.06162, appendix A.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fismo_core import fisher
from fismo_core.layout import MatrixLayout
from fismo_core.optimizer import FISMO
from fismo_core.precision import full_precision_matmul
from fismo_core.stacks import gathered

__all__ = ["Noise", "NoiseMeter", "fisher_square_norms", "signal_and_noise"]

DECAY = 0.8
"""Of the averages of signal and noise from one measurement to the next: each alone is unbiased, but noisy."""


def signal_and_noise(piece: Tensor, whole: Tensor, *, pieces: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of |G|^2 and of tr(S), in any metric; the first may be negative.

    Args:
        piece: squared norm of the mean gradient of a piece of a batch; or its mean over some or all pieces.
        whole: squared norm of the whole batch's mean gradient.
        pieces: how many pieces of this size the batch has, at least 2.
        batch_size: samples of the whole batch.
    """
    signal = (pieces * whole - piece) / (pieces - 1)
    noise = (piece - whole) * (batch_size / (pieces - 1))
    return signal, noise


@torch.no_grad()
def fisher_square_norms(optimizer: FISMO, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Squared norm ||P^-1/2 G Q^-1/2||_F^2 of gradients in the Fisher metric, by the factors' last roots.

    Of a parameter of several matrices it is their sum. Parameters of AdamW's are left out, as are those without a
    gradient. Nothing of the optimizer is changed.

    Args:
        optimizer: has all of the state in this process.
        gradients: by parameter.
    """
    result: dict[Tensor, Tensor] = {}
    for group, stack in optimizer.stacks():
        parameters, layouts = group["params"], group["layouts"]
        bucket, state = stack.bucket, stack.tensors
        parts = {
            i: MatrixLayout.from_plain(layouts[i]).split(gradients[parameters[i]])
            for i in {slot.parameter for slot in bucket.slots}
            if parameters[i] in gradients
        }
        if not parts:
            continue
        with torch.autocast(bucket.device.type, enabled=False), full_precision_matmul():
            H = gathered(bucket, parts)
            if "P_inverse_sqrt" in state:
                H = fisher.multiply_left(state["P_inverse_sqrt"].to(H.dtype), H)
                H = fisher.multiply_right(H, state["Q_inverse_sqrt"].to(H.dtype))
        for slot, square in zip(bucket.slots, H.square().sum(dim=(-2, -1)), strict=True):
            if slot.parameter in parts:
                parameter = parameters[slot.parameter]
                result[parameter] = result[parameter] + square if parameter in result else square
    return result


@dataclass(frozen=True)
class Noise:
    """Averages over measurements of the gradient's signal |G|^2 and noise tr(S).

    Attributes:
        signal: in all.
        noise: in all.
        scale: noise / signal, in samples: about the largest batch that is worth its samples; None where the signal
            cannot be told from zero.
        fisher_scale: the same of FISMO's matrices in the Fisher metric; None where that is not at hand.
        by_parameter: signal and noise by name and metric.
    """

    signal: float
    noise: float
    scale: float | None
    fisher_scale: float | None
    by_parameter: dict[str, dict[str, dict[str, float]]]


class NoiseMeter:
    """Measures the gradient's noise scale from pieces of batches, for each parameter and in all.

    Example:
        >>> meter = NoiseMeter(optimizer)
        >>> for x, y in micro_batches:  # at least two
        ...     with meter.piece(len(micro_batches)):
        ...         (criterion(model(x), y) / len(micro_batches)).backward()
        >>> noise = meter.finish(batch_size, pieces=len(micro_batches))

    Args:
        optimizer: of the parameters. The Fisher metric is that of a FISMO whose state is all in this process.
        names: of the parameters, in the order of the optimizer's groups; None: those that the groups have.
        fisher: whether to measure in the Fisher metric, too.
        mean: of a tensor over processes that have pieces of the same batch each.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Sequence[str] | None = None,
        *,
        fisher: bool = True,
        mean: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self._optimizer, self._mean = optimizer, mean
        self._parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        known = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
        self._names = list(names or known or [f"parameter {index}" for index in range(len(self._parameters))])
        self._metrics = ["euclidean", *(["fisher"] if fisher and isinstance(optimizer, FISMO) else [])]
        self._weight = 0.0
        self._averages = torch.zeros(len(self._metrics), 2, len(self._parameters), dtype=torch.float64, device="cpu")
        self._pieces: list[Tensor] = []

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
        self.add_piece(gradients, count)

    def add_piece(self, gradients: Mapping[Tensor, Tensor], count: int = 1) -> None:
        """Take the norms of a piece's mean gradient, divided by `count`."""
        self._pieces.append(self._square_norms(gradients) * count**2)

    def drop(self) -> None:
        """Forget the pieces of a step that will not be finished."""
        self._pieces = []

    def finish(self, batch_size: int, *, pieces: int, scale: float = 1.0) -> Noise | None:
        """Take in a measured step, once all gradients are complete and before they are clipped or used.

        Args:
            batch_size: samples of the whole batch.
            pieces: of which size those that were added are: how many of them a batch has.
            scale: what the loss was multiplied by.

        Returns:
            The averages; None if a gradient was not finite, or nothing was measured.
        """
        added, self._pieces = self._pieces, []
        if not added:
            return None
        piece = self._mean(torch.stack(added).mean(dim=0))
        # The same on all ranks already, but for the last digit, on which decisions must not depend.
        whole = self._mean(self._square_norms({p: p.grad for p in self._parameters if p.grad is not None}))
        signal, noise = signal_and_noise(piece, whole, pieces=pieces, batch_size=batch_size)
        found = torch.stack([signal, noise], dim=1).cpu().double() / scale**2
        if not bool(found.isfinite().all()):
            return None
        self._averages = DECAY * self._averages + (1 - DECAY) * found
        self._weight = DECAY * self._weight + (1 - DECAY)
        return self._noise()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"weight": self._weight, "averages": self._averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; anew if that was measured in other metrics."""
        if len(state["averages"]) == len(self._averages):
            self._weight, self._averages = state["weight"], state["averages"].clone()

    def _square_norms(self, gradients: Mapping[Tensor, Tensor]) -> Tensor:
        """Squared norms `(metrics, parameters)`, in float32 at least; zero where there is no gradient."""
        zero = torch.zeros((), device=self._parameters[0].device)
        present = [p for p in self._parameters if p in gradients]
        norms = torch._foreach_norm([gradients[p].detach().float() for p in present]) if present else []
        by_metric: list[Mapping[Tensor, Tensor]] = [dict(zip(present, (n.square() for n in norms), strict=True))]
        if "fisher" in self._metrics:
            assert isinstance(self._optimizer, FISMO)
            by_metric.append(fisher_square_norms(self._optimizer, gradients))
        return torch.stack(
            [torch.stack([squares.get(p, zero).float() for p in self._parameters]) for squares in by_metric]
        )

    def _noise(self) -> Noise:
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
        signal, noise = totals[0].tolist()
        return Noise(signal, noise, scales["euclidean"], scales.get("fisher"), by_parameter)


def _ratio(signal: float, noise: float) -> float | None:
    """tr(S) / |G|^2, in samples; None where the averages do not tell a signal from zero."""
    ratio = noise / signal if signal > 0 else math.inf
    return ratio if math.isfinite(ratio) and ratio > 0 else None
