"""How far from the optimum a point of a convex program can be at most: primal and dual values.

Both programs of "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks" read, for an orthonormal
basis U of the inputs' column space,

    minimise F(UB)   over ‖B‖_* ≤ τ, |UB| ≤ α entrywise,

F a sum of convex losses of single entries. For *any* matrix Q, −Σ max_{|s|≤α}(−Q s − F(s)) − τ‖UᵀQ‖₂ is at most the
optimum, and any feasible B gives at least it. So the difference of the two is a certificate: nothing that the solver
did has to be trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg.brief import brief
from rankfold.linalg.decompositions import checked, singular_values, svd
from rankfold.linalg.on_data.regression import ColumnSpace, column_space
from rankfold.linalg.programs.entrywise import Loss, Squares, Tobit, conjugate
from rankfold.linalg.programs.proximal import check_radius


@dataclass(frozen=True, eq=False)
class ProgramFit:
    """Z = left right, (m, r) and (r, n) float64, feasible, with what is known about it.

    `primal`: the objective there. `dual`: a value that no feasible point can be below. `gap`: (primal − dual) over the
    primal, at least 0. For the Tobit loss both are σ² times the negative log-likelihood. `message` says why it stopped.
    """

    left: Tensor
    right: Tensor
    primal: float
    dual: float
    gap: float
    iterations: int
    converged: bool
    message: str

    __repr__ = brief

    @property
    def weight(self) -> Tensor:
        return self.left @ self.right

    @property
    def rank(self) -> int:
        return self.left.shape[1]


@dataclass(frozen=True, eq=False)
class Program:
    """minimise F(UB) over ‖B‖_* ≤ `radius` and |UB| ≤ `bound`, in coordinates B (k, m). Made by `program`."""

    space: ColumnSpace
    loss: Loss
    radius: float
    bound: float
    zero: Tensor  # (N, m)

    def objective(self, outputs: Tensor) -> float:
        return float(self.loss.values(outputs).sum())

    def feasible(self, b: Tensor) -> tuple[Tensor, float]:
        """A point of the nuclear ball shrunk into the box, and the objective there."""
        outputs = self.space.basis @ b
        largest = float(outputs.abs().max())
        if largest <= self.bound:
            return b, self.objective(outputs)
        part = self.bound / largest
        return part * b, self.objective(part * outputs)

    def lower_bound(self, q: Tensor, at: Tensor | None = None) -> float:
        """The dual value of any Q (N, m), or less; `at`: outputs where its maxima are thought to be attained."""
        spectral = float(singular_values(self.space.basis.mT @ q)[0])
        return -float(conjugate(self.loss, -q, self.bound, at).sum()) - self.radius * spectral

    def relative(self, primal: float, dual: float) -> float:
        """The gap over the primal value; never below zero, where rounding would have it so."""
        # an optimum of zero has no relative gap: below 1e-9 of the objective at zero, that is the measure
        return max(primal - dual, 0.0) / max(abs(primal), 1e-9 * self.objective(self.zero), 1e-300)


def program(x: Tensor, y: Tensor, radius: float, bound: float, sigma: float | None) -> Program:
    """The program for inputs x (N, n) and data y (N, m): squares if `sigma` is None, else Tobit.

    Raises `ValueError` for a radius or a bound that is not above 0, rows that do not match, and inputs that are all
    zero; as `checked`.
    """
    x, y = checked(x), checked(y)
    check_radius(radius)
    if not bound > 0:
        raise ValueError(f"the bound on the entries must be above 0, got {bound:g}")
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 1 or y.shape[1] < 1:
        raise ValueError(
            f"inputs and targets must have equally many rows, at least one, and columns, got shapes {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    loss: Loss = Squares(y) if sigma is None else Tobit(y, sigma)
    space = column_space(x)
    if space.basis.shape[1] == 0:
        raise ValueError(f"all {len(x)} rows of the inputs are zero, so that nothing can be fitted")
    # no row of U B is longer than ‖B‖₂ ≤ ‖B‖_* times that of U: the nuclear ball has a box of its own
    implied = radius * float(space.basis.norm(dim=1).max())
    return Program(space, loss, radius, min(bound, implied), torch.zeros_like(y))


@dataclass
class Certificate:
    """The best primal and dual values so far; each stays valid whatever comes later."""

    program: Program
    point: Tensor
    primal: float = math.inf
    dual: float = -math.inf

    def see(self, b: Tensor, dual: float) -> float:
        """Take in a point of the nuclear ball and a dual value; the relative gap now."""
        b, primal = self.program.feasible(b)
        if primal < self.primal:
            self.point, self.primal = b, primal
        self.dual = max(self.dual, dual)
        return self.gap

    @property
    def gap(self) -> float:
        return self.program.relative(self.primal, self.dual)

    def fit(self, iterations: int, tolerance: float) -> ProgramFit:
        """The best point as factors of a weight."""
        converged = self.gap <= tolerance
        reached = f"after {iterations} iterations the relative duality gap is {self.gap:.2g}"
        u, s, vh = svd(self.point)
        rank = int((s > 1e-12 * s[:1]).sum())
        right = s[:rank].unsqueeze(-1) * (self.program.space.back @ u[:, :rank]).mT
        message = reached if converged else f"not converged: {reached}, above the tolerance {tolerance:g}"
        return ProgramFit(vh[:rank].mT, right, self.primal, self.dual, self.gap, iterations, converged, message)
