"""From what errors cost at a few ranks to the ratio of cost and price at every rank.

Between ranks the logarithm of the ratio is linear in that of the error, and a direction less never costs less than one
would think without it (``_growing``). The ratio is drawn towards one by the share of noise in it, and is one below two
standard errors: whoever chooses ranks by noise chooses what was underestimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SURE = 2.0  # standard errors that a logarithm must exceed to count at all
_NOTHING = 1e-12  # shares of the energy below which no ratio is taken
_BOUND = 1e4


@dataclass(frozen=True)
class Point:
    """At ``rank`` the cost of the error to second order; ``noise``: its relative standard error."""

    rank: int
    cost: float
    noise: float


def ratios(errors: Tensor, price: Tensor, points: Sequence[Point]) -> Tensor:
    """(k + 1,) cost over price at every rank, from a few ``points``: ``errors`` and ``price`` are of rank 0..k."""
    usable = [p for p in points if float(price[p.rank]) > _NOTHING * float(price[0]) and p.cost > 0]
    if not usable:
        return torch.ones_like(price)
    logs = np.array([np.log(p.cost / float(price[p.rank])) for p in usable])
    signal, noise = float(np.square(logs).mean()), float(np.mean([min(p.noise, 1.0) ** 2 for p in usable]))
    logs = logs * max(0.0, 1 - SURE**2 * noise / signal) if signal > 0 else logs
    at = np.log([max(float(errors[p.rank]), 1e-300) for p in usable])
    order = np.argsort(at)
    between = np.interp(np.log(np.maximum(errors.numpy(), 1e-300)), at[order], logs[order])
    return torch.from_numpy(_growing(price.numpy(), np.clip(np.exp(between), 1 / _BOUND, _BOUND)))


def _growing(price: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """``ratio``, raised where a direction less would add less than its own price, or than that times the ratio so far
    where this is below one. The cost of a large error may vanish to second order and is large for all that: behind a
    normalisation a layer that gives next to nothing is taken for one that is scaled."""
    found = ratio.copy()
    for rank in range(len(price) - 2, -1, -1):
        if price[rank] > 0:
            more = (price[rank] - price[rank + 1]) * min(1.0, found[rank + 1])
            found[rank] = max(ratio[rank], (price[rank + 1] * found[rank + 1] + more) / price[rank])
    return found
