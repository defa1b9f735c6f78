"""One FISMO step for a batch of same-shape matrices: from gradient and state to the step, and the state renewed.

The letters are the paper's: G gradient, P and Q Fisher factors of rows and columns, M momentum, D the step's
direction. `P_root` is P^-p and `P_inverse_sqrt` is P^-1/2 of the damped factor, both as of the last refresh.
Source: Xu, Yan, Zhang, "FISMO" (2026), arXiv 2601.21750; what the default form changes is explained in
docs/algorithm.md.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fismo_core import fisher
from fismo_core.arithmetic import Arithmetic
from fismo_core.config import Polar, Scale
from fismo_core.inverse_roots import inverse_powers, polynomial_powers
from fismo_core.polar import polar_factor
from fismo_core.precision import frobenius_norm, largest_entry, normalize_scale

__all__ = ["Mask", "State", "Step", "direction", "fismo_update", "initial_state", "shape_factor"]

State = dict[str, Tensor]

Mask = Tensor | bool
"""For which matrices of a batch something is done: `(B,)`, or for all or none."""


def initial_state(batch: int, m: int, n: int, options: Arithmetic, dtype: torch.dtype, device: torch.device) -> State:
    """State of `batch` matrices m x n before the first step: zero momentum, identity roots.

    Momentum and factors have the given dtype, the roots `options.root_dtype`. P and Q start at zero where their average
    is corrected for it (relative damping), at the identity in the paper's form.
    """
    state = {
        "momentum": torch.zeros(batch, m, n, dtype=dtype, device=device),
        "skipped": torch.zeros(batch, dtype=torch.int64, device=device),
    }
    if options.metric.power == 0:
        return state
    state["failures"] = torch.zeros(batch, dtype=torch.int64, device=device)
    for letter, dim, other in (("P", m, n), ("Q", n, m)):
        diagonal = options.metric.is_diagonal(dim, other)
        identity = fisher.identity_factor(batch, dim, diagonal=diagonal, dtype=dtype, device=device)
        state[letter] = torch.zeros_like(identity) if options.metric.damping_scale == "relative" else identity.clone()
        state[f"{letter}_inverse_sqrt"] = identity.to(options.root_dtype)
        if options.metric.power != 0.5:
            state[f"{letter}_root"] = identity.to(options.root_dtype, copy=True)
    return state


class Step(NamedTuple):
    """What `fismo_update` returns: the direction D `(B, m, n)` and which matrices took part `(B,)`."""

    direction: Tensor
    taken: Tensor


def fismo_update(
    G: Tensor,
    state: State,
    options: Arithmetic,
    *,
    active: Mask = True,
    refresh: Mask = True,
    sides: tuple[Mask, Mask] = (True, True),
) -> Step:
    """The step direction D of each matrix, to be applied as W <- W - lr D; the state is renewed.

    In place, but for new roots, which are new tensors.

    Nothing here waits for the device, except for roots from eigenvalues.

    Args:
        G: gradients `(B, m, n)` in the momentum's dtype; overwritten.
        state: from `initial_state`, renewed by every call.
        options: the optimizer's choices.
        active: which matrices take part; the others keep their state and get a zero step. A matrix with a non-finite
            gradient never takes part, and is counted in `skipped`.
        refresh: for which matrices to compute new roots of the factors.
        sides: for which matrices to fold the gradient into P, and into Q.
    """
    finite = largest_entry(G).isfinite().flatten()
    taken = finite & active
    state["skipped"] += ~finite & active
    # NaN and infinity become zero here, and do not spread; a zero weight keeps the state of what is not taken.
    G = torch.nan_to_num_(G, nan=0.0, posinf=0.0, neginf=0.0)
    if options.metric.power > 0:
        _update_factors(G, state, taken, options, refresh, sides)
    if options.metric.momentum_space == "whitened":
        G = _whiten(G.to(options.root_dtype), state, options).to(G.dtype)
        taken = taken & G.isfinite().flatten(1).all(dim=1)  # the paper's form may overflow where G did not
        G = torch.nan_to_num_(G, nan=0.0, posinf=0.0, neginf=0.0)
    mask = taken[:, None, None]
    M = state["momentum"]
    M.lerp_(G, mask.to(M.dtype) * (1 - options.momentum))
    U = G.lerp_(M, options.momentum) if options.nesterov else M
    return Step(_direction(U, state, options, mask, G), taken)


def direction(U: Tensor, state: State, options: Arithmetic) -> Tensor:
    """The step D `(B, m, n)`, in the dtype of U, that momentum U and the roots in `state` give."""
    everything = torch.ones(len(U), 1, 1, dtype=torch.bool, device=U.device)
    return _direction(U, state, options, everything, torch.empty_like(U))


def _direction(U: Tensor, state: State, options: Arithmetic, mask: Tensor, buffer: Tensor) -> Tensor:
    """`direction`, and zero where the mask `(B, 1, 1)` is false; `buffer`, which may be U, may be overwritten."""
    X = normalize_scale(U, options.compute_dtype)
    if options.metric.momentum_space == "raw":
        X = _whiten(X, state, options)
    if isinstance(options.polar, Polar):
        Z = polar_factor(X, method=options.polar.method, steps=options.polar.steps)
    else:
        Z = options.polar(X).to(X.dtype)
    D = _whiten(Z, state, options)  # un-whitening is by the same roots
    if D.dtype != U.dtype:
        D = buffer.copy_(D)
    length = mask.to(U.dtype) * shape_factor(D.shape[-2], D.shape[-1], options.scale)
    if options.graft and options.metric.power > 0:
        norm = frobenius_norm(D)
        length = length * (frobenius_norm(Z).to(U.dtype) / norm.clamp_min(torch.finfo(norm.dtype).tiny))
    return D.mul_(length)


def shape_factor(m: int, n: int, scale: Scale) -> float:
    """What multiplies the step of an m x n matrix.

    `spectral` sqrt(max(1, m / n)), as in Muon (Jordan et al., 2024); `rms` 0.2 sqrt(max(m, n)), which gives the step
    the size of AdamW's (Liu et al., 2025, arXiv 2502.16982); `none` 1.

    Raises:
        ValueError: if the name is unknown.
    """
    if scale == "spectral":
        return math.sqrt(max(1.0, m / n))
    if scale == "rms":
        return 0.2 * math.sqrt(max(m, n))
    if scale == "none":
        return 1.0
    raise ValueError(f"unknown scale {scale!r}; choose spectral, rms or none")


def _whiten(X: Tensor, state: State, options: Arithmetic) -> Tensor:
    """P^-p X Q^-p in the dtype of X."""
    if options.metric.power == 0:
        return X
    kind = "inverse_sqrt" if options.metric.power == 0.5 else "root"
    return fisher.multiply_right(
        fisher.multiply_left(state[f"P_{kind}"].to(X.dtype), X), state[f"Q_{kind}"].to(X.dtype)
    )


def _update_factors(
    G: Tensor, state: State, keep: Tensor, options: Arithmetic, refresh: Mask, sides: tuple[Mask, Mask]
) -> None:
    """Fold G into P, then into Q with the new P (Gauss-Seidel): P's roots are renewed before Q's statistic."""
    (m, n), metric = G.shape[-2:], options.metric
    relative = metric.damping_scale == "relative"
    G = normalize_scale(G, options.root_dtype) if relative else G.to(options.root_dtype)
    good: Tensor | None = None
    for letter, X, other, columns, side in (("P", G, "Q", n, sides[0]), ("Q", G.mT, "P", m, sides[1])):
        factor = state[letter]
        if side is not False:
            H = fisher.multiply_right(X, state[f"{other}_inverse_sqrt"].to(X.dtype))
            L = fisher.second_moment(H, diagonal=factor.ndim == 2)
            taken = keep if side is True else keep & side
            if relative:
                fisher.fold_relative(factor, L, taken, metric.decay)
            else:
                fisher.fold_absolute(factor, L / columns, taken, metric.decay, metric.damping)
        if refresh is not False:
            renewed = _refresh_roots(letter, state, options, refresh)
            good = renewed if good is None else good & renewed
    if good is not None:
        failed = ~good & refresh
        state["failures"].copy_(torch.where(good & refresh, 0, state["failures"] + failed))


def _refresh_roots(letter: str, state: State, options: Arithmetic, refresh: Mask) -> Tensor:
    """Renew the roots of one factor; where that fails, the previous ones stay. Returns which succeeded, `(B,)`."""
    factor, metric = state[letter], options.metric
    power = metric.power
    powers = {f"{letter}_inverse_sqrt": 0.5} | ({f"{letter}_root": power} if power != 0.5 else {})
    if metric.damping_scale == "relative":
        factor = fisher.damped(factor, metric.damping)
    if metric.roots == "polynomial" and factor.ndim == 3:
        condition = (factor.shape[-1] + metric.damping) / metric.damping
        root, inverse_sqrt, good = polynomial_powers(factor.to(options.root_dtype), power, condition)
        roots = [inverse_sqrt, root][: len(powers)]
    else:
        roots, good = inverse_powers(factor, list(powers.values()))
    renewed = good & refresh
    for name, root in zip(powers, roots, strict=True):
        before = state[name]
        state[name] = torch.where(fisher.expand(renewed, root), root.to(before.dtype), before)
    return good
