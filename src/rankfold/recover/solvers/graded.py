"""A matrix from hardly more entries than it has degrees of freedom: alternating least squares under a falling ridge.

½‖A(L R) − y‖² + ½ λ (‖L‖² + ‖R‖²) is, over factors wide enough, the nuclear norm's problem, whose solution knows the
large directions; from there λ falls slowly by half a hundred to two hundred times and the factors follow. Where the
singular values are nearly equal and entries few, growing ranks one pair after another ends in poor places, and this
does not: 5,000 × 4,000 of rank 10 from 1.3 entries for each degree of freedom. Spare columns die on the way, and what
is left has a gap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array as Csr

from rankfold.recover.measurements.arrays import Array, normal
from rankfold.recover.measurements.grams import Grams
from rankfold.recover.measurements.operators import Operator, known_entries, surrogate
from rankfold.recover.solvers.outcome import Progress
from rankfold.recover.solvers.tangent import Point, krylov

FIRST, LAST, STEPS = 0.2, 1e-3, 120  # λ over the mean of the Gram matrices' diagonals, at first and at last
LOOK = 20  # steps between looks at held-out measurements
HOPELESS = ((1 / 3, 0.9), (2 / 3, 0.3))  # parts of the way from which on so large an error on held-out entries ends it
GAP = 3.0  # between neighbouring singular values at the end: what is below are columns that die


@dataclass(frozen=True, eq=False)
class _Table:
    """Observed entries by rows and by columns."""

    by_rows: Grams
    by_columns: Grams
    values: np.ndarray
    turned: np.ndarray


def graded(
    operator: Operator,
    y: Array,
    rank: int,
    rng: np.random.Generator,
    missed: Callable[[Point], float] | None = None,
    progress: Progress | None = None,
) -> Point | None:
    """A start near a matrix of rank at most ``rank`` that meets the entries; None where ``operator`` has no entries.

    ``missed``: the relative error of a point on held-out entries, by which hopeless cases end early.
    Cost: ``STEPS`` times O(count rank² + (m + n) rank³).
    """
    known = known_entries(operator, y)
    if known is None:
        return None
    rows, columns, values = known
    m, n = operator.shape
    table = _table(rows, columns, values, (m, n), rank)
    start = krylov(surrogate(operator, y), rank, normal((n, min(n, rank + 4)), rng, y), 6)
    right = np.asarray(start.v).T * np.sqrt(np.asarray(start.s))
    left = np.asarray(start.u) * np.sqrt(np.asarray(start.s))
    scale = len(values) * 0.5 * (float((right**2).mean()) / m + float((left**2).mean()) / n)
    for step, weight in enumerate(scale * np.geomspace(FIRST, LAST, STEPS)):
        left = _solved(table.by_rows, right, table.values, weight)
        right = _solved(table.by_columns, left, table.turned, weight)
        if progress is not None and step % LOOK == 0:
            progress("following a falling ridge", step, STEPS)
        if missed is not None and step % LOOK == 0 and step >= STEPS * HOPELESS[0][0]:
            bound = min(most for part, most in HOPELESS if step >= STEPS * part)
            if missed(_point(left, right)) > bound:
                break
    if progress is not None:
        progress("following a falling ridge", STEPS, STEPS)
    x = _point(left, right)
    s = np.asarray(x.s)
    ratios = s[:-1] / np.maximum(s[1:], np.finfo(s.dtype).tiny)
    if len(ratios) and ratios.max() >= GAP:
        return x.cut(int(ratios.argmax()) + 1)
    return x


def _table(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int], rank: int) -> _Table:
    numbers = Csr((np.arange(1, len(values) + 1), (rows, columns)), shape=shape)
    numbers.sort_indices()
    turned = Csr(numbers.T)
    turned.sort_indices()
    ordered = values[numbers.data - 1]
    return _Table(Grams(numbers, rank), Grams(turned, rank), ordered, values[turned.data - 1])


def _solved(grams: Grams, known: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
    systems, right = grams(known, values)
    systems += weight * torch.eye(known.shape[1])
    root = torch.linalg.cholesky(systems)
    return torch.cholesky_solve(right[:, :, None], root)[:, :, 0].double().numpy()


def _point(left: np.ndarray, right: np.ndarray) -> Point:
    q, a = np.linalg.qr(left)
    p, b = np.linalg.qr(right)
    u, s, vt = np.linalg.svd(a @ b.T)
    return Point(np.ascontiguousarray(q @ u), s, np.ascontiguousarray(vt @ p.T))
