"""Our default: the rank is found while the matrix is, then all of it is solved by Gauss–Newton.

The rank grows by those singular pairs of what the residual leaves that stand out from noise, all at once, or by a few
where none does (`growth`). A part of the measurements is held out; the rank at which those are met best is taken, and
the matrix is finished on all measurements. Where they can be met, an over-large bound on the rank costs nothing: the
search ends at the true one. Where they cannot, for noise, a pair must earn its place on held-out measurements; where
one part of them is too small to say, each is held out once (`folds`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from rankfold.recover.measurements.arrays import Array, norm, numpy
from rankfold.recover.measurements.operators import Operator, entry_counts
from rankfold.recover.solvers.folds import FEWEST, cross_validated
from rankfold.recover.solvers.graded import graded
from rankfold.recover.solvers.growth import (
    Grown,
    Search,
    barely,
    determined_error,
    few,
    fineness,
    freedom,
    grow,
    look,
    settle,
    smallest,
)
from rankfold.recover.solvers.outcome import Progress, Recovered, Rules, Watch, recovered
from rankfold.recover.solvers.tangent import Point, residual, step

HELD_OUT = 0.05  # of the measurements, while the rank is sought
ENOUGH, AT_MOST = 200, 0.1  # but so many, where that is no more than a tenth
MANY = 1 << 19  # held-out measurements that say all there is to say
SOME = 20  # held-out measurements that say anything while the search goes on
NOTHING = 0.9  # relative held-out error from which next to nothing was found
NEAR = 0.02  # held-out error from which another way is tried where measurements are few
POOR, BETTER = 0.3, 0.5  # held-out error from which another way is tried, and the part of it that it must reach
NOISE = 2.0  # held-out error over that of the fit up to which noise explains it where measurements are many
WIDEST = 30  # columns of its factors
OVER, LEAST = 5.0, 1e-2  # held-out error over that of the fit, if so large, from which nothing else was learned
AS_WELL = 1.03  # residual without a singular value over that with it up to which it is let go, or
ROUNDING = 10.0  # times that of rounding
SURE = 2.0  # standard errors by which held-out measurements must be met better than by nothing


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
    again at the end. Cost: about 100 to 300 products of thin factors at the size of the problem, each O(count · k);
    ten times that for fewer than 2000 measurements with noise, which are cross-validated.
    """
    rng = np.random.default_rng(seed)
    part, part_y, judge = operator, y, held_out
    count = int(max(min(HELD_OUT * operator.count, MANY), min(ENOUGH, AT_MOST * operator.count)))
    if held_out is None and count >= SOME:
        part, part_y, judge = operator.apart(y, count, rng)
    watch = Watch("recovering", operator, y, rules, held_out, progress)
    found, history = grow(part, part_y, judge, search, rules, rng, progress)
    if judge is not None and history[-1].training > rules.tol:
        found, history = _harder(part, part_y, judge, search, rules, found, history, rng, progress)
    sought = found
    if history[-1].training <= rules.tol and not search.exact:
        found = smallest(operator, y, found, search, rules.tol * watch.size)
    x = finish(operator, y, found, search, watch)
    if judge is not None and x.rank < found.rank:  # what held-out measurements say is to be said of what is returned
        sought, rest = settle(part, part_y, sought.cut(x.rank), search, rules.tol * (norm(part_y) or 1.0))
        history = [look(part, part_y, judge, sought, rest)]
    if held_out is None and watch.history[-1].training > rules.tol and operator.count >= FEWEST and count < ENOUGH:
        ranks = [search.max_rank] if search.exact else list(range(1, history[-1].rank + 1))
        found, history = cross_validated(operator, y, ranks, search, rules, rng, ENOUGH, progress)
        watch = Watch("recovering", operator, y, rules, None, progress)
        x = finish(operator, y, found, search, watch)
        if x.rank < found.rank:
            _, history = cross_validated(operator, y, [x.rank], search, rules, rng, ENOUGH, progress)
    return _explained(_returned(operator, y, x, watch), operator, history, search, rules.tol)


def _harder(
    operator: Operator,
    y: Array,
    judge: tuple[Operator, Array],
    search: Search,
    rules: Rules,
    found: Point,
    history: list[Grown],
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[Point, list[Grown]]:
    """Where held-out measurements are badly missed, other starts, and what was found where those are met far better.

    A falling ridge at the rank that stood out, at one more, and at the largest considered, until one of them is near.
    """

    def missed(x: Point) -> float:
        return determined_error(operator, judge, x)

    before = best = missed(found)
    near = NEAR if few(operator, found.rank) else POOR
    if not few(operator, found.rank) and before < NOISE * norm(residual(operator, y, found)) / (norm(y) or 1.0):
        return found, history
    widest, first = min(search.max_rank, WIDEST), history[0].rank
    for rank in dict.fromkeys([widest] if search.exact else [min(first, widest), min(first + 1, widest), widest]):
        if best < near:
            break
        start = graded(operator, y, rank, rng, missed, progress)
        if start is None:
            break
        x, rest = settle(operator, y, start, search, rules.tol * (norm(y) or 1.0))
        if missed(x) < min(best, BETTER * before):
            best, found = missed(x), x
            history = [*history, look(operator, y, judge, x, rest)]
    return found, history


def finish(operator: Operator, y: Array, x: Point, search: Search, watch: Watch) -> Point:
    """Gauss–Newton on all measurements until the rules of ``watch`` say stop; singular values that die are dropped."""
    rest, damping, iteration = residual(operator, y, x), 0.0, 0
    while not watch.look(iteration, (x.left, x.v), norm(rest)):
        before = norm(rest)
        tol = fineness(before / watch.size, watch.rules.tol * watch.size / before)
        by_rows = barely(operator, x, before / watch.size)
        x, rest, damping, used = step(
            operator, y, x, rest, iterations=search.last, tol=tol, damping=damping, blocks=by_rows
        )
        iteration += 1
        if not search.exact:
            x, rest = _alive(operator, y, x, rest, watch.size)
        if norm(rest) > (1 - 1e-3) * before and used < search.last:
            watch.look(iteration, (x.left, x.v), norm(rest))
            watch.stop(True, f"the best fit of this rank misses what it was given by {_share(norm(rest) / watch.size)}")
            break
    return x


def _share(missed: float) -> str:
    return f"{100 * missed:.2g} % of the whole"


def _returned(operator: Operator, y: Array, x: Point, watch: Watch) -> Recovered:
    """What was found, of which singular values that are small beside the largest are left out where they are not
    needed, with the errors of what is left."""
    s, tol, last = numpy(x.s), watch.rules.tol, watch.history[-1]
    rank = int((s > max(tol, 1e-8) * s[:1].sum()).sum())
    if not watch.converged or rank == x.rank:
        return recovered(((x.left, x.v), last), watch)
    trial, left = _as_well(operator, y, x, residual(operator, y, x), rank, tol * watch.size)
    factors = trial.left, trial.v
    judged = replace(last, training=norm(left) / watch.size, validation=watch.held_error(factors))
    return recovered((factors, judged), watch)


def _as_well(operator: Operator, y: Array, x: Point, rest: Array, rank: int, enough: float) -> tuple[Point, Array]:
    """``x`` cut to ``rank``, and its residual, where that is ``enough`` or about as small as ``rest``; else ``x``."""
    trial = x.cut(rank)
    left = residual(operator, y, trial)
    return (trial, left) if norm(left) <= max(AS_WELL * norm(rest), enough) else (x, rest)


def _alive(operator: Operator, y: Array, x: Point, rest: Array, size: float) -> tuple[Point, Array]:
    """``x`` without singular values on their way to zero, those behind a fall to less than a thousandth, and its
    residual: where the measurements are met as well without them, or as far as rounding allows. Far from zero what a
    matrix varies by is as small beside its mean, and is needed."""
    s = numpy(x.s)
    falls = np.flatnonzero(s[1:] < 1e-3 * s[:-1])
    if not len(falls):
        return x, rest
    enough = ROUNDING * float(np.finfo(s.dtype).eps) * size
    return _as_well(operator, y, x, rest, int(falls[0]) + 1, enough)


def _explained(result: Recovered, operator: Operator, seen: list[Grown], search: Search, tol: float) -> Recovered:
    """``result`` with what its measurements can vouch for."""
    k, count = result.rank, operator.count
    free = freedom(operator, k)
    best = min((one for one in seen if not math.isnan(one.validation)), key=lambda one: one.validation, default=None)
    judged = math.nan if best is None else best.determined
    exact = result.training_error <= tol
    converged, reason = result.converged, f"rank {k}; {result.reason}"
    if free >= count:
        converged = False
        reason += (
            f". {count} measurements are no more than the {free} degrees of freedom of rank {k}: "
            "they do not determine the matrix"
        )
    elif best is not None and judged > max(OVER * result.training_error, LEAST):
        converged = False
        reason += (
            f". {count} measurements for {free} degrees of freedom; held-out ones are missed by {_share(judged)}, "
            "far more than the fitted ones: the measurements do not determine the matrix, or it was not found"
        )
    elif best is not None and (judged > NOTHING or best.gain < SURE):
        converged = False
        reason += (
            f". {count} measurements for {free} degrees of freedom; held-out ones are missed by {judged:.0%} of "
            "their size: there are too few measurements, or there is only noise"
        )
    elif not exact:
        reason += f"; {count} measurements for {free} degrees of freedom"
        reason += "" if best is None else f", held-out ones missed by {_share(judged)}"
    if exact and converged:
        reason += _undetermined(operator, k)
    told = judged if math.isnan(result.validation_error) else result.validation_error
    return replace(result, reason=reason, converged=converged, validation_error=told)


def undetermined(operator: Operator, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows and of the columns with fewer entries than ``rank``; none where measurements are no
    single entries."""
    counts = entry_counts(operator)
    if counts is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.flatnonzero(counts[0] < rank), np.flatnonzero(counts[1] < rank)


def _undetermined(operator: Operator, rank: int) -> str:
    """A sentence on rows and columns that have too few entries of their own."""
    told = []
    for what, which in zip(("row", "column"), undetermined(operator, rank), strict=True):
        if len(which):
            told.append(f"{len(which)} {what} has" if len(which) == 1 else f"{len(which)} {what}s have")
    if not told:
        return ""
    one = len(told) == 1 and told[0].startswith("1 ")
    return f"; {' and '.join(told)} fewer entries than that and {'is' if one else 'are'} not determined"
