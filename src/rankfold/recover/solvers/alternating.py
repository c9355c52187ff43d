"""Alternating minimisation: the left factor solved for with the right one fixed, then the other way, batched.

For observed entries each row of a factor is its own least squares; all of them are one batch of k × k systems. Any
other operator is solved by conjugate gradients over the whole factor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankfold.recover.measurements.arrays import Array, contiguous, dot, eye, namespace, normal, rounding
from rankfold.recover.measurements.operators import Entries, Mask, Operator, surrogate
from rankfold.recover.solvers.blocks import column_grams, row_grams
from rankfold.recover.solvers.outcome import Recovered, Watch, recovered
from rankfold.recover.solvers.tangent import leading

DOUBLE = 1e-12  # rounding above which what the touch of ridge takes (a part in 10⁴ in single precision) is given back,
REFINED = 2  # and how often


def alternate(operator: Operator, y: Array, rank: int, watch: Watch, *, ridge: float = 0.0, seed: int = 0) -> Recovered:
    """½‖A(L R) − y‖² + ½ ridge (‖L‖² + ‖R‖²), over L (m, rank) and R (rank, n) in turn, from the spectral start.

    Cost of an iteration over entries: O(count k² + (m + n) k³). Rows without measurements get zero.
    """
    n = operator.shape[1]
    rng = np.random.default_rng(seed)
    x = leading(surrogate(operator, y), rank, normal((n, min(n, rank + 4)), rng, y), passes=4)
    root = x.s**0.5
    left, right = x.u * root, contiguous((x.v.T * root).T)
    image = operator.adjoint(y)
    iteration = 0
    while not watch.look(iteration, (left, right)):
        left = solve_left(operator, image, left, right, ridge)
        right = _solve_right(operator, image, left, right, ridge)
        iteration += 1
    return recovered(watch.taken, watch)


def solve_left(operator: Operator, image: Array, left: Array, right: Array, ridge: float) -> Array:
    """The left factor (m, k) for which ``right`` (k, n) meets the measurements best; ``image`` = A*(y)."""
    if isinstance(operator, (Mask, Entries)):
        return _rows(row_grams(operator, right), image @ right.T, ridge)
    return _conjugate(operator, image @ right.T, left, lambda p: (p, right), lambda z: z @ right.T, ridge)


def _solve_right(operator: Operator, image: Array, left: Array, right: Array, ridge: float) -> Array:
    if isinstance(operator, (Mask, Entries)):
        return contiguous(_rows(column_grams(operator, left), (left.T @ image).T, ridge).T)
    return _conjugate(operator, left.T @ image, right, lambda p: (left, p), lambda z: left.T @ z, ridge)


def _rows(grams: Array, right_sides: Array, ridge: float) -> Array:
    """All systems (G_i + ridge) x_i = b_i: (m, k, k), (m, k) → (m, k); what a singular G_i leaves open is zero."""
    k = right_sides.shape[1]
    # a touch of ridge in the units of each row: rows with fewer entries than k have singular systems
    finest = rounding(grams)
    least = 500 * finest * namespace(grams).einsum("ijj->i", grams) + float(np.finfo(np.float32).tiny)
    systems = grams + ridge * eye(k, grams)
    safe, rest = systems + least[:, None, None] * eye(k, grams), right_sides[:, :, None]
    found = namespace(grams).linalg.solve(safe, rest)
    for _ in range(REFINED if finest > DOUBLE else 0):
        found = found + namespace(grams).linalg.solve(safe, rest - systems @ found)
    return found[:, :, 0]


def _conjugate(
    operator: Operator,
    right_side: Array,
    start: Array,
    factors: Callable[[Array], tuple[Array, Array]],
    back: Callable[[Array], Array],
    ridge: float,
    iterations: int = 50,
    tol: float = 1e-3,
) -> Array:
    """Conjugate gradients for one factor under any operator, from the present one."""
    x = start
    rest = right_side - back(operator.adjoint(operator.push(*factors(x)))) - ridge * x
    direction, size = rest, dot(rest, rest)
    enough = tol * tol * size
    for _ in range(iterations):
        if size <= enough:
            break
        image = back(operator.adjoint(operator.push(*factors(direction)))) + ridge * direction
        step = size / dot(direction, image)
        x, rest = x + step * direction, rest - step * image
        before, size = size, dot(rest, rest)
        direction = rest + (size / before) * direction
    return x
