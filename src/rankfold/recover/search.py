"""Our default: the rank is found while the matrix is, then all of it is solved by Gauss–Newton.

The rank grows by those singular pairs of what the residual leaves that stand out from noise, all at once, or by a few
where none does; a few cheap Gauss–Newton steps follow at each rank, as deep linear networks learn (incrementally) and
without their small rates. A part of the measurements is held out; the rank at which those are met best is taken, and
the matrix is finished on all measurements. An over-large bound on the rank costs nothing, because ranks far above the
true one are never visited; the start is never poor, because each rank starts from the solution of the one before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from rankfold.recover.arrays import Array, dot, like, norm, normal, numpy
from rankfold.recover.operators import Operator, surrogate
from rankfold.recover.outcome import Progress, Recovered, Rules, Watch, recovered
from rankfold.recover.tangent import Point, joined, krylov, residual, step

HELD_OUT = 0.05  # of the measurements, while the rank is sought
ENOUGH, AT_MOST = 200, 0.1  # but so many, where that is no more than a tenth
FEWEST = 20  # held-out measurements that say anything
PATIENCE = 5  # larger ranks looked at without gain: of nearly equal singular values the first few gain nothing
WORSE = 1.2  # held-out error over the best that ends the search then, and
SPENT = 1 / 3  # degrees of freedom over measurements that do: before, the gain may still be to come
GAIN = 0.995  # held-out error that counts as better
FALL = 0.85  # residual after a step that is worth another one at the same rank
AT_FIRST, BLOCKS = 4, 6  # singular pairs looked at first, more if all of them stand out; power steps to find them
NOTHING = 0.9  # relative held-out error from which next to nothing was found
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


def recover(
    operator: Operator,
    y: Array,
    search: Search,
    rules: Rules,
    *,
    seed: int = 0,
    held_out: tuple[Operator, Array] | None = None,
    progress: Progress | None = None,
) -> Recovered:
    """X of low rank with A(X) = y, its rank found between 1 and ``search.max_rank``.

    ``held_out``: measurements to judge the rank by; without them a twentieth of y is set aside for the search and used
    again at the end. Cost: about 100 to 300 products of thin factors at the size of the problem, each O(count · k).
    """
    rng = np.random.default_rng(seed)
    part, part_y, judge = operator, y, held_out
    count = int(max(HELD_OUT * operator.count, min(ENOUGH, AT_MOST * operator.count)))
    if held_out is None and count >= FEWEST:
        part, part_y, judge = _apart(operator, y, count, rng)
    watch = Watch("recovering", operator, y, rules, held_out, progress)
    found, history = grow(part, part_y, judge, search, rules, rng, progress)
    if history[-1].training <= rules.tol and not search.exact:
        found = smallest(operator, y, found, search, rules.tol * watch.size)
    x, spent = finish(operator, y, found, search, watch)
    result = recovered((x.left, x.v), watch, cut=max(rules.tol, 1e-8) if watch.converged else 0.0)
    return _explained(result, operator, history, search, spent)


def _apart(operator: Operator, y: Array, count: int, rng: np.random.Generator) -> tuple[Operator, Array, tuple]:
    order = rng.permutation(operator.count)
    part, take = operator.part(order[count:])
    judge, take_judge = operator.part(order[:count])
    return part, take(y), (judge, take_judge(y))


@dataclass(frozen=True)
class Grown:
    """What was seen at each rank: relative residual of the measurements used, and of those held out."""

    rank: int
    training: float
    validation: float
    squares: Array | None = None  # of the held-out residuals


def grow(
    operator: Operator,
    y: Array,
    judge: tuple[Operator, Array] | None,
    search: Search,
    rules: Rules,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> tuple[Point, list[Grown]]:
    """The matrix at the best rank, roughly solved, and what was seen on the way."""
    bound = min(search.max_rank, *operator.shape)
    size, judged = norm(y) or 1.0, 1.0 if judge is None else norm(judge[1]) or 1.0
    x = _fitted(operator, y, _next(operator, y, 1, bound, rng))
    best, best_x, since = math.inf, x, 0
    seen: list[Grown] = []
    while True:
        x, rest = _settle(operator, y, x, search, rules.tol * size)
        training = norm(rest) / size
        missed = None if judge is None else residual(*judge, x)
        validation = training if missed is None else norm(missed) / judged
        seen.append(Grown(x.rank, training, validation, None if missed is None else missed**2))
        if progress is not None:
            progress("finding the rank", x.rank, bound)
        if validation < GAIN * best or search.exact:
            best, best_x, since = validation, x, 0
        else:
            since += 1
        solved = training <= rules.tol and not search.exact
        if solved or x.rank >= bound or _hopeless(operator, x.rank, since, validation > WORSE * best):
            break
        x = joined(x, _fitted(operator, rest, _next(operator, rest, max(1, x.rank // 5), bound - x.rank, rng)))
    if progress is not None:
        progress("finding the rank", bound, bound)
    if judge is not None and not search.exact and seen[-1].training > rules.tol:
        rank = _simplest(seen, judge[0].count)
        if rank < best_x.rank:
            best_x, _ = _settle(operator, y, best_x.cut(rank), search, rules.tol * size)
    return best_x, seen


def _hopeless(operator: Operator, rank: int, since: int, worse: bool) -> bool:
    m, n = operator.shape
    return since >= PATIENCE and (worse or rank * (m + n - rank) > SPENT * operator.count)


def _simplest(seen: list[Grown], count: int) -> int:
    """The smallest rank whose held-out error is within one standard error of the best, entry by entry compared."""
    best = min(seen, key=lambda one: one.validation)
    for one in sorted(seen, key=lambda one: one.rank):
        if one.squares is None or best.squares is None:
            break
        worse = one.squares - best.squares
        mean = float(worse.sum()) / count
        spread = max(float((worse**2).sum()) / count - mean**2, 0.0) ** 0.5
        if mean <= spread / count**0.5:
            return one.rank
    return best.rank


def _next(operator: Operator, rest: Array, least: int, most: int, rng: np.random.Generator) -> Point:
    """The leading singular pairs of what ``rest`` leaves: all that stand out, at least ``least`` and at most ``most``.

    With random signs in front of the measurements nothing is left of them but noise as large as theirs; what is larger
    than all of it stands out. One at a time would be slow, and wrong where many are nearly equal: any mixture of them
    is as good a pair as they are, and the steps that follow would fit it.
    """
    n = operator.shape[1]

    def pairs(measurements: Array, width: int) -> Point:
        seed = normal((n, min(n, width + 4)), rng, rest)
        return krylov(surrogate(operator, measurements), width, seed, BLOCKS)

    signs = like(1.0 - 2.0 * rng.integers(0, 2, tuple(rest.shape)), rest)
    width = min(most, max(least, AT_FIRST))
    noise = float(pairs(rest * signs, width).s[0])
    while True:
        found = pairs(rest, width)
        outstanding = int((numpy(found.s) > noise).sum())
        if outstanding < width or width == most:
            return found.cut(min(most, max(least, outstanding)))
        width = min(most, 4 * width)


def _fitted(operator: Operator, rest: Array, more: Point) -> Point:
    """``more`` times the factor that takes most from ``rest``: a vector that lives on few rows is over-estimated
    else."""
    image = operator.push(more.left, more.v)
    factor = dot(image, rest) / max(dot(image, image), 1e-300)
    return Point(more.u, more.s * factor, more.v)


def _settle(operator: Operator, y: Array, x: Point, search: Search, enough: float) -> tuple[Point, Array]:
    """Steps at one rank for as long as they gain: below the true rank two or three, at it until the residual is
    ``enough``."""
    rest, damping, fall, most = residual(operator, y, x), 0.0, 1.0, search.inner
    size = norm(y)
    for _ in range(search.rounds):
        before = norm(rest)
        if before <= enough:
            break
        inner, tol = (most, 0.1) if fall > 0.2 else (search.last, max(1e-4, min(0.1, before / size)))
        x, rest, damping, used = step(operator, y, x, rest, iterations=inner, tol=tol, damping=damping)
        fall = norm(rest) / before
        if used >= most:  # it was this bound that ended the step
            most = min(2 * most, search.last)
        if fall > FALL:
            break
        if not search.exact:
            x, rest = _sparer(operator, y, x, rest, FALL * before)
    return x, rest


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
        trial, rest = _settle(operator, y, x.cut(int(gap) + 1), search, enough)
        if norm(rest) <= enough:
            return smallest(operator, y, trial, search, enough)
    return x


def finish(operator: Operator, y: Array, x: Point, search: Search, watch: Watch) -> tuple[Point, int]:
    """Gauss–Newton on all measurements until the rules of ``watch`` say stop; singular values that die are dropped."""
    rest, damping, spent, iteration = residual(operator, y, x), 0.0, 0, 0
    while not watch.look(iteration, (x.left, x.v), norm(rest)):
        before = norm(rest)
        tol = max(1e-4, min(0.1, before / watch.size))
        x, rest, damping, used = step(operator, y, x, rest, iterations=search.last, tol=tol, damping=damping)
        spent, iteration = spent + used, iteration + 1
        alive = _alive(x)
        if not search.exact and alive < x.rank and norm(rest) < 0.1 * watch.size:
            x = x.cut(alive)
            rest = residual(operator, y, x)
        if norm(rest) > (1 - 1e-3) * before and used < search.last:
            watch.look(iteration, (x.left, x.v), norm(rest))
            watch.stop(
                True, f"least squares solved at rank {x.rank}: the residual rests at {norm(rest) / watch.size:.3g}"
            )
            break
    return x, spent


def _alive(x: Point) -> int:
    """How many singular values are not on their way to zero: those before a fall to less than a thousandth."""
    s = numpy(x.s)
    falls = np.flatnonzero(s[1:] < 1e-3 * s[:-1])
    return int(falls[0]) + 1 if len(falls) else len(s)


def _explained(result: Recovered, operator: Operator, seen: list[Grown], search: Search, spent: int) -> Recovered:
    m, n = operator.shape
    k = result.rank
    freedom = k * (m + n - k)
    judged = min((one.validation for one in seen if one.rank >= 1), default=math.nan)
    reason = f"rank {k}; {result.reason}"
    converged = result.converged
    if freedom >= operator.count:
        converged = False
        reason += (
            f". {operator.count} measurements are no more than the {freedom} degrees of freedom of rank {k}: "
            "they do not determine the matrix"
        )
    elif judged > NOTHING and not search.exact:
        converged = False
        reason += f". Held-out measurements are missed by {judged:.0%} of their size: too few of them, or only noise"
    return replace(
        result,
        reason=reason,
        converged=converged,
        validation_error=judged if math.isnan(result.validation_error) else result.validation_error,
    )
