"""One FISMO step for a batch of same-shape matrices: a pure function from gradient and state to step and new state.

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
from fismo_core.matrix_functions import inverse_powers, normalize_scale, polar_factor
from fismo_core.options import Options

__all__ = ["State", "Step", "direction", "fismo_update", "initial_state", "shape_factor"]

State = dict[str, Tensor]


def initial_state(batch: int, m: int, n: int, options: Options, dtype: torch.dtype, device: torch.device) -> State:
    """State of `batch` matrices m x n before the first step: zero momentum, identity roots.

    P and Q start at zero where their average is bias-corrected (relative damping), at the identity in the paper's form.
    """
    state = {
        "momentum": torch.zeros(batch, m, n, dtype=dtype, device=device),
        "skipped": torch.zeros(batch, dtype=torch.int64, device=device),
    }
    if options.power == 0:
        return state
    state["statistics"] = torch.zeros(batch, dtype=torch.int64, device=device)
    state["failures"] = torch.zeros(batch, dtype=torch.int64, device=device)
    for letter, dim in (("P", m), ("Q", n)):
        identity = fisher.identity_factor(batch, dim, diagonal=dim > options.max_factor_dim, dtype=dtype, device=device)
        state[letter] = torch.zeros_like(identity) if options.damping_scale == "relative" else identity.clone()
        state[f"{letter}_inverse_sqrt"] = identity
        if options.power != 0.5:
            state[f"{letter}_root"] = identity.clone()
    return state


class Step(NamedTuple):
    """What `fismo_update` returns: the direction D `(B, m, n)`, which matrices took part `(B,)`, and the new state."""

    direction: Tensor
    taken: Tensor
    state: State


def fismo_update(
    G: Tensor, state: State, options: Options, *, active: Tensor | None = None, refresh: Tensor | bool = True
) -> Step:
    """The step direction D of each matrix, to be applied as W <- W - lr D, and the state after it.

    Args:
        G: gradients `(B, m, n)` in the state's dtype.
        state: from `initial_state` or the last call; not modified.
        options: the optimizer's choices.
        active: boolean `(B,)`; matrices that are not active keep their state and get a zero step. None: all are.
            A matrix with a non-finite gradient never takes part, and is counted in `skipped`.
        refresh: for which matrices, `(B,)`, or for all or none, to compute new roots of the factors. Only a call that
            does so for any synchronises with the device.
    """
    finite = G.isfinite().flatten(1).all(dim=1)
    taken = finite if active is None else finite & active
    G = torch.where(taken[:, None, None], G, 0)
    new = dict(state)
    if options.power > 0:
        _update_factors(G, new, taken, options, refresh)
    if options.momentum_space == "whitened":
        G = _whiten(G, new, options)
        taken = taken & G.isfinite().flatten(1).all(dim=1)  # the paper's form may overflow where G did not
        G = torch.where(taken[:, None, None], G, 0)
    mask = taken[:, None, None]
    M = torch.lerp(state["momentum"], G, 1 - options.momentum)
    U = torch.lerp(G, M, options.momentum) if options.nesterov else M
    new["momentum"] = torch.where(mask, M, state["momentum"])
    new["skipped"] = state["skipped"] + (~taken if active is None else ~taken & active)
    return Step(torch.where(mask, direction(U, new, options), 0), taken, new)


def direction(U: Tensor, state: State, options: Options) -> Tensor:
    """The step D `(B, m, n)`, in the dtype of U, that momentum U and the roots in `state` give."""
    X = normalize_scale(U).to(options.compute_dtype)
    if options.momentum_space == "raw":
        X = _whiten(X, state, options)
    polar = polar_factor(X, method=options.polar, steps=options.polar_steps)
    D = _whiten(polar, state, options).to(U.dtype)  # un-whitening is by the same roots
    if options.grafting and options.power > 0:
        D = D * (_norm(polar.to(U.dtype)) / _norm(D).clamp_min(torch.finfo(U.dtype).tiny))
    return D * shape_factor(D.shape[-2], D.shape[-1], options.shape_scale)


def shape_factor(m: int, n: int, shape_scale: str) -> float:
    """What multiplies the step of an m x n matrix.

    `spectral` sqrt(max(1, m / n)), as in Muon (Jordan et al., 2024); `rms` 0.2 sqrt(max(m, n)), which gives the step
    the size of AdamW's (Liu et al., 2025, arXiv 2502.16982); `none` 1.

    Raises:
        ValueError: if the name is unknown.
    """
    if shape_scale == "spectral":
        return math.sqrt(max(1.0, m / n))
    if shape_scale == "rms":
        return 0.2 * math.sqrt(max(m, n))
    if shape_scale == "none":
        return 1.0
    raise ValueError(f"unknown shape_scale {shape_scale!r}; choose spectral, rms or none")


def _whiten(X: Tensor, state: State, options: Options) -> Tensor:
    """P^-p X Q^-p in the dtype of X."""
    if options.power == 0:
        return X
    kind = "inverse_sqrt" if options.power == 0.5 else "root"
    return fisher.multiply_right(
        fisher.multiply_left(state[f"P_{kind}"].to(X.dtype), X), state[f"Q_{kind}"].to(X.dtype)
    )


def _update_factors(G: Tensor, state: State, keep: Tensor, options: Options, refresh: Tensor | bool) -> None:
    """Fold G into P, then into Q with the new P (Gauss-Seidel): P's roots are renewed before Q's statistic."""
    m, n = G.shape[-2:]
    relative = options.damping_scale == "relative"
    if relative:
        G = normalize_scale(G)
        keep = keep & (G != 0).flatten(1).any(dim=1)  # a zero gradient says nothing about the curvature
    state["statistics"] = state["statistics"] + keep
    good = torch.ones_like(keep)
    for letter, X, other, columns in (("P", G, "Q", n), ("Q", G.mT, "P", m)):
        factor = state[letter]
        H = fisher.multiply_right(X, state[f"{other}_inverse_sqrt"])
        L = fisher.second_moment(H, diagonal=factor.ndim == 2)
        if relative:
            state[letter] = fisher.fold_relative(factor, L, keep, options.fisher_decay)
        else:
            state[letter] = fisher.fold_absolute(factor, L / columns, keep, options.fisher_decay, options.damping)
        if refresh is not False:
            good = good & _refresh_roots(letter, state, options, refresh)
    if refresh is not False:
        failures = torch.where(good, 0, state["failures"] + 1)
        state["failures"] = failures if refresh is True else torch.where(refresh, failures, state["failures"])


def _refresh_roots(letter: str, state: State, options: Options, refresh: Tensor | bool) -> Tensor:
    """Renew the roots of one factor; where that fails, the previous ones stay. Returns which succeeded, `(B,)`."""
    factor = state[letter]
    if options.damping_scale == "relative":
        factor = fisher.damped(factor, state["statistics"], options.fisher_decay, options.damping)
    names = {f"{letter}_inverse_sqrt": 0.5} | ({f"{letter}_root": options.power} if options.power != 0.5 else {})
    roots, good = inverse_powers(factor, list(names.values()))
    renewed = good & refresh
    for name, root in zip(names, roots, strict=True):
        state[name] = torch.where(renewed.view(-1, *[1] * (root.ndim - 1)), root, state[name])
    return good


def _norm(X: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)
    return norm
