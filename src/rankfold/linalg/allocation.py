"""Ranks of several matrices within one budget, exactly: the least sum of squared tails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rankfold.linalg.frontier import frontier


def least_tails(spectra: Sequence[Tensor], prices: Sequence[int], budget: int) -> list[int]:
    """The ranks, each at least 1, with the least Σ Σ_{i>r} σᵢ² at a total cost Σ price·r of at most ``budget``.

    Squared tails are convex in the rank, so that taking directions by σ²/price is the optimum of the relaxed problem
    and says how far any better choice can be; the sums in between are followed exactly (``frontier``). Where these are
    too many, what was taken by σ²/price stays. ``ValueError`` where rank 1 of each does not fit.
    """
    if sum(prices) > budget:
        raise ValueError(
            f"rank 1 in each of {len(prices)} matrices takes {sum(prices)} numbers, and {budget} are allowed: allow "
            "more"
        )
    squares = [values.double().square().cpu().numpy() for values in spectra]
    losses = [np.append(s[::-1].cumsum()[::-1], 0.0)[1:] for s in squares]
    ranks, critical = _greedy(squares, prices, budget)
    costs = [price * np.arange(1.0, len(loss) + 1) for loss, price in zip(losses, prices, strict=True)]
    least = sum(float((loss + critical * cost).min()) for loss, cost in zip(losses, costs, strict=True))
    known = sum(float(loss[rank - 1]) for loss, rank in zip(losses, ranks, strict=True))
    room = known - (least - critical * budget) + 1e-9 * sum(float(s.sum()) for s in squares)
    found = frontier(losses, costs, float(budget), critical, room)
    return ranks if found is None else [index + 1 for index in found]


def _greedy(squares: Sequence[np.ndarray], prices: Sequence[int], budget: int) -> tuple[list[int], float]:
    """Directions by energy for the price, and the energy for the price of the first that did not fit."""
    offers = sorted(
        ((float(gain) / price, index) for index, (s, price) in enumerate(zip(squares, prices, strict=True))
         for gain in s[1:]),
        reverse=True,
    )  # fmt: skip
    ranks, left, critical, full = [1] * len(squares), budget - sum(prices), 0.0, set[int]()
    for worth, index in offers:
        if index in full:
            continue
        if prices[index] <= left:
            ranks[index], left = ranks[index] + 1, left - prices[index]
            continue
        critical = critical or worth
        full.add(index)
    return ranks, critical
