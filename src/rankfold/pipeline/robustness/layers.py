"""What each matrix of a network amplifies, whatever it is stored as: its singular values, largest over smallest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.linalg import NonFiniteError, NotConvergedError, singular_values
from rankfold.pipeline.robustness.matrices import matrices
from rankfold.spectrum import rounding


@dataclass(frozen=True)
class Amplification:
    """Of one layer: its ``rank``, the ``largest`` singular value, the smallest that belongs to its rank, and the
    ``condition`` number, their quotient.

    Directions that the layer drops do not count: a change of the input along them changes nothing. Of a convolution
    the matrix has a row for each output channel and a column for each entry of a kernel; its largest singular value is
    not the gain of the convolution, which is at most √(kernel positions) times as large. With groups it is
    block-diagonal, with a block for each: ``shape`` is that of the whole, ranks add.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    largest: float
    smallest: float

    @property
    def condition(self) -> float:
        return self.largest / self.smallest if self.smallest > 0 else inf

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape), "condition": self.condition}


@torch.no_grad()
def amplifications(model: nn.Module) -> tuple[Amplification, ...]:
    """Every linear layer and convolution of ``model``, in the order of its modules; embeddings are looked up, and left
    out. A layer of factors is measured as the one that it stands for, one whose weight is computed at every call
    (``weight_norm``, a mask, a product) by that weight. Cost: one SVD of each, in float64."""
    return amplified(model)[0]


def amplified(model: nn.Module) -> tuple[tuple[Amplification, ...], tuple[str, ...]]:
    """``amplifications``, and the names of what else the network may multiply by, each with the reason."""
    found, left = matrices(model)
    return tuple(_measured(*matrix) for matrix in found), left


def _measured(name: str, matrix: Tensor, precision: float) -> Amplification:
    """Groups stand in blocks along the diagonal of one matrix, which has the singular values of all of them."""
    groups, (m, n) = len(matrix) if matrix.dim() == 3 else 1, matrix.shape[-2:]
    try:
        values = singular_values(matrix)
    except (NonFiniteError, NotConvergedError) as error:
        raise ValueError(f"{name}: {error}: load or train the network again") from None
    standing = values[values > rounding(values, (m, n), precision)[..., None]]
    ends = (float(standing.max()), float(standing.min())) if len(standing) else (float(values.max()), 0.0)
    return Amplification(name, (groups * m, groups * n), len(standing), *ends)
