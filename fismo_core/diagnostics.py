"""Opt-in measurements of a `FISMO` optimizer between steps. Slow (SVDs) and synchronising; never called by `step`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fismo_core import fisher, update
from fismo_core.arithmetic import Arithmetic, arithmetic_of
from fismo_core.groups import names_of
from fismo_core.layout import Bucket
from fismo_core.optimizer import FISMO
from fismo_core.precision import full_precision_matmul

__all__ = ["MatrixDiagnostics", "diagnose"]


@dataclass(frozen=True)
class MatrixDiagnostics:
    """Measurements of one matrix.

    Attributes:
        name: the parameter's name, and `[k]` for the k-th of several matrices in it.
        shape: (m, n).
        update_rms: root mean square of the entries of the step D that the current momentum gives, before lr.
        update_condition: ratio of the largest to the smallest non-zero singular value of D.
        realised_radius: ||P^p D Q^p||_2, the length of D in the trust region's metric; without factors, ||D||_2.
        row_condition: condition number of P as of its last refresh; 1 without factors.
        column_condition: the same of Q.
        skipped: non-finite gradients that were skipped.
        failures: consecutive refreshes in which the roots failed.
    """

    name: str
    shape: tuple[int, int]
    update_rms: float
    update_condition: float
    realised_radius: float
    row_condition: float
    column_condition: float
    skipped: int
    failures: int


@torch.no_grad()
def diagnose(optimizer: FISMO) -> list[MatrixDiagnostics]:
    """Measure every matrix of the optimizer, in the order of its buckets."""
    result = []
    with full_precision_matmul():
        for group, stack in optimizer.stacks():
            arithmetic = arithmetic_of(group, stack.bucket.dtype, stack.bucket.device)
            result.extend(_diagnose_bucket(stack.bucket, stack.tensors, arithmetic, names_of(group)))
    return result


def _diagnose_bucket(
    bucket: Bucket, state: update.State, options: Arithmetic, names: list[str]
) -> list[MatrixDiagnostics]:
    D = update.direction(state["momentum"], state, options).double()
    ones = torch.ones(len(bucket.slots), dtype=torch.float64, device=bucket.device)
    if options.metric.power > 0:
        suffix = "inverse_sqrt" if options.metric.power == 0.5 else "root"
        P_root, Q_root = state[f"P_{suffix}"].double(), state[f"Q_{suffix}"].double()
        radius = _spectral_norm(fisher.multiply_right(fisher.multiply_left(_inverse(P_root), D), _inverse(Q_root)))
        conditions = [_condition(state[f"{letter}_inverse_sqrt"].double()) ** 2 for letter in "PQ"]
        failures = state["failures"]
    else:
        radius, conditions, failures = _spectral_norm(D), [ones, ones], torch.zeros_like(ones)
    rms = D.square().mean(dim=(-2, -1)).sqrt()
    columns = zip(bucket.slots, rms, _condition(D), radius, *conditions, state["skipped"], failures, strict=True)
    return [
        MatrixDiagnostics(
            name=f"{names[slot.parameter]}[{slot.part}]",
            shape=(bucket.m, bucket.n),
            update_rms=float(row_rms),
            update_condition=float(condition),
            realised_radius=float(row_radius),
            row_condition=float(row_condition),
            column_condition=float(column_condition),
            skipped=int(skipped),
            failures=int(failed),
        )
        for slot, row_rms, condition, row_radius, row_condition, column_condition, skipped, failed in columns
    ]


def _inverse(F: Tensor) -> Tensor:
    return torch.linalg.inv(F) if F.ndim == 3 else 1 / F


def _spectral_norm(X: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(X, ord=2)
    return norm


def _condition(X: Tensor) -> Tensor:
    """Largest over smallest non-zero singular value, `(B,)`; of dense matrices or of diagonals; 1 for zero matrices."""
    values = torch.linalg.svdvals(X) if X.ndim == 3 else X.abs()
    largest = values.amax(dim=-1)
    cutoff = largest * torch.finfo(values.dtype).eps * X.shape[-1]
    smallest = torch.where(values > cutoff[:, None], values, torch.inf).amin(dim=-1)
    return torch.where(largest > 0, largest / smallest, 1.0)
