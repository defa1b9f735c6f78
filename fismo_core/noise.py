"""The gradient's noise scale: how large a batch must be for its gradient to be more signal than noise.

Two batch sizes tell signal and noise apart: E|g_B|^2 = |G|^2 + tr(S) / B for the mean gradient g_B of B samples, with
the true gradient G and the covariance S of one sample's. Source: McCandlish, Kaplan, Amodei et al., "An Empirical Model
of Large-Batch Training" (2018), arXiv 1812.06162, appendix A.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fismo_core import fisher
from fismo_core.layout import MatrixLayout
from fismo_core.optimizer import FISMO
from fismo_core.precision import full_precision_matmul
from fismo_core.stacks import gathered

__all__ = ["fisher_square_norms", "signal_and_noise"]


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
