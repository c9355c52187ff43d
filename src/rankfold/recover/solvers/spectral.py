"""Singular pairs of what is measured that stand out from noise: how many there are, and a start from them.

Random signs in front of the measurements leave nothing of them but noise as large as theirs; what is larger than all of
it stands out. Of single entries, rows and columns are first divided by their sizes, which leaves the rank as it is:
unequal ones spread the noise, and its edge hides pairs. With Gaussian factors all ten pairs of a 5,000 × 4,000 matrix
show from 1.2 entries for each degree of freedom on, and where they do not divide, one.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from rankfold.recover.measurements.arrays import (
    Array,
    contiguous,
    dot,
    like,
    namespace,
    norm,
    normal,
    numpy,
    orthonormal,
)
from rankfold.recover.measurements.bits import signs
from rankfold.recover.measurements.lazy import Lazy
from rankfold.recover.measurements.operators import Entries, Mask, Operator, surrogate
from rankfold.recover.solvers.tangent import Point, krylov

AT_FIRST, BLOCKS = 4, 6  # singular pairs looked at first, more if all of them stand out; power steps to find them
SMALL = 150  # rows or columns up to which all pairs cost less than a few
ROUNDS = 3  # of dividing rows and columns in turn


def outstanding(operator: Operator, rest: Array, least: int, most: int, rng: np.random.Generator) -> Point:
    """The leading singular pairs of what ``rest`` leaves: all that stand out, at least ``least`` and at most ``most``.

    One at a time would be slow, and wrong where many are nearly equal: any mixture of them is as good a pair as they
    are, and the steps that follow would fit it. Their sizes are those that take most from ``rest``, jointly.
    """
    n = operator.shape[1]
    even, high, wide = rest, None, None
    if isinstance(operator, Entries) and isinstance(rest, (np.ndarray, Lazy)):
        even = operator.stored((rest / (norm(rest) or 1.0)).astype(np.float32))  # enough for a start, in half of it
    if isinstance(operator, (Mask, Entries)):
        even, high, wide = _balanced(operator, even)
        even = operator.stored(even)

    def pairs(measurements: Array, width: int) -> Point:
        matrix = surrogate(operator, measurements)
        if small and isinstance(matrix, np.ndarray):
            return _of_small(matrix, width)
        return krylov(matrix, width, normal((n, min(n, width + 4)), rng, even), BLOCKS)

    def largest(measurements: Array) -> float:
        matrix = surrogate(operator, measurements)
        if small and isinstance(matrix, np.ndarray):
            return float(_of_small(matrix, 1).s[0])
        return float(pairs(measurements, width).s[0])

    small = min(operator.shape) <= SMALL
    flipped = even * _signs(even, rng)
    width = most if small else min(most, max(least, AT_FIRST))
    noise = largest(flipped)
    while True:
        found = pairs(even, width)
        count = int((numpy(found.s) > noise).sum())
        if count < width or width == most:
            break
        width = min(most, 4 * width)
    found = found.cut(min(most, max(least, count)))
    if high is not None and wide is not None:
        found = _scaled(found, like(high, rest), like(wide, rest))
    return _fitted(operator, rest, found)


def _of_small(matrix: np.ndarray, width: int) -> Point:
    """The leading pairs: those of the products of its rows in single precision, a start as good as any, span them. A
    third less time than an SVD."""
    if len(matrix) > matrix.shape[1]:
        turned = _of_small(matrix.T, width)
        return Point(contiguous(turned.v.T), turned.s, contiguous(turned.u.T))
    even = (matrix / (np.abs(matrix).max() or 1.0)).astype(np.float32)
    m = len(matrix)
    _, span = scipy.linalg.eigh(even @ even.T, subset_by_index=(m - min(width, m), m - 1), check_finite=False)
    basis = orthonormal(span.astype(matrix.dtype))
    q, r = np.linalg.qr(matrix.T @ basis)
    u, s, vt = np.linalg.svd(r.T)
    return Point(contiguous(basis @ u), s, contiguous(vt @ q.T))


def _balanced(operator: Mask | Entries, rest: Array) -> tuple[Array, Array, Array]:
    """(``rest`` over the sizes of its rows and columns, those sizes (m, 1) and (1, n)): all norms are near one."""
    m, n = operator.shape
    tall, flat = like(np.ones((m, 1)), rest), like(np.ones((1, n)), rest)
    high, wide, even = tall, flat, rest
    for _ in range(ROUNDS):
        high = high * _root(operator.adjoint(even * even) @ flat.T)
        even = rest * operator.push(1 / high, 1 / wide)
        wide = wide * _root(tall.T @ operator.adjoint(even * even))
        even = rest * operator.push(1 / high, 1 / wide)
    return even, high, wide


def _signs(even: Array, rng: np.random.Generator) -> Array:
    """1 or −1 for each measurement, as likely."""
    if isinstance(even, Lazy):
        heads = signs(even.shape[0], rng)
        return Lazy(even.blocks, lambda block: 1 - 2 * heads[block.entries].astype(np.int8), np.int8)
    return like(1 - 2 * rng.integers(0, 2, tuple(even.shape), dtype=np.int8), even)


def _root(squares: Array) -> Array:
    """Sizes from sums of squares; rows and columns of which nothing is left count as one."""
    sizes = squares**0.5
    return sizes + (sizes <= 0.0)


def _scaled(x: Point, high: Array, wide: Array) -> Point:
    """The matrix ``x`` with rows and columns multiplied, in the same form."""
    xp = namespace(x.u)
    q, a = xp.linalg.qr(x.left * high)
    p, b = xp.linalg.qr((x.v * wide).T)
    u, s, vt = xp.linalg.svd(a @ b.T)
    return Point(contiguous(q @ u), s, contiguous(vt @ p.T))


def _fitted(operator: Operator, rest: Array, more: Point) -> Point:
    """``more`` times the factor that takes most from ``rest``: a vector that lives on few rows is over-estimated
    else."""
    image = operator.push(more.left, more.v)
    factor = dot(image, rest) / max(dot(image, image), 1e-300)
    return Point(more.u, more.s * factor, more.v)
