"""A matrix completed from entries that lie in files, within a bound of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rankfold.pipeline.recovery.completing import learnable, written
from rankfold.recover import Choice, LowRank, MappedEntries, Tried, Triplets, completed
from rankfold.recover.measurements.arrays import norm
from rankfold.recover.model import FACTORS
from rankfold.recover.scale import Seen
from rankfold.recover.solvers.outcome import Progress
from rankfold.recover.tables.memory import NAME
from rankfold.run.disk.files import write_atomically
from rankfold.run.processes.memory import amount, at_least

JUDGED = 0.1  # of the entries held out once, at most half a million
RANK = 20  # bound where none is given
_PART = 1 << 20  # values that are looked at together
_BLOCK = 100e6  # bytes for one block of entries, and what is held out
_COPIES = 30  # of the factors: directions, gradients, and the space that singular pairs are sought in


def needed(shape: tuple[int, int], count: int, rank: int) -> int:
    """Bytes by which a completion of ``count`` entries in files grows the process at most. Bits for two parts."""
    return int(sum(shape) * (NAME + 8 * _COPIES * rank) + count / 4 + _BLOCK)


def check_memory(memory: int) -> None:
    """Raises ``ValueError`` where ``memory`` is less than any completion takes, however small."""
    if memory <= _BLOCK:
        raise ValueError(
            f"--memory {memory:,} bytes is too little: blocks of entries alone take {_BLOCK / 1e6:.0f} MB: give "
            "more, such as --memory 2GB, or leave --memory out to hold all entries in memory"
        )


def complete_mapped(
    entries: MappedEntries,
    out: Path,
    *,
    memory: int,
    rank: int | None = None,
    judge: Triplets | None = None,
    asked: Triplets | None = None,
    seed: int = 0,
    top: int = 0,
    source: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """As `complete` does by the method low-rank alone: fitted without a part that judges it once, then to all entries.

    ``memory``: bytes by which the process may grow. ``rank``: a bound on it, by default 20. Raises ``ValueError``
    where that is less than ``needed``.
    """
    check_memory(memory)
    names = (entries.row_names, entries.column_names)
    learnable(len(entries), (entries.low, entries.high), names, judge, asked)
    bound = min(rank or RANK, *entries.shape)
    wanted = needed(entries.shape, len(entries), bound)
    if wanted > memory:
        raise ValueError(
            f"{entries.shape[0]} rows and {entries.shape[1]} columns at ranks up to {bound} take "
            f"{amount(wanted)} ({amount(_BLOCK)} of it for blocks of entries, at any rank), and "
            f"--memory allows {amount(memory)}: give at least {at_least(wanted)}, or a smaller largest rank (--ranks)"
        )
    operator, y = entries.measurements()
    part, part_y, (held, held_y) = operator.apart(y, max(1, int(JUDGED * len(entries))), np.random.default_rng(seed))
    first = LowRank(bound, random_state=seed, progress=progress).fit(part, part_y)
    values = entries.files.values
    seen = Seen.of(np.asarray(values[start : start + _PART]) for start in range(0, len(values), _PART))
    low, high, _ = seen.bounds(first)
    there = held.push(np.ones((entries.shape[0], 1)), np.ones((1, entries.shape[1])))  # small ones lie in a full matrix
    told = np.clip(held.push(first.left_, first.right_), low, high) * there
    error = norm(told - held_y) / held.count**0.5
    tried = Tried(Choice("low-rank", bound), error, (error,), first.rank_, first.reason_)
    found = LowRank(bound, random_state=seed, progress=progress).fit(operator, y)
    model, sentence = completed(found, entries.counts(), names, seen)
    write_atomically(out / FACTORS, model.to_bytes())  # before anything else can fail
    how = (found.rank_, sentence)
    return written(entries, [tried], model, how, out, judge=judge, asked=asked, seed=seed, top=top, source=source)
