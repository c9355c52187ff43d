"""A multiple-choice knapsack with one limit, exactly: every sum of costs that no other beats, site after site."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

MANY = 50_000  # sums at once; with fifty options in a group some 60 MB for a moment


def frontier(
    losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], limit: float, price: float, room: float
) -> list[int] | None:
    """Of each group the index of one option, with the least total loss at total costs up to ``limit``.

    Kept are only sums of the first groups that can still become the best: no other sum has less of both loss and cost,
    the cheapest of the other groups fit, and loss + ``price``·cost lies at most ``room`` above its least (what ``room``
    is enough says ``rankfold.compress.ranks.program.promising``). None where more than ``MANY`` sums remain, or none.
    Cost: a sort of (sums × options) numbers for each group.
    """
    rest = [*accumulate((float(cost.min()) for cost in reversed(costs)), initial=0.0)][-2::-1]
    loss, cost, excess = np.zeros(1), np.zeros(1), np.zeros(1)
    came: list[tuple[np.ndarray, np.ndarray]] = []
    for more, takes, after in zip(losses, costs, rest, strict=True):
        above = more + price * takes
        above = above - above.min()
        sums = [np.add.outer(a, b).ravel() for a, b in ((loss, more), (cost, takes), (excess, above))]
        can = np.flatnonzero((sums[1] + after <= limit * (1 + 1e-12)) & (sums[2] <= room))
        can = can[np.lexsort((sums[0][can], sums[1][can]))]
        if not can.size:
            return None
        least = np.minimum.accumulate(sums[0][can])
        can = can[np.concatenate([[True], sums[0][can][1:] < least[:-1]])]
        if can.size > MANY:
            return None
        loss, cost, excess = (each[can] for each in sums)
        came.append(((can // len(more)).astype(np.int32), (can % len(more)).astype(np.min_scalar_type(len(more)))))
    at, picked = len(loss) - 1, []
    for before, option in reversed(came):
        picked.append(int(option[at]))
        at = before[at]
    return picked[::-1]


def relaxed(losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], limit: float) -> tuple[list[int], float] | None:
    """Of the same problem with mixtures of options: of each group the cheaper of the two that are mixed, as its index,
    and the price of a unit of cost. None where the cheapest of all groups exceed ``limit``.

    Mixed are neighbours on the lower convex hull of (cost, loss); from the cheapest of each group on those steps are
    taken that lessen the loss most for their cost (Sinha and Zoltners 1979), the last in part: its worth is the price.
    Cost: a sort; memory of the hulls alone.
    """
    picked, steps, left = [], [], limit * (1 + 1e-12)
    for group, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        hull = _hull(loss, cost)
        picked.append(hull[0])
        left -= float(cost[hull[0]])
        for here, there in pairwise(hull):
            wider = float(cost[there] - cost[here])
            steps.append((float(loss[here] - loss[there]) / wider, group, there, wider))
    if left < 0:
        return None
    steps.sort(key=lambda step: -step[0])
    for worth, group, there, wider in steps:
        if wider > left:
            return picked, worth
        picked[group], left = there, left - wider
    return picked, 0.0


def _hull(loss: np.ndarray, cost: np.ndarray) -> list[int]:
    """The options on the lower convex hull, the cheapest first; each loses less than the one before."""
    hull: list[int] = []
    for index in np.lexsort((loss, cost)).tolist():
        if hull and loss[index] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and _worth(loss, cost, hull[-2], hull[-1]) <= _worth(loss, cost, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull


def _worth(loss: np.ndarray, cost: np.ndarray, here: int, there: int) -> float:
    return float((loss[here] - loss[there]) / (cost[there] - cost[here]))
