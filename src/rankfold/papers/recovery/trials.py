"""One planted problem of each recovery theorem: what was found, and what theory said beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.linalg import least_squares, nuclear_max_norm, project
from rankfold.linalg.on_data.regression import column_space
from rankfold.linalg.programs.entrywise import Tobit
from rankfold.linalg.recovery_bounds import (
    constrained_mse_bound,
    constrained_mse_rate,
    mse_bound,
    mse_expected,
    relu_curvature,
    relu_mse_rate,
)

_GAP = 1e-3  # relative duality gap: an error of 1e-3 of the objective is far below the differences that are shown
_DRAWS = 20


@dataclass(frozen=True)
class Planted:
    """``rows`` inputs of width ``inputs``, normal; a weight of ``rank`` with outputs of variance one; noise
    ``sigma``."""

    rows: int = 400
    inputs: int = 20
    outputs: int = 30
    rank: int = 3
    sigma: float = 0.3
    largest: float | None = None

    def draw(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (N, n), true outputs (N, m), and standard normal noise (N, m)."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        x, left, right = normal(self.rows, self.inputs), normal(self.inputs, self.rank), normal(self.rank, self.outputs)
        truth = x @ left @ right
        scale = math.sqrt(self.inputs * self.rank) if self.largest is None else float(truth.abs().max()) / self.largest
        return x, truth / scale, normal(self.rows, self.outputs)


@dataclass(frozen=True)
class Trial:
    """Mean squared errors: ``measured``, ``ours`` (for theorem 3.1 what is expected, else a bound), the ``paper``'s
    bound.

    ``sentence``: of a program that did not converge.
    """

    measured: float
    ours: float
    paper: float
    sentence: str = ""


def strong(planted: Planted, seed: int) -> Trial:
    """Theorem 3.1: the best fit of the true rank, Gaussian noise; the mean of 20 draws, since it costs nothing.

    The paper's bound with its constants, at 99 %.
    """
    errors = []
    for number in range(_DRAWS):
        x, truth, noise = planted.draw(_DRAWS * seed + number)
        gram, cross = x.mT @ x, x.mT @ (truth + planted.sigma * noise)
        left, right = project(least_squares(gram, cross), inputs=gram).factors(planted.rank)
        errors.append(_mse(x @ (left @ right).mT, truth))
    shape = (planted.rank, planted.sigma, planted.rows, planted.inputs, planted.outputs)
    return Trial(sum(errors) / _DRAWS, mse_expected(*shape), mse_bound(*shape))


def bounded(planted: Planted, seed: int) -> Trial:
    """Theorem 4.4: squares under both constraints, as tight as the truth allows; noise uniform, of deviation sigma."""
    x, truth, normal = planted.draw(seed)
    most = math.sqrt(3) * planted.sigma
    noise = most * (2 * torch.special.ndtr(normal) - 1)
    return _constrained(planted, x, truth, truth + noise, noise, None, most)


def relu(planted: Planted, seed: int) -> Trial:
    """Theorem 4.9: the ReLU of outputs with Gaussian noise, under both constraints."""
    x, truth, normal = planted.draw(seed)
    data = (truth + planted.sigma * normal).clamp_min(0)
    slopes = Tobit(data, planted.sigma).slopes(truth)
    return _constrained(planted, x, truth, data, slopes, planted.sigma, math.nan)


def _constrained(
    planted: Planted, x: Tensor, truth: Tensor, data: Tensor, slopes: Tensor, sigma: float | None, most: float
) -> Trial:
    rows, m = truth.shape
    radius, bound = float(torch.linalg.matrix_norm(truth, "nuc")), float(truth.abs().max())
    fit = nuclear_max_norm(x, data, radius=radius, bound=bound, sigma=sigma, tolerance=_GAP)
    slope = float(torch.linalg.matrix_norm(column_space(x).basis.mT @ slopes, 2))
    curvature = 1.0 if sigma is None else relu_curvature(bound, sigma)
    # the rank that Definition 4.1 gives the truth, so that its radius is the one that was used
    rank = radius**2 / (bound**2 * rows * m)
    if sigma is None:
        paper = constrained_mse_rate(bound, most, rank, rows, m)
    else:
        paper = relu_mse_rate(bound, sigma, rank, rows, m)
    ours = constrained_mse_bound(radius, slope, rows, m, curvature)
    return Trial(_mse(x @ fit.weight.mT, truth), ours, paper, "" if fit.converged else f"{planted}: {fit.message}")


def _mse(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).square().mean())


@dataclass(frozen=True)
class Theorem:
    """A theorem with its problem: what is planted where nothing is varied, and what stands in the column "ours"."""

    name: str
    trial: Callable[[Planted, int], Trial]
    base: Planted
    ours: str
    paper: str


THEOREMS = (
    Theorem("3.1", strong, Planted(), "expected", "bound, 99 %"),
    Theorem("4.4", bounded, Planted(largest=1.0), "our bound", "paper, C = 1"),
    Theorem("4.9", relu, Planted(largest=1.0, sigma=0.5), "our bound", "paper, C = 1"),
)
