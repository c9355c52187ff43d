"""What a recovery found, how it went, and in a sentence why it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rankfold.linalg.brief import brief
from rankfold.recover.measurements.arrays import Array, norm, numpy, rounding
from rankfold.recover.measurements.operators import Operator

Progress = Callable[[str, int, int], None]
Factors = tuple[Array, Array]  # left (m, k), right (k, n)
ROUNDING = 10.0  # times that of the numbers: a residual so small that is not falling falls no further
RESTS = 1e-3  # of itself by which the residual falls less between looks that are on a plateau
NOTHING = 0.99  # relative residual, that of zeros being 1, from which next to nothing was learned


@dataclass(frozen=True)
class Point:
    """``training`` and ``validation``: residual over the norm of the measurements; NaN where there is none."""

    iteration: int
    seconds: float
    training: float
    validation: float
    rank: int


Taken = tuple[Factors, Point]  # factors, and what is known of them


@dataclass(frozen=True, eq=False)
class Recovered:
    """X ≈ left (m, k) @ right (k, n), NumPy, with left = U √Σ and right = √Σ Vᵀ (balanced).

    ``converged`` and ``reason``: whether it is what was asked for, and the sentence that says so.
    """

    left: np.ndarray
    right: np.ndarray
    singular_values: np.ndarray
    converged: bool
    reason: str
    iterations: int
    seconds: float
    training_error: float
    validation_error: float
    history: tuple[Point, ...] = field(repr=False)

    __repr__ = brief

    @property
    def rank(self) -> int:
        return len(self.singular_values)

    @property
    def matrix(self) -> np.ndarray:
        return self.left @ self.right


def recovered(taken: Taken, watch: Watch) -> Recovered:
    """The factors balanced, without singular values of the size of rounding, and the errors of these factors, which
    need not be the last. Cost O((m + n) k²)."""
    factors, point = taken
    left, right = (numpy(factor) for factor in factors)
    q, a = np.linalg.qr(left)
    p, b = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(a @ b.T)
    floor = np.finfo(s.dtype).eps * max(left.shape[0], right.shape[1]) * s[:1].sum()
    k = int((s > floor).sum())
    root = np.sqrt(s[:k])
    return Recovered(
        q @ u[:, :k] * root,
        (p @ vt[:k].T * root).T,
        s[:k],
        watch.converged,
        watch.reason,
        watch.history[-1].iteration,
        watch.seconds(),
        point.training,
        point.validation,
        tuple(watch.history),
    )


@dataclass(frozen=True)
class Rules:
    """When to stop: at a relative residual of ``tol``, where held-out entries have not improved for ``patience`` looks,
    where the residual falls by less than ``stall`` between looks, or after ``max_iter`` iterations. Looks on a plateau,
    where the residual rests while a direction is still growing, do not try the patience.

    A look costs one product and happens every ``every`` iterations.
    """

    tol: float = 1e-10
    max_iter: int = 1000
    every: int = 1
    patience: int = 10
    stall: float = 0.0


class Watch:
    """Follows a solver: keeps the history, tells progress, and says when to stop and why."""

    def __init__(
        self,
        what: str,
        operator: Operator,
        y: Array,
        rules: Rules,
        held_out: tuple[Operator, Array] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.what, self.operator, self.y, self.rules = what, operator, y, rules
        self.held_out, self.progress = held_out, progress
        self.size = norm(y) or 1.0
        self.held_size = 1.0 if held_out is None else norm(held_out[1]) or 1.0
        self.history: list[Point] = []
        self.converged, self.reason = False, ""
        self.finest = ROUNDING * rounding(y)
        self.taken: Taken  # since the first look: the best for held-out entries; without any, the last that was finite
        self.restart()
        self._begun = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    def restart(self) -> None:
        """Judge from here on as at the beginning: what comes is another run, of which nothing is known."""
        self.best = math.inf  # of held-out entries
        self._since = 0

    def look(self, iteration: int, factors: Factors, residual: float | None = None, *, growing: bool = False) -> bool:
        """Record this iterate; True to stop. ``residual``: its norm, where the solver has it already. ``growing``:
        whether a direction is on its way that may not have shown in the residual yet."""
        if residual is None:
            residual = norm(self.operator.push(*factors) - self.y)
        training = residual / self.size
        validation = self.held_error(factors)
        before = self.history[-1].training if self.history else math.inf
        point = Point(iteration, self.seconds(), training, validation, int(factors[0].shape[1]))
        self.history.append(point)
        if self.progress is not None:
            self.progress(self.what, min(iteration, self.rules.max_iter), self.rules.max_iter)
        wild = not math.isfinite(training) or training > 1e6
        better = not wild and (self.held_out is None or validation < self.best)
        if better or len(self.history) == 1:
            self.taken = factors, point
        if better:
            self.best = validation
        plateau = growing and before - training < RESTS * before
        self._since = 0 if better else self._since + (not plateau)
        if wild:
            return self.stop(False, f"diverged after {iteration} iterations: give a smaller rate, or fewer unknowns")
        return self._judge(point, before)

    def held_error(self, factors: Factors) -> float:
        """The relative error on held-out entries, NaN without any."""
        if self.held_out is None:
            return math.nan
        operator, y = self.held_out
        return norm(operator.push(*factors) - y) / self.held_size

    def _judge(self, point: Point, before: float) -> bool:
        rules, training, validation = self.rules, point.training, point.validation
        rounded = before <= training <= self.finest
        if training <= rules.tol or rounded:
            if self.held_out is not None and not validation <= max(1e3 * rules.tol, 1e-2):
                return self.stop(
                    False,
                    f"the measurements are met to {training:.1e}, and held-out ones are missed by {validation:.2g}, "
                    "so that they do not determine a matrix of this rank: give a lower rank, or more measurements",
                )
            least = "as small as rounding allows" if rounded else f"below the tolerance {rules.tol:g}"
            return self.stop(True, f"residual {training:.1e} is {least}")
        if self.held_out is not None and self._since >= rules.patience:
            return self._unheld(training)
        if rules.stall and before - training < rules.stall * before:
            return self.stop(
                True,
                f"steps no longer help, and the measurements are missed by {100 * training:.2g} % of their size: "
                "there is noise, or the matrix is not of this rank",
            )
        if point.iteration >= rules.max_iter:
            return self.stop(
                False,
                f"not converged: the residual is {training:.2g} after {point.iteration} iterations, and the tolerance "
                f"{rules.tol:g}: raise max_iter or the rate, or accept a larger tol",
            )
        return False

    def _unheld(self, training: float) -> bool:
        """End as held-out entries are met no better: a result only where they were met better than by zeros."""
        told = (
            f"the error of held-out entries has not sunk for {self.rules.patience} looks; the least is {self.best:.3g}"
        )
        if max(training, self.best) < NOTHING:
            return self.stop(True, told)
        return self.stop(False, f"{told}, about that of zeros: nothing was learned: raise patience, or lower the rank")

    def stop(self, converged: bool, reason: str) -> bool:
        """End here, for this ``reason``; always True."""
        self.converged, self.reason = converged, reason
        if self.progress is not None:
            self.progress(self.what, self.rules.max_iter, self.rules.max_iter)
        return True
