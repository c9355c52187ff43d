"""Which rank noise allows, where measurements are too few to spare a part of them: each is held out once.

Residuals alone would not tell: one pair more fits of n noisy measurements not its share of degrees of freedom, but the
largest pair of the noise, up to twice as much. Held-out measurements pay for that.
"""

from __future__ import annotations

import math

import numpy as np

from rankfold.recover.measurements.arrays import Array, norm, numpy
from rankfold.recover.measurements.operators import Operator
from rankfold.recover.solvers.growth import Grown, Search, grow, paired, settle, simplest
from rankfold.recover.solvers.outcome import Progress, Rules
from rankfold.recover.solvers.tangent import Point, residual

FOLDS = 10
FEWEST = 4  # measurements of which some can be held out


def cross_validated(
    operator: Operator,
    y: Array,
    ranks: list[int],
    search: Search,
    rules: Rules,
    rng: np.random.Generator,
    held_out: int,
    progress: Progress | None = None,
) -> tuple[Point, list[Grown]]:
    """The matrix of the rank among ``ranks`` that held-out measurements vouch for, and what was seen at each.

    As many of ``FOLDS`` parts as have ``held_out`` measurements are held out in turn, all of them where there are
    fewer. The smallest rank within one standard error of the best is taken; of the matrices from each fold and from
    all measurements the one that meets all best, since with few measurements some starts end in a poor place. Cost: one
    search a fold.
    """
    parts = np.array_split(rng.permutation(operator.count), min(FOLDS, operator.count))
    parts = parts[: math.ceil(held_out / len(parts[0]))]
    size, held_y = norm(y) or 1.0, []
    squares: dict[int, list[np.ndarray]] = {rank: [] for rank in ranks}
    starts: dict[int, list[Point]] = {rank: [] for rank in ranks}
    for number, held in enumerate(parts):
        if progress is not None:
            progress("cross-validating the rank", number, len(parts))
        part, take = operator.part(np.setdiff1d(np.arange(operator.count), held))
        judge, take_judge = operator.part(held)
        judge_y = take_judge(y)
        held_y.append(numpy(judge_y).reshape(-1) ** 2)
        for rank, x in zip(ranks, _visited(part, take(y), ranks, search, rules, rng), strict=True):
            squares[rank].append(numpy(residual(judge, judge_y, x)).reshape(-1) ** 2)
            starts[rank].append(x)
    joint = {rank: np.concatenate(found) for rank, found in squares.items()}
    count = sum(map(len, parts))
    rank = simplest(joint, min(joint, key=lambda one: float(joint[one].sum())), count)
    if progress is not None:
        progress("cross-validating the rank", len(parts), len(parts))
    starts[rank].append(grow(operator, y, None, Search(rank, exact=True), rules, rng)[0])
    ends = [settle(operator, y, x, search, rules.tol * size) for x in starts[rank]]
    x, rest = min(ends, key=lambda one: norm(one[1]))
    whole = np.concatenate(held_y)
    mean, error = paired(whole - joint[rank], count)
    validation = (float(joint[rank].sum()) / (float(whole.sum()) or 1.0)) ** 0.5
    return x, [Grown(rank, norm(rest) / size, validation, validation, gain=mean / max(error, 1e-300))]


def _visited(
    operator: Operator, y: Array, ranks: list[int], search: Search, rules: Rules, rng: np.random.Generator
) -> list[Point]:
    """The matrix at each of the ascending ``ranks``, from the one before or the one after, whichever is better."""
    found: list[Point] = []
    for rank in ranks:
        start = found[-1] if found else None
        found.append(grow(operator, y, None, Search(rank, exact=True), rules, rng, start=start)[0])
    enough = rules.tol * (norm(y) or 1.0)
    for at in reversed(range(len(found) - 1)):
        other, rest = settle(operator, y, found[at + 1].cut(ranks[at]), search, enough)
        if norm(rest) < norm(residual(operator, y, found[at])):
            found[at] = other
    return found
