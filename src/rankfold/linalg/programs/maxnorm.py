"""Least squares and the Tobit loss under two bounds: the nuclear norm of the outputs, and each single output.

    minimise F(X Zᵀ)   over ‖X Zᵀ‖_* ≤ τ, |X Zᵀ| ≤ α entrywise

With squares the program of theorem 4.4 and corollary 4.7, with the Tobit loss that of theorem 4.9, of "Theoretical
Guarantees for Low-Rank Compression of Deep Neural Networks" (which writes τ = α √(r N m): with that value the first
bound is usually slack, since the largest entry is far above the mean). Alternating directions, certified.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankfold.linalg.programs.certificate import Certificate, ProgramFit, program
from rankfold.linalg.programs.proximal import project_nuclear_ball

_EVERY = 10  # iterations between certificates
_RELAXED = 1.8
_ADAPTED_UNTIL = 1000  # iterations; with a penalty that never rests, convergence is not proved


def nuclear_max_norm(
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    bound: float = math.inf,
    sigma: float | None = None,
    iterations: int = 5000,
    tolerance: float = 1e-4,
) -> ProgramFit:
    """The solution for inputs `x` (N, n) and outputs `y` (N, m), to a relative duality gap of `tolerance`.

    `radius` τ: of the nuclear norm. `bound` α: of each entry. `sigma`: None for squares of all entries of y; a number
    ≥ 0 for the Tobit loss, in which y ≤ 0 stands for "hidden by the ReLU" (see `entrywise`). Without a bound,
    `nuclear_fit_rows` solves squares exactly and `nuclear_tobit` is faster for the Tobit loss.

    ADMM on B, its copy in the nuclear ball and the outputs in the box, all in an orthonormal basis of the inputs, so
    that no iteration solves a system. The penalty follows the two residuals. Every 10 iterations, the gap. Not
    converging is told in `message`, with the gap that was reached. Deterministic, float64.
    Cost of an iteration: two products of 2·N·k·m, one SVD of k × m, O(N m); k = rank of x. Memory: some N × m arrays.
    Raises `ValueError` (radius, bound, sigma, shapes, no data) and `NonFiniteError`.
    """
    if iterations < 1 or not 0 <= tolerance < math.inf:
        raise ValueError(f"iterations must be at least 1 and tolerance at least 0, got {iterations} and {tolerance}")
    task = program(x, y, radius, bound, sigma)
    basis, loss = task.space.basis, task.loss
    near = project_nuclear_ball(basis.mT @ -loss.slopes(task.zero), radius)
    outputs = (basis @ near).clamp(-bound, bound)
    u, v, rho = torch.zeros_like(near), task.zero, 1.0
    found, done = Certificate(task, near), 0
    for done in range(1, iterations + 1):
        before = near, outputs
        b = (near + u + basis.mT @ (outputs + v)) / 2
        image, b = torch.lerp(outputs, basis @ b, _RELAXED), torch.lerp(near, b, _RELAXED)
        near = project_nuclear_ball(b - u, radius)
        # entrywise and convex: clipping the unbounded minimum gives the bounded one
        outputs = loss.nearest(image - v, rho, outputs).clamp(-bound, bound)
        u, v = u + near - b, v + outputs - image
        if done % _EVERY == 0 or done == iterations:
            if found.see(near, task.lower_bound(rho * v, outputs)) <= tolerance:
                break
            if done <= _ADAPTED_UNTIL:
                primal = _norm(near - b, outputs - image)
                dual = rho * _norm(near - before[0], outputs - before[1])
                factor = min(max(math.sqrt(primal / dual), 0.5), 2.0) if dual > 0 else 2.0
                rho, u, v = rho * factor, u / factor, v / factor
    return found.fit(done, tolerance)


def _norm(a: Tensor, b: Tensor) -> float:
    return math.hypot(float(a.norm()), float(b.norm()))
