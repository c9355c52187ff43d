"""From draws to one model of the rank that was asked for, beside biases."""

from __future__ import annotations

import numpy as np

from rankfold.recover.model import FactorModel
from rankfold.recover.ratings.sampler import KEPT, Draws
from rankfold.recover.ratings.spread import Spread
from rankfold.recover.tables.triplets import Triplets

PASSES, PROBES = 4, 10  # of the subspace iteration, and columns more than the rank


def averaged(found: Draws, entries: Triplets) -> FactorModel:
    """The mean of the draws, ⟨p, q⟩ cut to their rank: the mean of products of rank k has any rank. The cut is the best
    one where errors count by how often a row and a column occur, as they will be asked for; on MovieLens 100K it costs
    0.0005 of 0.89. The two biases are columns of their own."""
    counts = [np.bincount(index, minlength=size) for index, size in zip((entries.rows, entries.columns), entries.shape)]
    weights = [np.sqrt(np.append(count, 1) + 1.0)[:, None] for count in counts]
    draws, _, k = found.lefts.shape
    left, right = (
        np.concatenate(list(side[:, :, :-1]), 1) * weight.astype(np.float32)
        for side, weight in zip((found.lefts, found.rights), weights)
    )
    # subspace iteration on left rightᵀ, which may have any rank, from both sides without forming it
    basis = np.random.default_rng(0).standard_normal((right.shape[0], k + PROBES)).astype(np.float32)
    for _ in range(PASSES):
        images = np.linalg.qr(left @ (right.T @ basis) / draws)[0]
        basis = np.linalg.qr(right @ (left.T @ images) / draws)[0]
    u, s, vt = np.linalg.svd((left @ (right.T @ basis) / draws).astype(np.float64), full_matrices=False)
    rank = min(k - 1, len(s))
    root = np.sqrt(s[:rank]) * found.unit**0.5
    bias = [found.unit * side[:, :, -1].astype(np.float64).mean(0)[:, None] for side in (found.lefts, found.rights)]
    left = np.concatenate([u[:, :rank] * root / weights[0], bias[0], np.ones_like(bias[0])], 1)
    right = np.concatenate([basis @ vt[:rank].T * root / weights[1], np.ones_like(bias[1]), bias[1]], 1)
    kept = np.unique(np.linspace(0, draws - 1, min(KEPT, draws)).astype(int))
    low, high = float(entries.values.min()), float(entries.values.max())
    return FactorModel(
        left,
        np.ascontiguousarray(right.T),
        found.offset,
        low,
        high,
        entries.row_names,
        entries.column_names,
        biases=2,
        moments=found.moments,
        spread=Spread(
            found.lefts[kept],
            found.rights[kept],
            found.unknown,
            (found.apart[0][kept], found.apart[1][kept]),
            found.noise,
            found.varying,
            found.unit,
        ),
    )
