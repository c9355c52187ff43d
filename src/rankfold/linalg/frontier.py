"""A multiple-choice knapsack with one limit, exactly: every sum of costs that no other beats, site after site."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

MANY = 50_000  # sums that are followed from group to group
_AT_ONCE = 1 << 18  # sums that are made at once: some 20 MB for a moment


def frontier(
    losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], limit: float, price: float, room: float
) -> list[int] | None:
    """Of each group the index of one option, with the least total loss at total costs up to ``limit``.

    Kept are only sums of the first groups that can still become the best: no other sum has less of both loss and cost,
    the cheapest of the other groups fit, and loss + ``price``·cost lies at most ``room`` above its least (what ``room``
    is enough says ``rankfold.compress.ranks.program.promising``). None where more than ``MANY`` sums remain, or none.
    Cost: a sort of (sums × options) numbers for each group; memory of five bytes for each sum that remains.
    """
    rest = [*accumulate((float(cost.min()) for cost in reversed(costs)), initial=0.0)][-2::-1]
    sums = np.zeros((3, 1))  # loss, cost, and by how much loss + price·cost lies above its least
    came: list[tuple[np.ndarray, np.ndarray]] = []
    for more, takes, after in zip(losses, costs, rest, strict=True):
        above = more + price * takes
        each = np.stack([more, takes, above - above.min()])
        size = len(more)
        made, origin = np.empty((3, 0)), np.empty(0, dtype=np.int64)
        for first in range(0, sums.shape[1], max(_AT_ONCE // size, 1)):
            some = sums[:, first : first + max(_AT_ONCE // size, 1)]
            here = (some[:, :, None] + each[:, None, :]).reshape(3, -1)
            can = np.flatnonzero((here[1] + after <= limit * (1 + 1e-12)) & (here[2] <= room))
            made = np.concatenate([made, here[:, can]], axis=1)
            origin = np.concatenate([origin, can + first * size])
            best = _undominated(made[0], made[1])
            made, origin = made[:, best], origin[best]
        if not 0 < len(origin) <= MANY:
            return None
        sums = made
        came.append(((origin // size).astype(np.int32), (origin % size).astype(np.min_scalar_type(size))))
    at, picked = sums.shape[1] - 1, []
    for before, option in reversed(came):
        picked.append(int(option[at]))
        at = before[at]
    return picked[::-1]


def _undominated(loss: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Which sums lose less than every cheaper one, the cheapest first; of equal ones the first."""
    order = np.lexsort((loss, cost))
    least = np.minimum.accumulate(loss[order])
    return order[np.concatenate([[True], loss[order][1:] < least[:-1]])[: len(order)]]


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
