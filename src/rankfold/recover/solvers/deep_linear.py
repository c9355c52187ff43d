"""Deep linear networks: X = W_L ⋯ W_1 by gradient descent, wide (m × n inside) or compressed to width r̂ (C-DLN,
algorithm 1).

The loss is ½‖A(X) − y‖² / count, as in the authors' code; their text has the sum. Rates are α·η for the two outer
factors and η for those between. The compressed network starts at ε times the leading singular vectors of the surrogate
and ε times identities; the wide one at ε times orthogonal matrices (ε, not √ε: with W Wᵀ = ε I, as printed in equation
3, corollary 1 can fail) or at small random ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from rankfold.recover.measurements.arrays import (
    Array,
    contiguous,
    like,
    namespace,
    norm,
    normal,
    numpy,
    side_by_side,
    stacked,
)
from rankfold.recover.measurements.operators import Operator, surrogate
from rankfold.recover.measurements.threads import elements, threads_for
from rankfold.recover.solvers.outcome import Recovered, Watch, recovered
from rankfold.recover.solvers.tangent import Point, leading

GROWS = 1.002  # times that a direction is larger than at the look before while it leaves its start
HALVINGS = 8  # of a rate that was not given and turns out too large
Start = Literal["orthogonal", "random"]
Weights = list[Array]  # W_1 (k, n), W_2 … W_{L−1} (k, k), W_L (m, k)


@dataclass(frozen=True)
class Descent:
    """Rate η, discrepancy α of the outer factors, momentum (heavy ball; 0 is the paper's). ``rate=None``:
    `stable_rate`, then less if need be.

    ``prune``: below this relative residual, singular values that fall by this factor or more below the one before are
    dropped, and the network is made that much narrower; 0 is the paper's.
    """

    rate: float | None = None
    alpha: float = 1.0
    momentum: float = 0.0
    prune: float = 0.0


def _pruned(weights: Weights, below: Weights, descent: Descent) -> Weights | None:
    """The same product without the singular values below a gap of ``prune``, narrower and balanced again; None: no gap.

    What is left of an over-estimated rank falls only as a power of the time, and keeps the error up.
    """
    xp, depth = namespace(weights[0]), len(weights)
    ql, rl = xp.linalg.qr(weights[-1])
    qr, rr = xp.linalg.qr(below[-1].T)
    u, s, vt = xp.linalg.svd(rl @ rr.T)
    falls = np.flatnonzero(numpy(s)[1:] < descent.prune * numpy(s)[:-1])
    if not len(falls):
        return None
    k = int(falls[0]) + 1
    inner = (s[:k] / descent.alpha) ** (1 / depth)
    outer = descent.alpha**0.5 * inner
    left, right = contiguous((ql @ u[:, :k]) * outer), contiguous(((qr @ vt[:k].T) * outer).T)
    return [right, *[xp.diag(inner) for _ in range(depth - 2)], left]


def compressed_start(operator: Operator, y: Array, rank: int, depth: int, scale: float, seed: int = 0) -> Weights:
    """ε Vᵀ, ε I, …, ε U with the leading ``rank`` singular vectors of the surrogate (algorithm 1, lines 1 to 3)."""
    rng = np.random.default_rng(seed)
    matrix = surrogate(operator, y)
    n = operator.shape[1]
    if min(operator.shape) <= 500 and isinstance(matrix, (np.ndarray, torch.Tensor)):
        found = _exact(matrix, rank)
    else:
        found = leading(matrix, rank, normal((n, min(n, rank + 10)), rng, y), passes=10)
    inner = [like(scale * np.eye(rank), y) for _ in range(depth - 2)]
    return [scale * found.v, *inner, scale * found.u]


def _exact(matrix: Array, rank: int) -> Point:
    u, s, vt = namespace(matrix).linalg.svd(matrix, full_matrices=False)
    return Point(contiguous(u[:, :rank]), s[:rank], contiguous(vt[:rank]))


def wide_start(shape: tuple[int, int], depth: int, scale: float, start: Start, seed: int, kind: Array) -> Weights:
    """ε times (semi-)orthogonal matrices, or uniform ones of the same norm; width max(m, n)."""
    rng = np.random.default_rng(seed)
    m, n = shape
    width = max(m, n)
    return [like(_one(rows, columns, scale, start, rng), kind) for rows, columns in _shapes(m, n, width, depth)]


def _shapes(m: int, n: int, width: int, depth: int) -> list[tuple[int, int]]:
    return [(width, n), *[(width, width)] * (depth - 2), (m, width)]


def _one(rows: int, columns: int, scale: float, start: Start, rng: np.random.Generator) -> np.ndarray:
    small, large = min(rows, columns), max(rows, columns)
    if start == "random":
        return scale * math.sqrt(3 * small / (rows * columns)) * rng.uniform(-1, 1, (rows, columns))
    q = np.linalg.qr(rng.standard_normal((large, small)))[0]
    return scale * (q if rows >= columns else q.T)


def stable_rate(operator: Operator, y: Array, weights: Weights, alpha: float, momentum: float) -> float:
    """η near the largest at which descent is stable around a solution with the surrogate's largest singular value σ.

    There a² = α b² (a² / α − b² is conserved), so that the curvature is L σ^{2−2/L} α^{2/L} λ / count with λ the
    largest eigenvalue of A*A on the tangent space of the start; heavy-ball momentum β allows 1 + β times as much. A
    half of it.
    """
    depth = len(weights)
    rng = np.random.default_rng(0)
    n, width = operator.shape[1], min(min(operator.shape), weights[0].shape[0], 50)
    x = leading(surrogate(operator, y), width, normal((n, min(n, width + 4)), rng, y), passes=2)
    du, dv, size = normal(tuple(x.u.shape), rng, y), normal(tuple(x.v.shape), rng, y), 1.0
    for _ in range(10):
        image = operator.adjoint(operator.push(side_by_side(du, x.u), stacked(x.v, dv)))
        du, dv = image @ x.v.T, x.u.T @ image
        size = (norm(du) ** 2 + norm(dv) ** 2) ** 0.5
        du, dv = du * (1 / size), dv * (1 / size)
    largest = float(x.s[0])
    # the tangent space is met twice (u dv and du v overlap): half of the eigenvalue belongs to one factor
    curvature = 0.5 * size * depth * largest ** (2 - 2 / depth) * alpha ** (2 / depth) / operator.count
    return (1 + momentum) / curvature


def descend(
    operator: Operator,
    y: Array,
    weights: Weights,
    descent: Descent,
    watch: Watch,
    observe: Callable[[int, Weights], None] | None = None,
) -> Recovered:
    """Gradient descent from ``weights``, which are left as they are, until the rules of ``watch`` say stop.

    Without a given rate it starts again with half of it when it diverges. ``observe(iteration, weights)`` is called at
    every look. Cost of an iteration: a push, an adjoint, and products of factors; nothing of size m × n is formed
    unless the network is that wide or the measurements are.
    """
    thin = weights[0].shape[0] < min(operator.shape)
    # a rate too large is told by the watch
    with np.errstate(over="ignore", invalid="ignore"), threads_for(elements(operator, thin=thin)):
        return _descend(operator, y, weights, descent, watch, observe)


def _descend(
    operator: Operator,
    y: Array,
    start: Weights,
    descent: Descent,
    watch: Watch,
    observe: Callable[[int, Weights], None] | None,
) -> Recovered:
    depth = len(start)
    rate = descent.rate or stable_rate(operator, y, start, descent.alpha, descent.momentum)
    scales = [(descent.alpha if l in (0, depth - 1) else 1.0) / operator.count for l in range(depth)]
    weights, velocity = [weight + 0 for weight in start], [weight * 0.0 for weight in start]
    iteration, halvings, growth = 0, 0, _Growth()
    follows = watch.held_out is not None and start[0].shape[0] < min(operator.shape)
    while True:
        below = _chain(weights[:-1])  # below[l] = W_l ⋯ W_1
        rest = operator.push(weights[-1], below[-1]) - y
        if iteration % watch.rules.every == 0 or iteration >= watch.rules.max_iter:
            size = norm(rest)
            if descent.rate is None and halvings < HALVINGS and not size < 1.5 * watch.size:
                rate, halvings, iteration = rate / 2, halvings + 1, iteration + 1
                weights, velocity = [weight + 0 for weight in start], [weight * 0.0 for weight in start]
                watch.restart()
                continue
            if observe is not None:
                observe(iteration, weights)
            growing = follows and math.isfinite(size) and growth.seen(weights[0])
            if watch.look(iteration, (weights[-1], below[-1]), size, growing=growing):
                break
            narrower = _pruned(weights, below, descent) if descent.prune and size < descent.prune * watch.size else None
            if narrower is not None:
                weights, velocity = narrower, [weight * 0.0 for weight in narrower]
                continue
        gradients = _gradients(operator.adjoint(rest), weights, below)
        moves = [-(rate * scale) * new for scale, new in zip(scales, gradients, strict=True)]
        if descent.momentum:
            moves = [descent.momentum * old + move for old, move in zip(velocity, moves, strict=True)]
            velocity = moves
        weights = [weight + move for weight, move in zip(weights, moves, strict=True)]
        iteration += 1
    return recovered(watch.taken, watch)


class _Growth:
    """Whether some direction of a narrow network is growing from one look to the next.

    Directions are learned one after another: between two of them the residual rests, and the next one grows unseen.
    """

    def __init__(self) -> None:
        self._sizes: np.ndarray | None = None

    def seen(self, weight: Array) -> bool:
        """By the singular values of the first factor ``weight`` (k, n)."""
        before, self._sizes = self._sizes, np.linalg.svd(numpy(weight), compute_uv=False)
        return before is not None and len(before) == len(self._sizes) and bool((self._sizes > GROWS * before).any())


def _chain(weights: Weights) -> Weights:
    products = [weights[0]]
    for weight in weights[1:]:
        products.append(weight @ products[-1])
    return products


def _gradients(image: Array, weights: Weights, below: Weights) -> Weights:
    """∂ℓ/∂W_l = (W_L ⋯ W_{l+1})ᵀ A*(rest) (W_{l−1} ⋯ W_1)ᵀ, from the thin sides inwards."""
    gradients = [image @ below[-1].T]
    above = weights[-1].T @ image  # (W_L ⋯ W_{l+1})ᵀ A*(rest): (k, n)
    for l in range(len(weights) - 2, 0, -1):
        gradients.append(above @ below[l - 1].T)
        above = weights[l].T @ above
    gradients.append(above)
    return gradients[::-1]
