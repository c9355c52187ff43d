"""Scaled gradient descent (Tong, Ma, Chi 2021): each factor's gradient preconditioned by the Gram matrix of the other.

Fast at the exact rank whatever the condition number; above it the Gram matrices are singular and it diverges, unless
they are damped (Xu, Shen, Chi, Ma 2023).
"""

from __future__ import annotations

import numpy as np

from rankfold.recover.measurements.arrays import Array, contiguous, eye, namespace, norm, normal
from rankfold.recover.measurements.operators import Operator, surrogate
from rankfold.recover.solvers.outcome import Recovered, Watch, recovered
from rankfold.recover.solvers.tangent import leading


def scaled_descent(
    operator: Operator, y: Array, rank: int, watch: Watch, *, rate: float = 0.5, damping: float = 0.0, seed: int = 0
) -> Recovered:
    """L ← L − η A*(rest) Rᵀ (R Rᵀ + δ I)⁻¹ / scale and likewise R, from the spectral start.

    ``damping`` δ, relative to the largest singular value of the start.
    """
    n = operator.shape[1]
    x = leading(surrogate(operator, y), rank, normal((n, min(n, rank + 4)), np.random.default_rng(seed), y), passes=4)
    root = x.s**0.5
    left, right = x.u * root, contiguous((x.v.T * root).T)
    solve = namespace(left).linalg.solve
    shift = damping * float(x.s[0]) * eye(rank, left)
    step = rate / operator.scale
    iteration = 0
    while True:
        rest = operator.push(left, right) - y
        if watch.look(iteration, (left, right), norm(rest)):
            break
        image = operator.adjoint(rest)
        try:
            down = solve(right @ right.T + shift, (image @ right.T).T)
            across = solve(left.T @ left + shift, left.T @ image)
        except (np.linalg.LinAlgError, RuntimeError):  # torch's LinAlgError is a RuntimeError
            watch.stop(
                False,
                f"a Gram matrix became singular, as rank {rank} is more than the matrix has: give a lower rank, or "
                "damping",
            )
            break
        left, right = left - step * down.T, right - step * across
        iteration += 1
    return recovered(watch.taken, watch)
