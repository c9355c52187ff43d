"""The authors' problems of C-DLN on matrices, and one network trained on one of them by the paper's descent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankfold.papers.runs import computed
from rankfold.pipeline import Tell
from rankfold.recover import (
    Descent,
    Gaussian,
    Identity,
    Rules,
    Watch,
    compressed_start,
    cosines,
    descend,
    entries,
    wide_start,
)
from rankfold.recover.solvers.deep_linear import Start
from rankfold.run.progress import Progress

Kind = Literal["factorization", "completion", "sensing"]


@dataclass(frozen=True)
class Problem:
    """As in the authors' notebooks; ``width`` r̂ = 2r, ε = 0.01 (their text has 0.001 and, where ``text`` says so, η,
    α)."""

    kind: Kind
    size: int
    rank: int
    rate: float
    alpha: float
    observed: float = 1.0
    depth: int = 3
    scale: float = 1e-2
    steps: int = 25_000
    every: int = 50

    @property
    def width(self) -> int:
        return 2 * self.rank


FACTORIZATION = Problem("factorization", 100, 10, 1.0, 1.0, steps=200_000, every=1000)
FACTORIZATION_TEXT = replace(FACTORIZATION, rate=10.0, alpha=5.0, steps=25_000, every=100)
COMPLETION = Problem("completion", 100, 5, 10.0, 5.0, observed=0.3)
COMPLETION_10 = replace(COMPLETION, rank=10)
SENSING = Problem("sensing", 200, 5, 20.0, 1.0, observed=4000 / 200**2, steps=2000, every=20)
# appendix A.1: η, α, m and the share of entries of the text; its ε = 0.001 but in sensing, where an iteration passes
# over all matrices and ten times as many would be hours
TEXT = replace(FACTORIZATION_TEXT, scale=1e-3, steps=400_000, every=1000)
FACTORIZATION_3 = replace(TEXT, rank=3, rate=5.0, alpha=1.0)
COMPLETION_FIFTH = replace(COMPLETION, observed=0.2, scale=1e-3, steps=400_000, every=1000)
SENSING_2000 = Problem("sensing", 100, 5, 10.0, 2.0, observed=0.2, steps=5_000, every=50)
LOOKS = 2000  # of which singular vectors are kept
TOLERANCE = 1e-6  # of the relative residual, 1e-12 of the loss; beyond it only the width's spare values change


@dataclass(frozen=True)
class Case:
    """One network on one problem: as wide as the matrix, or compressed to r̂."""

    problem: Problem
    wide: bool
    start: Start = "orthogonal"
    seed: int = 0

    @property
    def title(self) -> str:
        p = self.problem
        network = f"wide-{self.start}" if self.wide else f"compressed-alpha{p.alpha:g}"
        return f"{p.kind}-d{p.size}-r{p.rank}-{network}-depth{p.depth}-rate{p.rate:g}"


@dataclass
class Trained:
    """Of one network: what was seen at every look (T of them), and how it ended.

    ``errors`` are relative, of the whole matrix; ``losses`` are ½‖A(X) − y‖² / count, as in the authors' code.
    ``values`` (T', r + 1): singular values of the product; ``left``, ``right`` (T', r): |cosines| of its singular
    vectors with the target's; ``outer`` (T', 2): those of W_L's first left and W_1's first right one with u_1 and v_1.
    """

    iterations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    left: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    right: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    outer: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    reason: str = ""

    @property
    def seconds_each(self) -> float:
        """Of one iteration, without looking."""
        return self.seconds[-1] / max(1, self.iterations[-1])

    def first(self, error: float) -> int | None:
        """The look at which the error was first below ``error``."""
        return _first(self.errors, error)

    def first_loss(self, loss: float) -> int | None:
        """The look at which the loss was first below ``loss``."""
        return _first(self.losses, loss)


def _first(values: Sequence[float], bound: float) -> int | None:
    below = np.flatnonzero(np.array(values) < bound)
    return int(below[0]) if len(below) else None


def small(problem: Problem) -> Problem:
    """The quick form: a fifth of the size, to see that it runs."""
    size, rank = max(16, problem.size // 6), max(1, problem.rank // 5)
    rate = problem.rate * {"sensing": 0.05, "completion": 0.2, "factorization": 1.0}[problem.kind]
    return replace(problem, size=size, rank=rank, rate=rate, observed=max(problem.observed, 0.5), steps=400, every=20)


def target(problem: Problem, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(U, σ, V): r singular values spread over the upper half of a Gaussian matrix's, as the authors draw them."""
    rng = np.random.default_rng(seed)
    u, s, vt = np.linalg.svd(rng.standard_normal((problem.size, problem.size)))
    which = np.arange(problem.rank) * (problem.size // (2 * problem.rank))
    return u[:, which], s[which], vt[which]


def measure(problem: Problem, matrix: np.ndarray, seed: int) -> tuple[Any, np.ndarray]:
    """(operator, measurements). The mean over sensing matrices of deviation 1 / √m has the gradient of the authors' sum
    over ones of deviation 1 / m."""
    rng = np.random.default_rng(seed + 1)
    kind = np.empty(0)
    if problem.kind == "factorization":
        return Identity(matrix.shape, kind), matrix
    count = int(problem.observed * matrix.size)
    if problem.kind == "completion":
        cells = rng.choice(matrix.size, count, replace=False)
        rows, columns = cells // problem.size, cells % problem.size
        return entries(matrix.shape, rows, columns, matrix[rows, columns])
    gaussian = Gaussian((problem.size, problem.size), count, seed, kind, keep=count * matrix.size <= 2**28)
    u, s, vt = np.linalg.svd(matrix)
    r = problem.rank
    return gaussian, gaussian.push(u[:, :r] * s[:r], vt[:r])


def train(case: Case, place: Path, progress: Progress) -> dict[str, Any]:
    """The network by the paper's descent, looked at every ``problem.every`` iterations, as plain values.

    Its seconds are a result: no progress is told meanwhile.
    """
    problem = case.problem
    u, s, vt = target(problem, case.seed)
    matrix = u * s @ vt
    operator, y = measure(problem, matrix, case.seed)
    if case.wide:
        weights = wide_start(operator.shape, problem.depth, problem.scale, case.start, case.seed, matrix)
    else:
        weights = compressed_start(operator, y, problem.width, problem.depth, problem.scale)
    found: dict[str, Any] = {key: [] for key in ("iterations", "seconds", "errors", "values", "left", "right", "outer")}
    size, begun, watching = float(np.linalg.norm(matrix)), time.process_time(), 0.0

    def observe(iteration: int, factors: Sequence[np.ndarray]) -> None:
        nonlocal watching
        before = time.process_time()
        product = factors[0]
        for one in factors[1:]:
            product = one @ product
        found["iterations"].append(iteration)
        found["seconds"].append(before - begun - watching)
        found["errors"].append(float(np.linalg.norm(product - matrix)) / size)
        if len(found["errors"]) <= LOOKS and np.isfinite(product).all():
            a, values, b = np.linalg.svd(product)
            found["values"].append(values[: problem.rank + 1].tolist())
            found["left"].append(cosines([a], u)[0].tolist())
            found["right"].append(cosines([b.T], vt.T)[0].tolist())
            last, first = np.linalg.svd(factors[-1])[0][:, 0], np.linalg.svd(factors[0])[2][0]
            found["outer"].append([abs(float(last @ u[:, 0])), abs(float(first @ vt[0]))])
        watching += time.process_time() - before

    rules = Rules(tol=TOLERANCE, max_iter=problem.steps, every=problem.every)
    watch = Watch("", operator, y, rules, None, None)
    descend(operator, y, weights, Descent(problem.rate, 1.0 if case.wide else problem.alpha), watch, observe)
    losses = [0.5 * (point.training * watch.size) ** 2 / operator.count for point in watch.history]
    return found | {"losses": losses, "reason": watch.reason}


def train_all(cases: Sequence[Case], directory: Path, jobs: int, tell: Tell) -> list[Trained]:
    """Every network trained, or read back from ``directory``; several at a time where ``jobs`` says so."""
    found = computed(cases, train, "recover_networks.train", directory, jobs, tell, _reason)
    return [_read(value) for value in found]


def train_named(cases: Mapping[str, Case], directory: Path, jobs: int, tell: Tell) -> dict[str, Trained]:
    """``train_all`` of cases by name."""
    return dict(zip(cases, train_all(list(cases.values()), directory, jobs, tell), strict=True))


def _reason(value: dict[str, Any]) -> str:
    return value["reason"]


def _read(value: dict[str, Any]) -> Trained:
    arrays = {key: np.array(value[key], dtype=float) for key in ("values", "left", "right", "outer")}
    errors, losses = ([float("nan") if each is None else each for each in value[key]] for key in ("errors", "losses"))
    return Trained(value["iterations"], value["seconds"], errors, losses, **arrays, reason=value["reason"])
