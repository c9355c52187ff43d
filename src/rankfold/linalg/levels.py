"""The scale of every row and column of a matrix, which follows each exact rescaling of them."""

from __future__ import annotations

import torch
from torch import Tensor

from rankfold.linalg.decompositions import checked

ROUNDS, SETTLED = 200, 1e-10


def levels(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """r (m,) and c (n,) for which every row and column of W_ij / (r_i c_j) has a root mean square of one; float64.

    Only the products r_i c_j are determined: those of diag(a) W diag(b) are a_i r_i c_j b_j. Rows and columns of zeros
    have 0, and count in no mean. Where other zeros stand so that there are no such numbers, r and c are those of the
    first round. Sinkhorn's rounds on the squares: two products with a vector each, a handful of a large matrix. Raises
    as `checked`.
    """
    squares = checked(matrix).square()
    m, n = (max(int(squares.any(axis).sum()), 1) for axis in (1, 0))
    columns = squares.any(0).to(squares)
    first = None
    for _ in range(ROUNDS):
        rows = squares @ _inverse(columns) / n
        before, columns = columns, _inverse(rows) @ squares / m
        found = rows.sqrt(), columns.sqrt()
        if torch.allclose(columns, before, rtol=SETTLED, atol=0.0):
            return found
        first = first or found
    return first or found


def _inverse(numbers: Tensor) -> Tensor:
    return torch.where(numbers > 0, 1 / numbers, 0.0)
