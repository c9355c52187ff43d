"""Nuclear norm: ½‖A(X) − y‖² + λ‖X‖_*, by proximal steps on factors (SoftImpute; Mazumder, Hastie, Tibshirani 2010).

X stays a product of factors; a step's gradient is added to it as what multiplies from both sides, and only the singular
values above the threshold are computed, from the subspace of the step before. λ goes down a path, each solution the
start of the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rankfold.recover.measurements.arrays import Array, contiguous, namespace, norm, normal, side_by_side, stacked
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
    watch.rules = replace(watch.rules, max_iter=len(path) + 1)  # it looks once a λ, and ends with the path
    rng = np.random.default_rng(seed)
    m, n = operator.shape
    bound = min(max_rank, m, n)
    lipschitz = 1.0 if isinstance(operator, (Mask, Entries)) else _largest_eigenvalue(operator, y, rng)
    x = Point(normal((m, 1), rng, y) * 0, normal((1,), rng, y) * 0, normal((1, n), rng, y) * 0)
    weight, change = path[0], math.inf
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
        short = (
            "" if change < tol else f"; its {steps} steps were too few, X still changes by {change:.1g}: raise max_iter"
        )
        told = f"the penalty was lowered down to {weight:.3g}, where the rank is {x.rank}{short}"
        watch.stop(not short, told)
    return recovered(watch.taken, watch)


def _shrunk(x: Point, threshold: float) -> Point:
    kept = max(1, int((x.s > threshold).sum()))
    values = x.s[:kept] - threshold
    return Point(contiguous(x.u[:, :kept]), values * (values > 0), contiguous(x.v[:kept]))


def _distance(a: Point, b: Point) -> float:
    """‖A − B‖ without forming either: of the triangles of what is stacked, as squared norms would lose half of the
    digits to each other. Cost O((m + n) k²)."""
    qr = namespace(a.u).linalg.qr
    return norm(qr(side_by_side(a.left, -b.left))[1] @ qr(stacked(a.v, b.v).T)[1].T)


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
