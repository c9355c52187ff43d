"""What to hold out of implicit feedback: what came last, by time, or one entry of each row."""

from __future__ import annotations

from typing import Literal

import numpy as np

from rankfold.recover.tables.triplets import Triplets

Split = Literal["by-time", "leave-one-out"]


def held_out(entries: Triplets, split: Split, *, fraction: float = 0.1, seed: int = 0) -> tuple[Triplets, Triplets]:
    """(to learn from, held out). The names stay, so that indices agree.

    ``by-time``: the latest ``fraction`` of all entries, those of one moment together; what is learnt from is all
    earlier. ``leave-one-out``: of each row with at least two entries the latest, or without times a random one. Raises
    ``ValueError`` without times for ``by-time``, and where no row that is held out is known from the rest.
    """
    if split == "by-time":
        if entries.times is None:
            raise ValueError("a split by time needs times: give a column of them, or the split leave-one-out")
        moment = np.quantile(entries.times, 1 - fraction, method="lower")
        held = entries.times > moment
        if not held.any():
            raise ValueError(
                f"the latest tenth of the {len(entries)} entries all have the same time ({moment:.0f} seconds since "
                "1970), so that nothing comes after the rest: use the split leave-one-out"
            )
    else:
        held = _one_each(entries, seed)
    learn, judge = entries.take(np.flatnonzero(~held)), entries.take(np.flatnonzero(held))
    if not np.isin(judge.rows, learn.rows).any():
        raise ValueError(
            f"the split {split} leaves none of the {len(judge)} held-out entries in a row that is known from the "
            f"other {len(learn)}: use the other split, or give more entries"
        )
    return learn, judge


def _one_each(entries: Triplets, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(entries))
    when = shuffled if entries.times is None else entries.times
    order = np.lexsort((shuffled, when, entries.rows))
    rows = entries.rows[order]
    last = np.r_[rows[1:] != rows[:-1], True]
    alone = last & np.r_[True, rows[1:] != rows[:-1]]
    held = np.zeros(len(entries), dtype=bool)
    held[order[last & ~alone]] = True
    return held
