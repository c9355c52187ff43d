"""A matrix of growing rank: pairs that stand out from noise are added, and a few Gauss–Newton steps follow.

As deep linear networks learn (incrementally), without their small rates. Ranks far above the true one are never visited
where the measurements are met, and the start is never poor: each rank starts from the solution of the one before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rankfold.recover.measurements.arrays import Array, like, norm, numpy
from rankfold.recover.measurements.operators import Operator, entry_counts
from rankfold.recover.solvers.outcome import Progress, Rules
from rankfold.recover.solvers.spectral import outstanding
from rankfold.recover.solvers.tangent import Point, joined, residual, step

PATIENCE = 5  # larger ranks looked at without gain: of nearly equal singular values the first few gain nothing
WORSE = 1.2  # held-out error over the best that ends the search then, and
SPENT = 1 / 3  # degrees of freedom over measurements that do: before, the gain may still be to come
GAIN = 0.995  # held-out error that counts as better
FALL = 0.85  # residual after a step that is worth another one at the same rank
FEW = 1 / 3  # degrees of freedom over measurements from which growing may end in a poor place
CLOSE = 0.02  # relative residual from which barely determined rows are what is slow
ROUGH, FINE = 0.1, 1e-4  # the gradient's fall in a step, at first and at most
SPARE = 0.2  # of the fall of the residual that is asked for
GAP = 3.0  # between neighbouring singular values: what is below may belong to no rank at all


@dataclass(frozen=True)
class Search:
    """``max_rank``: the largest rank considered. ``inner``: conjugate-gradient iterations in a
    step while the residual is large, ``last`` when it falls fast and at the end; ``rounds``: steps at one rank.
    ``exact``: ``max_rank`` is the rank, and no smaller one is tried."""

    max_rank: int
    exact: bool = False
    inner: int = 20
    last: int = 100
    rounds: int = 30


@dataclass(frozen=True)
class Grown:
    """What was seen at each rank: relative residual of the measurements used, and of those held out (NaN: none).

    ``gain``: by how many standard errors those are met better than by the zero matrix. ``determined``: the error of
    those in rows and columns with as many entries as the rank.
    """

    rank: int
    training: float
    validation: float
    determined: float = math.nan
    squares: Array | None = None  # of the held-out residuals
    gain: float = math.inf


def grow(
    operator: Operator,
    y: Array,
    judge: tuple[Operator, Array] | None,
    search: Search,
    rules: Rules,
    rng: np.random.Generator,
    progress: Progress | None = None,
    start: Point | None = None,
) -> tuple[Point, list[Grown]]:
    """The matrix at the best rank, roughly solved, and what was seen on the way, from ``start`` or from nothing."""
    bound = min(search.max_rank, *operator.shape)
    size = norm(y) or 1.0
    x = start if start is not None else outstanding(operator, y, 1, bound, rng)
    best, best_x, since = math.inf, x, 0
    seen: list[Grown] = []
    while True:
        x, rest = settle(operator, y, x, search, rules.tol * size)
        seen.append(look(operator, y, judge, x, rest))
        training = seen[-1].training
        validation = training if judge is None else seen[-1].validation
        if progress is not None:
            progress("finding the rank", x.rank, bound)
        if validation < GAIN * best or search.exact:
            best, best_x, since = validation, x, 0
        else:
            since += 1
        solved = training <= rules.tol and not search.exact
        if solved or x.rank >= bound or _hopeless(operator, x.rank, since, validation > WORSE * best):
            break
        x = joined(x, outstanding(operator, rest, max(1, x.rank // 5), bound - x.rank, rng))
    if progress is not None:
        progress("finding the rank", bound, bound)
    if judge is not None and not search.exact and seen[-1].training > rules.tol:
        rank = _simplest(seen, judge[0].count)
        if rank < best_x.rank:
            best_x, _ = settle(operator, y, best_x.cut(rank), search, rules.tol * size)
    return best_x, seen


def look(operator: Operator, y: Array, judge: tuple[Operator, Array] | None, x: Point, rest: Array) -> Grown:
    """What is seen at ``x``, of which ``rest`` is the residual of the measurements ``y``."""
    training = norm(rest) / (norm(y) or 1.0)
    if judge is None:
        return Grown(x.rank, training, math.nan)
    squares = residual(*judge, x) ** 2
    mean, error = paired(judge[1] ** 2 - squares, judge[0].count)
    validation = float(squares.sum()) ** 0.5 / (norm(judge[1]) or 1.0)
    gain = mean / max(error, 1e-300)
    return Grown(x.rank, training, validation, determined_error(operator, judge, x), squares, gain)


def determined_error(operator: Operator, judge: tuple[Operator, Array], x: Point) -> float:
    """The relative error on held-out measurements: of single entries on those whose row and column have at least as
    many others as ``x`` has ranks, for the rest any vector would do; of all of them where none is left."""
    missed, y = residual(*judge, x), judge[1]
    counts = entry_counts(operator)
    if counts is not None:
        rows, columns = (like((one >= x.rank).astype(np.float64), y) for one in counts)
        kept = judge[0].push(rows[:, None], columns[None, :])
        if norm(kept * y) > 0.0:
            missed, y = kept * missed, kept * y
    return norm(missed) / (norm(y) or 1.0)


def _hopeless(operator: Operator, rank: int, since: int, worse: bool) -> bool:
    return since >= PATIENCE and (worse or freedom(operator, rank) > SPENT * operator.count)


def freedom(operator: Operator, rank: int) -> int:
    """Degrees of freedom r (m + n − r) of the matrices of that rank."""
    m, n = operator.shape
    return rank * (m + n - rank)


def few(operator: Operator, rank: int) -> bool:
    """Whether there are hardly more measurements than degrees of freedom."""
    return freedom(operator, rank) > FEW * operator.count


def barely(operator: Operator, x: Point, training: float) -> bool:
    """Whether rows that are barely determined are what makes steps slow: of few measurements, near the solution.

    Solving each row by its own system from the beginning would end in poor places: a few iterations without are a
    regularisation.
    """
    return training < CLOSE and few(operator, x.rank)


def _simplest(seen: list[Grown], count: int) -> int:
    best = min(seen, key=lambda one: one.validation)
    return simplest({one.rank: one.squares for one in seen if one.squares is not None}, best.rank, count)


def simplest(squares: dict[int, Array], best: int, count: int) -> int:
    """The smallest rank whose held-out error is within one standard error of the ``best``, one by one compared.

    ``squares``: of ``count`` held-out residuals at each rank (zeros beside them do no harm).
    """
    for rank in sorted(squares):
        mean, error = paired(squares[rank] - squares[best], count)
        if mean <= error:
            return rank
    return best


def paired(differences: Array, count: int) -> tuple[float, float]:
    """Mean of ``count`` differences (zeros beside them do no harm), and its standard error."""
    mean = float(differences.sum()) / count
    return mean, (max(float((differences**2).sum()) / count - mean**2, 0.0) / count) ** 0.5


def settle(operator: Operator, y: Array, x: Point, search: Search, enough: float) -> tuple[Point, Array]:
    """Steps at one rank for as long as they gain: below the true rank two or three, at it until the residual is
    ``enough``."""
    rest, damping, fall, most = residual(operator, y, x), 0.0, 1.0, search.inner
    size = norm(y)
    for _ in range(search.rounds):
        before = norm(rest)
        if before <= enough:
            break
        inner, tol = (most, ROUGH) if fall > 0.2 else (search.last, fineness(before / size, enough / before))
        x, rest, damping, used = step(
            operator,
            y,
            x,
            rest,
            iterations=inner,
            tol=tol,
            damping=damping,
            blocks=barely(operator, x, before / (size or 1.0)),
        )
        fall = norm(rest) / before
        if used >= most:  # it was this bound that ended the step
            most = min(2 * most, search.last)
        if fall > FALL:
            break
        if not search.exact:
            x, rest = _sparer(operator, y, x, rest, FALL * before)
    return x, rest


def fineness(residual: float, enough: float) -> float:
    """How far a step is solved: as far as the relative ``residual``, which squares it, but not beyond what is
    ``enough`` of it, or what rounding allows."""
    return min(ROUGH, max(FINE, residual, SPARE * enough))


def _sparer(operator: Operator, y: Array, x: Point, rest: Array, enough: float) -> tuple[Point, Array]:
    """``x`` without what lies below the widest gap of its spectrum, where its residual is ``enough`` then: a singular
    value on its way to zero makes the steps slow."""
    s = numpy(x.s)
    ratios = s[:-1] / np.maximum(s[1:], np.finfo(s.dtype).tiny)
    if len(s) > 1 and ratios.max() >= GAP:
        trial = x.cut(int(ratios.argmax()) + 1)
        left = residual(operator, y, trial)
        if norm(left) <= enough:
            return trial, left
    return x, rest


def smallest(operator: Operator, y: Array, x: Point, search: Search, enough: float) -> Point:
    """The matrix of the smallest rank that meets the measurements too, where the spectrum of ``x`` has a gap.

    A matrix of one rank more than needed meets them as well with anything in the unobserved entries of one row: of all
    solutions the one of the smallest rank is meant.
    """
    s = numpy(x.s)
    ratios = s[:-1] / np.maximum(s[1:], np.finfo(s.dtype).tiny)
    for gap in np.argsort(-ratios):
        if ratios[gap] < GAP:
            break
        trial, rest = settle(operator, y, x.cut(int(gap) + 1), search, enough)
        if norm(rest) <= enough:
            return smallest(operator, y, trial, search, enough)
    return x
