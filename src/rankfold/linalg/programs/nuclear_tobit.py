"""The Tobit loss in the ball of the nuclear norm: theorem 4.9 without the bound on single entries, by FISTA.

    minimise F(X Zᵀ)   over ‖X Zᵀ‖_* ≤ τ

F is 1-smooth in an orthonormal basis of the inputs, whatever σ, so that steps of length one need no search.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankfold.linalg.programs.certificate import Certificate, ProgramFit, program
from rankfold.linalg.programs.proximal import project_nuclear_ball

_EVERY = 10  # iterations between certificates


def nuclear_tobit(
    x: Tensor, y: Tensor, *, radius: float, sigma: float, iterations: int = 5000, tolerance: float = 1e-4
) -> ProgramFit:
    """The solution for inputs `x` (N, n) and activations `y` (N, m), to a relative duality gap of `tolerance`.

    `y` > 0 is seen as it is, up to noise of deviation `sigma` ≥ 0; y ≤ 0 says that the pre-activation is not positive.
    `radius` τ: of the nuclear norm.

    FISTA with restarts; the certificate is the Frank–Wolfe gap ⟨g, B⟩ + τ‖g‖₂, g the gradient, which bounds the
    distance to the optimum. Some 20 to 70 iterations; more than a thousand where the likelihood is flat. Not converging
    is told in `message`. Cost of an iteration: two products of 2·N·k·m, one SVD of k × m, O(N m); k = rank of x.
    Raises `ValueError` (radius, sigma, shapes, no data) and `NonFiniteError`.
    """
    if iterations < 1 or not 0 <= tolerance < math.inf:
        raise ValueError(f"iterations must be at least 1 and tolerance at least 0, got {iterations} and {tolerance}")
    task = program(x, y, radius, math.inf, sigma)
    basis, loss = task.space.basis, task.loss
    point = project_nuclear_ball(basis.mT @ -loss.slopes(task.zero), radius)
    ahead, momentum = point, 1.0
    found, done = Certificate(task, point), 0
    for done in range(1, iterations + 1):
        before, step = point, basis.mT @ loss.slopes(basis @ ahead)
        point = project_nuclear_ball(ahead - step, radius)
        if float(((ahead - point) * (point - before)).sum()) > 0:
            # the momentum points uphill (O'Donoghue and Candès, 2015)
            momentum, ahead = 1.0, point
        else:
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = point + (momentum - 1) / following * (point - before)
            momentum = following
        if done % _EVERY == 0 or done == iterations:
            outputs = basis @ point
            slope = basis.mT @ loss.slopes(outputs)
            below = float((slope * point).sum()) + radius * float(torch.linalg.matrix_norm(slope, 2))
            if found.see(point, task.objective(outputs) - below) <= tolerance:
                break
    return found.fit(done, tolerance)
