"""A low-rank matrix by some of its own rows: the others are combinations of them, and small ones.

W = left·right of rank r has r rows that span all others. Written as P [I; C] B, B those rows of W, it takes
r·(m + n − r) numbers in place of r·(m + n): the identity need not be stored. Which rows is chosen by a QR
decomposition with column pivoting of leftᵀ (Businger and Golub 1965), and mended by exchanges until no entry of C is
large (Gu and Eisenstat 1996), so that what is computed from the chosen rows does not magnify their rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankfold.linalg.brief import brief
from rankfold.linalg.decompositions import checked

LARGEST = 8.0  # entries of C beyond which rows are exchanged


@dataclass(frozen=True, eq=False)
class Pivoted:
    """``rows`` (r, n): rows of the product; ``rest`` (m − r, r): what the others are made of them, float64.

    ``order`` (m,), int64: where row i of the product stands in [rows; rest·rows].
    """

    rows: Tensor
    rest: Tensor
    order: Tensor

    __repr__ = brief


def pivoted(left: Tensor, right: Tensor, largest: float = LARGEST) -> Pivoted:
    """Write ``left`` (m, r) times ``right`` (r, n) by r of its rows; r < m.

    Exact to rounding, also where ``left`` has a smaller rank than r: what is not needed then is zero. ``largest``: no
    entry of ``rest`` is larger, at least 1; each exchange that this takes makes the volume that the chosen rows span as
    many times larger, so that they end. Cost O(m r²), and O(m r) for each exchange (seldom any).
    Raises ``ValueError`` (shapes), ``NonFiniteError``.

    >>> import torch
    >>> left, right = torch.randn(7, 3, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    >>> found = pivoted(left, right)
    >>> again = torch.cat([found.rows, found.rest @ found.rows])[found.order]
    >>> bool(torch.allclose(again, left @ right)), found.rows.numel() + found.rest.numel()
    (True, 27)
    """
    from scipy.linalg import qr, solve_triangular

    device = left.device
    left, right = checked(left).cpu(), checked(right).cpu()
    (m, r), n = left.shape, right.shape[-1]
    if right.shape != (r, n) or not 1 <= r < m:
        given = f"{tuple(left.shape)} and {tuple(right.shape)}"
        raise ValueError(f"left (m, r) and right (r, n) with r < m were expected, got {given}")
    if largest < 1:
        raise ValueError(f"the largest entry must be at least 1, got {largest:g}")
    length = left.norm(dim=0).numpy()
    scaled = left.numpy() / np.where(length > 0, length, 1.0)  # the rows depend on the span of left alone
    triangle, order = qr(scaled.T, mode="r", pivoting=True, check_finite=False)
    diagonal = np.abs(np.diagonal(triangle))
    rank = int((diagonal > diagonal[0] * m * np.finfo(float).eps).sum()) if diagonal[0] > 0 else 0
    made = np.zeros((m - r, r))
    if rank:
        made[:, :rank] = solve_triangular(triangle[:rank, :rank], triangle[:rank, r:]).T
    order = exchanged_(made, order, largest)
    chosen, others = torch.from_numpy(order[:r].copy()), torch.from_numpy(made)
    place = np.empty(m, dtype=np.int64)
    place[order] = np.arange(m)
    rows = left[chosen] @ right
    return Pivoted(rows.to(device), others.to(device), torch.from_numpy(place).to(device))


def exchanged_(made: np.ndarray, order: np.ndarray, largest: float) -> np.ndarray:
    """Exchange a chosen row with another one for as long as that one needs an entry above ``largest``.

    ``made`` is brought up to date in place: with x the row of C, c its large entry in column j, the new row for what
    was chosen is (−x with 1 at j) / c, and every other row y becomes y with y_j / c in place of y_j, less y_j / c times
    the rest of x.
    """
    order, r = order.copy(), made.shape[1]
    while made.size:
        i, j = divmod(int(np.abs(made).argmax()), r)
        pivot = made[i, j]
        if abs(pivot) <= largest:
            break
        row, column = made[i].copy(), made[:, j] / pivot
        made -= np.outer(column, row)
        made[:, j] = column
        made[i] = -row / pivot
        made[i, j] = 1 / pivot
        order[j], order[r + i] = order[r + i], order[j]
    return order
