"""Inexact Gauss–Newton on the matrices of rank k: least squares in the tangent space, then the best matrix of rank k.

X = U diag(s) V with orthonormal columns of U (m, k) and rows of V (k, n). A tangent dX = du V + U dv is found by
conjugate gradients on ‖A(dX) − residual‖², preconditioned by nothing: with orthonormal U and V the operator A*A is near
a multiple of the identity there. The sum X + dX has rank at most 2k and is cut back exactly (Vandereycken 2013,
algorithm 6). A zero singular value does no harm, unlike in methods that invert s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rankfold.recover.measurements.arrays import (
    Array,
    contiguous,
    dot,
    like,
    namespace,
    norm,
    orthonormal,
    side_by_side,
    stacked,
)
from rankfold.recover.measurements.lazy import Lazy
from rankfold.recover.measurements.operators import Entries, Mask, Operator, both
from rankfold.recover.solvers.blocks import Blocks


@dataclass(frozen=True, eq=False)
class Point:
    """X = u diag(s) v: (m, k), (k,) descending, (k, n)."""

    u: Array
    s: Array
    v: Array

    @property
    def rank(self) -> int:
        return len(self.s)

    @property
    def left(self) -> Array:
        return self.u * self.s

    def cut(self, rank: int) -> Point:
        """Its best approximation of that rank."""
        return Point(contiguous(self.u[:, :rank]), self.s[:rank], self.v[:rank])


def residual(operator: Operator, y: Array, x: Point) -> Array:
    """y − A(X)."""
    return y - operator.push(x.left, x.v)


def tangent_step(
    operator: Operator,
    rest: Array,
    x: Point,
    *,
    iterations: int,
    tol: float,
    damping: float = 0.0,
    blocks: bool = False,
) -> tuple[Array, Array, int]:
    """(du, dv, iterations used): ‖A(du v + u dv) − rest‖² + damping · scale · (‖du‖² + ‖dv‖²), solved until the
    gradient has fallen by ``tol``. Each iteration is one push and one adjoint with 2k columns.

    Of single entries it is solved in single precision, in half of the time and memory: it is a direction, and the
    residual that it is to meet is computed in the precision asked for. Not with ``blocks``, which are for systems that
    are nearly singular.
    """
    size = norm(rest)
    if blocks or size == 0.0 or not isinstance(operator, Entries) or not isinstance(rest, (np.ndarray, Lazy)):
        return _solved(operator, rest, x, iterations, tol, damping, blocks)
    near = Point(x.u.astype(np.float32), x.s, x.v.astype(np.float32))
    du, dv, used = _solved(operator, (rest / size).astype(np.float32), near, iterations, tol, damping, blocks)
    return du.astype(rest.dtype) * size, dv.astype(rest.dtype) * size, used


def _solved(
    operator: Operator, rest: Array, x: Point, iterations: int, tol: float, damping: float, blocks: bool
) -> tuple[Array, Array, int]:
    u, v = x.u, x.v
    vt, ut = v.T, u.T
    gu, gv = both(operator.adjoint(rest), vt, ut)
    du, dv = gu * 0.0, gv * 0.0
    weight = damping * operator.scale
    scaled = Blocks.at(operator, u, v, weight) if blocks and isinstance(operator, (Mask, Entries)) else _as_it_is
    pu, pv = scaled(gu, gv)
    size = dot(gu, pu) + dot(gv, pv)
    enough = tol * tol * size
    used = 0
    while used < iterations and size > enough:
        used += 1
        hu, hv = both(operator.adjoint(operator.push(side_by_side(pu, u), stacked(v, pv))), vt, ut)
        if weight:
            hu, hv = hu + weight * pu, hv + weight * pv
        curvature = dot(pu, hu) + dot(pv, hv)
        if curvature <= 0.0:  # rounding: the gradient is as small as it gets
            break
        step = size / curvature
        du, dv = du + step * pu, dv + step * pv
        gu, gv = gu - step * hu, gv - step * hv
        zu, zv = scaled(gu, gv)
        before, size = size, dot(gu, zu) + dot(gv, zv)
        pu, pv = zu + (size / before) * pu, zv + (size / before) * pv
    return du, dv, used


def _as_it_is(gu: Array, gv: Array) -> tuple[Array, Array]:
    return gu, gv


def retract(x: Point, du: Array, dv: Array) -> Point:
    """The best approximation of rank k to X + du v + u dv. Cost O((m + n) k² + k³)."""
    xp, k = namespace(x.u), x.rank
    across = x.u.T @ du + dv @ x.v.T
    qu, ru = xp.linalg.qr(du - x.u @ (x.u.T @ du))
    qv, rv = xp.linalg.qr((dv - (dv @ x.v.T) @ x.v).T)
    # qr of a thin (m, k) has min(m, k) rows: both are k unless the matrix is smaller than its rank
    below = side_by_side(ru, like(np.zeros((ru.shape[0], rv.shape[0])), ru))
    core = stacked(side_by_side(xp.diag(x.s) + across, rv.T), below)
    a, s, b = xp.linalg.svd(core, full_matrices=False)
    return Point(contiguous(side_by_side(x.u, qu) @ a[:, :k]), s[:k], contiguous(b[:k] @ stacked(x.v, qv.T)))


def leading(matrix: Array, rank: int, seed: Array, passes: int = 2) -> Point:
    """The leading singular triples of what multiplies as a matrix, by ``passes`` + 1 block power steps.

    ``seed``: random (n, rank + a few). Approximate: it is a start.
    """
    basis = orthonormal(matrix @ seed)
    for _ in range(passes):
        basis = orthonormal(matrix @ orthonormal((basis.T @ matrix).T))
    return _within(matrix, basis, rank)


def krylov(matrix: Array, rank: int, seed: Array, blocks: int) -> Point:
    """As ``leading``, from the span of all ``blocks`` power steps (Musco and Musco 2015): for the same products it
    finds directions that the last step alone leaves buried, such as few in very many of nearly their size.

    Memory: (m + n) · blocks · columns of ``seed``.
    """
    m, n = (int(size) for size in matrix.shape)
    found = [orthonormal(matrix @ seed)]
    while len(found) < blocks and (len(found) + 1) * seed.shape[1] <= min(m, n):
        more = matrix @ orthonormal((found[-1].T @ matrix).T)
        for _ in range(2):  # once leaves rounding behind
            for block in found:
                more = more - block @ (block.T @ more)
            more = orthonormal(more)
        found.append(more)
    span = side_by_side(*found)
    found.clear()
    return _within(matrix, span, rank)


def _within(matrix: Array, basis: Array, rank: int) -> Point:
    """The leading pairs of ``basis`` basisᵀ ``matrix``: the larger side is decomposed at ``rank`` columns only."""
    xp = namespace(basis)
    part = basis.T @ matrix
    a = xp.linalg.eigh(part @ part.T)[1][:, -rank:]
    q, r = xp.linalg.qr((a.T @ part).T)
    u, s, vt = xp.linalg.svd(r.T, full_matrices=False)
    return Point(contiguous(basis @ (a @ u)), s, contiguous(vt @ q.T))


def joined(x: Point, more: Point) -> Point:
    """X + more, of the sum of their ranks, in the same form. Cost O((m + n) k²)."""
    xp = namespace(x.u)
    qu, ru = xp.linalg.qr(side_by_side(x.left, more.left))
    qv, rv = xp.linalg.qr(stacked(x.v, more.v).T)
    a, s, b = xp.linalg.svd(ru @ rv.T)
    return Point(contiguous(qu @ a), s, contiguous(b @ qv.T))


def step(
    operator: Operator,
    y: Array,
    x: Point,
    rest: Array,
    *,
    iterations: int,
    tol: float,
    damping: float,
    blocks: bool = False,
) -> tuple[Point, Array, float, int]:
    """One damped step that does not raise the residual: (X, its residual, the damping for the next, inner iterations).

    ``rest`` = y − A(X). The damping (relative to ``operator.scale``) grows tenfold until the residual falls.
    """
    before, used = norm(rest), 0
    while True:
        du, dv, count = tangent_step(operator, rest, x, iterations=iterations, tol=tol, damping=damping, blocks=blocks)
        used += count
        trial = retract(x, du, dv)
        after = residual(operator, y, trial)
        size = norm(after)
        if size <= before or damping > 1e6:
            return (
                (trial, after, damping / 10 if damping > 1e-6 else 0.0, used)
                if size <= before
                else (x, rest, damping, used)
            )
        damping = max(10 * damping, 1e-2)
