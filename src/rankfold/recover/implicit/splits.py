"""What to hold out of implicit feedback: what came last, by time, or one entry of each row."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from rankfold.recover.tables.triplets import Duplicates, Triplets, counted, once

Split = Literal["by-time", "leave-one-out"]


def held_out(entries: Triplets, split: Split, *, fraction: float = 0.1, seed: int = 0) -> tuple[Triplets, Triplets]:
    """(to learn from, held out). The names stay, so that indices agree.

    ``by-time``: the latest ``fraction`` of all entries, those of one moment together; what is learnt from is all
    earlier. ``leave-one-out``: of each row with at least two entries the latest, or without times a random one. An
    entry that was repeated is as late as the first time of it, as it is new but once; by time its later ones are not
    learnt from either. Raises ``ValueError`` without times for ``by-time``, where nothing new came last, where no row
    that is held out is known from the rest, and for a ``fraction`` that is none.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be 'by-time' or 'leave-one-out', got {split!r}")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    given = _given(entries)
    came = _came(entries, given)
    if split == "by-time":
        if came is None:
            raise ValueError("a split by time needs times: give a column of them, or the split leave-one-out")
        latest = "tenth" if fraction == 0.1 else f"{100 * fraction:g} %"
        moment = np.quantile(came, 1 - fraction, method="lower")
        held = came > moment
        if not held.any() and (entries.times > moment).any():
            raise ValueError(
                f"nothing new was taken in the last {latest}: whatever comes after {moment:.0f} seconds since 1970, "
                "when the last new entries came, had been taken before: use the split leave-one-out"
            )
        if not held.any():
            raise ValueError(
                f"the latest {latest} of the {len(entries)} entries all have the same time ({moment:.0f} seconds since "
                "1970), so that nothing comes after the rest: use the split leave-one-out"
            )
    else:
        held = _one_each(entries, came, seed)
    learn, judge = entries.take(np.flatnonzero(~held)), entries.take(np.flatnonzero(held))
    if split == "by-time" and given is not None and entries.before is not None:
        learn = _until(moment, given, entries.before.duplicates)
    if not np.isin(judge.rows, learn.rows).any():
        raise ValueError(
            f"the split {split} leaves none of the {len(judge)} held-out entries in a row that is known from the "
            f"other {len(learn)}: use the other split, or give more entries"
        )
    return learn, judge


def _given(entries: Triplets) -> Triplets | None:
    """Those of ``entries`` before repeated ones were made one; None where none with a time was repeated."""
    if entries.before is None:
        return None
    given, n = entries.before.entries, entries.shape[1]
    mine = np.isin(given.rows * n + given.columns, entries.rows * n + entries.columns)
    return given.take(np.flatnonzero(mine))


def _came(entries: Triplets, given: Triplets | None) -> np.ndarray | None:
    """(count,): the first time of each entry among those that were ``given``; None without times."""
    if given is None or given.times is None:
        return entries.times
    n = entries.shape[1]
    cells = entries.rows * n + entries.columns
    order = np.argsort(cells)
    at = order[np.searchsorted(cells, given.rows * n + given.columns, sorter=order)]
    found = np.full(len(cells), np.inf)
    np.fmin.at(found, at, given.times)
    return found


def _until(moment: float, given: Triplets, duplicates: Duplicates) -> Triplets:
    """Each entry once, of those up to the ``moment``."""
    early = np.flatnonzero(np.asarray(given.times) <= moment)
    return counted(once(given.take(early), duplicates, None)[0])


def _one_each(entries: Triplets, came: np.ndarray | None, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(entries))
    when = shuffled if came is None else came
    order = np.lexsort((shuffled, when, entries.rows))
    rows = entries.rows[order]
    last = np.r_[rows[1:] != rows[:-1], True]
    alone = last & np.r_[True, rows[1:] != rows[:-1]]
    held = np.zeros(len(entries), dtype=bool)
    held[order[last & ~alone]] = True
    return held
