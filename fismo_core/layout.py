"""How a parameter is seen as one or several matrices (out x in), and the buckets of same-shape matrices.

Baseline optimizers that are given the
views of `split` see exactly the matrices that FISMO sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Bucket", "MatrixLayout", "Slot", "make_buckets", "shares_memory"]


@dataclass(frozen=True)
class MatrixLayout:
    """Which matrices a parameter holds.

    Attributes:
        stacked: whether the first dimension counts matrices, as in stacked experts. Otherwise the parameter is
            flattened to (first dimension, all others), as for a convolution.
        transposed: whether the stored weight is (in, out), as in transformers' Conv1D.
        rows: sizes of the consecutive row blocks (after the transposition) that are matrices of their own, such as
            query, key and value of a fused projection. Empty: one matrix.
    """

    stacked: bool = False
    transposed: bool = False
    rows: tuple[int, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for parameter groups and `state_dict`."""
        return {"stacked": self.stacked, "transposed": self.transposed, "rows": list(self.rows)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "MatrixLayout":
        """The inverse of `to_plain`."""
        return cls(stacked=plain["stacked"], transposed=plain["transposed"], rows=tuple(plain["rows"]))

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The matrices in `tensor`: views that share its memory wherever its strides allow that.

        Raises:
            ValueError: if the tensor has not the dimensions for it, or `rows` does not add up to its rows.
        """
        if tensor.ndim < 2 or (self.stacked and tensor.ndim != 3):
            wanted = "three dimensions" if self.stacked else "at least two dimensions"
            raise ValueError(f"this matrix layout needs {wanted}, got shape {tuple(tensor.shape)}")
        matrices = list(tensor.unbind()) if self.stacked else [tensor.flatten(1)]
        if self.transposed:
            matrices = [matrix.mT for matrix in matrices]
        if not self.rows:
            return matrices
        if sum(self.rows) != matrices[0].shape[0]:
            raise ValueError(f"row blocks {self.rows} do not add up to the {matrices[0].shape[0]} rows of the matrix")
        return [block for matrix in matrices for block in torch.split(matrix, list(self.rows))]

    def join(self, matrices: Sequence[Tensor], shape: torch.Size) -> Tensor:
        """The inverse of `split`: a tensor of the parameter's shape from its matrices."""
        blocks = max(1, len(self.rows))
        whole = [torch.cat(list(matrices[i : i + blocks])) for i in range(0, len(matrices), blocks)]
        if self.transposed:
            whole = [matrix.mT for matrix in whole]
        return (torch.stack(whole) if self.stacked else whole[0]).reshape(shape)

    def shapes(self, tensor: Tensor) -> list[tuple[int, int]]:
        """The (m, n) of each matrix of a tensor, of which the shape alone is looked at."""
        views = self.split(torch.empty(tensor.shape, device="meta"))
        return [(int(view.shape[0]), int(view.shape[1])) for view in views]


def shares_memory(parameter: Tensor, matrices: Sequence[Tensor]) -> bool:
    """Whether the matrices of `split` are views of the parameter, and not copies that its strides made necessary."""
    storage = parameter.untyped_storage().data_ptr()
    return all(matrix.untyped_storage().data_ptr() == storage for matrix in matrices)


@dataclass(frozen=True)
class Slot:
    """One matrix: the index of its parameter in the group, and which of the parameter's matrices it is."""

    parameter: int
    part: int


@dataclass(frozen=True)
class Bucket:
    """Matrices of one shape on one device, whose states are stacked and which are stepped together."""

    m: int
    n: int
    dtype: torch.dtype
    device: torch.device
    slots: tuple[Slot, ...]


def make_buckets(
    parameters: Sequence[Tensor], layouts: Sequence[MatrixLayout], owns: Callable[[Slot], bool] = lambda slot: True
) -> list[Bucket]:
    """Group the matrices of the parameters by shape, device and state dtype, in order of first appearance.

    The state dtype is float64 for float64 parameters and float32 for all others. Empty matrices are left out, and those
    that are not owned.
    """
    groups: dict[tuple[int, int, torch.dtype, torch.device], list[Slot]] = {}
    for index, (parameter, layout) in enumerate(zip(parameters, layouts, strict=True)):
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        for part, (m, n) in enumerate(layout.shapes(parameter)):
            if m * n and owns(Slot(index, part)):
                groups.setdefault((m, n, dtype, parameter.device), []).append(Slot(index, part))
    return [Bucket(m, n, dtype, device, tuple(slots)) for (m, n, dtype, device), slots in groups.items()]
