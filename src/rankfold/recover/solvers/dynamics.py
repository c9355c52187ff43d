"""What theory says of deep linear networks on a fully observed matrix: values by a recursion, learned one after
another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def singular_value_recursion(
    target: np.ndarray, *, depth: int, scale: float, rate: float, alpha: float = 1.0, steps: int
) -> np.ndarray:
    """(steps + 1, k): singular values of the compressed network on ½‖X − M‖², for target values (k,), 0 beyond the
    rank.

    C-DLN, theorem 1, for any α: the outer factors hold a, those between b, X holds a² b^{L−2}; both start at ``scale``.
    Exact for gradient descent from the spectral start. Raises ``ValueError`` for a depth below 2.
    """
    if depth < 2:
        raise ValueError(f"depth must be at least 2 factors, got {depth}")
    target = np.asarray(target, dtype=np.float64)
    a, b = np.full(target.shape, scale), np.full(target.shape, scale)
    values = np.empty((steps + 1, *target.shape))
    for step in range(steps + 1):
        values[step] = a**2 * b ** (depth - 2)
        rest = values[step] - target
        inner = rate * rest * a**2 * b ** (depth - 3) if depth > 2 else 0.0
        a, b = a - alpha * rate * rest * a * b ** (depth - 2), b - inner
    return values


@dataclass(frozen=True)
class Fitted:
    """Component i (0 is the largest) is fitted from look ``at`` on (None: never), while the next was still at its start
    or not (``alone``); from then on its value misses by at most √``c_val`` and its vectors by ``c_vec`` in the
    cosine."""

    index: int
    at: int | None
    c_val: float
    c_vec: float
    alone: bool


def incremental(
    values: np.ndarray, left: np.ndarray, right: np.ndarray, target: np.ndarray, *, within: float = 0.1
) -> list[Fitted]:
    """The times t_i of assumption 1, with the constants that hold from them to the end.

    ``values`` (T, r): singular values at every look; ``left``, ``right`` (T, r): |cosine| of the i-th singular vectors
    with those of the target; ``target`` (r,) descending. Fitted: the value stays within ``within`` of its target,
    relatively, and both cosines above 1 − ``within``. ``alone``: the next value was then below ``within`` of its own.
    """
    found = []
    for i, wanted in enumerate(target):
        close = (np.abs(values[:, i] - wanted) <= within * wanted) & (np.minimum(left[:, i], right[:, i]) >= 1 - within)
        misses = np.flatnonzero(~close)
        at = 0 if not len(misses) else int(misses[-1]) + 1
        if at >= len(values):
            found.append(Fitted(i, None, float("nan"), float("nan"), False))
            continue
        c_val = float(np.max((values[at:, i] - wanted) ** 2))
        c_vec = float(1 - min(left[at:, i].min(), right[at:, i].min()))
        alone = i + 1 == len(target) or bool(values[at, i + 1] < within * target[i + 1])
        found.append(Fitted(i, at, c_val, c_vec, alone))
    return found


def cosines(vectors: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
    """(T, r): |⟨u_i(t), u_i*⟩| for the columns of every (m, ≥ r) of ``vectors`` and of ``target`` (m, r)."""
    r = target.shape[1]
    return np.stack([np.abs(np.einsum("ij,ij->j", u[:, :r], target)) for u in vectors])
