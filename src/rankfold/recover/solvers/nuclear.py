"""Nuclear norm: ½‖A(X) − y‖² + λ‖X‖_*, by proximal steps on factors (SoftImpute; Mazumder, Hastie, Tibshirani 2010).

X stays a product of factors; a step's gradient is added to it as what multiplies from both sides, and only the singular
values above the threshold are computed, from the subspace of the step before. λ goes down a path, each solution the
start of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankfold.recover.measurements.arrays import Array, contiguous, norm, normal, side_by_side
from rankfold.recover.measurements.operators import Entries, Mask, Operator
from rankfold.recover.solvers.outcome import Recovered, Watch, recovered
from rankfold.recover.solvers.tangent import Point, leading


class _Sum:
    """factor · Z + left @ right, as a matrix that is only multiplied."""

    __array_ufunc__ = None

    def __init__(self, z: Any, factor: float, left: Array, right: Array) -> None:
        self.shape, self.z, self.factor, self.left, self.right = z.shape, z, factor, left, right

    def __matmul__(self, other: Array) -> Array:
        return self.factor * (self.z @ other) + self.left @ (self.right @ other)

    def __rmatmul__(self, other: Array) -> Array:
        return self.factor * (other @ self.z) + (other @ self.left) @ self.right


def penalties(operator: Operator, y: Array, count: int = 20, least: float = 1e-3) -> list[float]:
    """A falling path of λ, from just below the one that leaves nothing, to ``least`` of it."""
    rng = np.random.default_rng(0)
    n = operator.shape[1]
    largest = float(leading(operator.adjoint(y), 1, normal((n, min(n, 5)), rng, y), passes=4).s[0])
    return [float(value) for value in largest * np.geomspace(0.5, least, count)]


def soft_impute(
    operator: Operator,
    y: Array,
    path: Sequence[float],
    max_rank: int,
    watch: Watch,
    *,
    tol: float = 1e-4,
    steps: int = 100,
    seed: int = 0,
) -> Recovered:
    """Solve along ``path``, at most ``steps`` steps for each λ or until X changes by less than ``tol``, relatively.

    With held-out entries in ``watch`` the path ends where they are met worse. The last X, or the best for those.
    """
    rng = np.random.default_rng(seed)
    m, n = operator.shape
    bound = min(max_rank, m, n)
    lipschitz = 1.0 if isinstance(operator, (Mask, Entries)) else _largest_eigenvalue(operator, y, rng)
    x = Point(normal((m, 1), rng, y) * 0, normal((1,), rng, y) * 0, normal((1, n), rng, y) * 0)
    weight = path[0]
    for looks, weight in enumerate(path, start=1):
        for _ in range(steps):
            rest = y - operator.push(x.left, x.v)
            matrix = _Sum(operator.adjoint(rest), 1 / lipschitz, x.left, x.v)
            width = min(bound, x.rank + 5)
            spare = normal((n, min(n, width + 5) - x.rank), rng, y)
            found = leading(matrix, width, side_by_side(x.v.T, spare), passes=2)
            after = _shrunk(found, weight / lipschitz)
            change = _distance(after, x) / max(norm(after.s), 1e-300)
            x = after
            if change < tol:
                break
        rest = y - operator.push(x.left, x.v)
        if watch.look(looks, (x.left, x.v), norm(rest)):
            break
    else:
        watch.stop(True, f"the penalty was lowered down to {weight:.3g}, where the rank is {x.rank}")
    return recovered(watch.taken or (x.left, x.v), watch)


def _shrunk(x: Point, threshold: float) -> Point:
    kept = max(1, int((x.s > threshold).sum()))
    values = x.s[:kept] - threshold
    return Point(contiguous(x.u[:, :kept]), values * (values > 0), contiguous(x.v[:kept]))


def _distance(a: Point, b: Point) -> float:
    """‖A − B‖ without forming either: ‖A‖² + ‖B‖² − 2⟨A, B⟩."""
    cross = float(((a.left.T @ b.left) * (a.v @ b.v.T)).sum())
    return max(norm(a.s) ** 2 + norm(b.s) ** 2 - 2 * cross, 0.0) ** 0.5


def _largest_eigenvalue(operator: Operator, y: Array, rng: np.random.Generator) -> float:
    """Of A*A, by power steps, a tenth on top."""
    m, n = operator.shape
    x, size = normal((m, n), rng, y), 1.0
    identity = normal((n, n), rng, y) * 0
    identity[range(n), range(n)] = 1.0
    for _ in range(20):
        x = operator.adjoint(operator.push(x * (1 / norm(x)), identity))
        size = norm(x)
    return 1.1 * size
