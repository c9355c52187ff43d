"""What is tried on implicit feedback, and how it is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array as Csr

from rankfold.recover.implicit.als import als
from rankfold.recover.implicit.history import History
from rankfold.recover.implicit.models import Model, neighbours, popularity, regression
from rankfold.recover.mapped.entries import MappedEntries
from rankfold.recover.tables.triplets import Triplets, counted

METHODS = ("als", "regression", "neighbours", "popularity")
BASELINES = ("neighbours", "popularity")
REGRESSED = 8000  # columns up to which they are regressed on each other unasked: seconds to minutes, 1.5 GB
_ITERATIONS = 15


@dataclass(frozen=True)
class Candidate:
    """A ``method`` of `METHODS` with its settings: ``rank``, ``alpha`` and ``regularization`` of als, the last of
    regression too; ``count`` of neighbours; ``half_life`` (days) of popularity, None: all that ever was."""

    method: str
    rank: int = 32
    alpha: float = 1.0
    regularization: float = 10.0
    count: int = 50
    half_life: float | None = None
    iterations: int = _ITERATIONS

    def __str__(self) -> str:
        told = {
            "als": f"als, rank {self.rank}, alpha {self.alpha:g}, regularization {self.regularization:g}",
            "regression": f"regression, regularization {self.regularization:g}",
            "neighbours": f"neighbours, {self.count}",
            "popularity": "popularity" if self.half_life is None else f"popularity, half-life {self.half_life:g} days",
        }
        return told[self.method]


def candidates(entries: Triplets, methods: tuple[str, ...] = METHODS) -> list[Candidate]:
    """A short list for each of ``methods``; regression only up to ``REGRESSED`` columns, popularity of late with
    times."""
    n = entries.shape[1]
    found = []
    if "als" in methods:
        ranks = [rank for rank in (16, 64) if rank < min(entries.shape)] or [max(1, min(entries.shape) // 2)]
        found += [Candidate("als", rank, 1.0, weight) for rank in ranks for weight in (1.0, 10.0, 30.0)]
    if "regression" in methods and n <= REGRESSED:
        found += [Candidate("regression", regularization=weight) for weight in (50.0, 150.0, 500.0, 1500.0)]
    if "neighbours" in methods:
        found += [Candidate("neighbours", count=count) for count in (20, 50, 150) if count < n] or [
            Candidate("neighbours", count=max(1, n - 1))
        ]
    if "popularity" in methods:
        lives = (None,) if entries.times is None else (None, 3.0, 10.0, 30.0, 100.0)
        found += [Candidate("popularity", half_life=life) for life in lives]
    return found


def weights(entries: Triplets) -> Csr:
    """r = log₂(1 + count), rows × columns: 1 for once, 2 for three times. Order of the entries: by row, then column."""
    table = scipy.sparse.csr_array(
        (np.log2(1.0 + entries.values), (entries.rows, entries.columns)), shape=entries.shape
    )
    table.sort_indices()
    return table


def check(candidate: Candidate) -> None:
    """Raises ``ValueError`` for a setting out of range, also where the method does not use it."""
    at_least = {"count": 1, "iterations": 1, "regularization": 0}
    for name, least in at_least.items():
        if not getattr(candidate, name) >= least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(candidate, name)}")
    if not candidate.alpha > 0:
        raise ValueError(f"alpha must be more than 0, got {candidate.alpha}")
    if candidate.half_life is not None and not candidate.half_life > 0:
        raise ValueError(f"half_life must be more than 0 days, got {candidate.half_life} (None: all times count alike)")


def trained(entries: Triplets, candidate: Candidate, seed: int = 0) -> Model:
    """The model of one candidate. Raises ``ValueError`` for negative counts, unknown methods, and settings out of
    range."""
    check(candidate)
    if (entries.values < 0).any():
        at = int(np.flatnonzero(entries.values < 0)[0])
        place = f"row {entries.row_names[entries.rows[at]]}, column {entries.column_names[entries.columns[at]]}"
        raise ValueError(
            f"the count at {place} is {entries.values[at]:g}, and counts of implicit feedback must be at least 0"
        )
    entries = counted(entries)
    if not len(entries):
        raise ValueError("every count is 0, and says that nothing was taken")
    plays = weights(entries)
    if candidate.method == "als":
        return _least_squares(plays, candidate, seed)
    if candidate.method == "regression":
        return regression(plays, candidate.regularization)
    if candidate.method == "neighbours":
        return neighbours(plays, candidate.count)
    if candidate.method == "popularity":
        times = None if entries.times is None else entries.times[np.lexsort((entries.columns, entries.rows))]
        return popularity(plays, times, candidate.half_life)
    raise ValueError(f"there is no method {candidate.method!r}: the methods are {', '.join(METHODS)}")


def trained_mapped(entries: MappedEntries, candidate: Candidate, seed: int = 0) -> Model:
    """The model of least squares of counts in files. Raises ``ValueError`` for other methods, negative counts, and
    settings out of range."""
    check(candidate)
    if candidate.method != "als":
        raise ValueError(
            f"{candidate.method} holds all entries in memory: use als for entries in files, or read them whole "
            "(read_plays)"
        )
    if entries.low < 0:
        raise ValueError(f"the least count is {entries.low:g}, and counts of implicit feedback must be at least 0")
    return _least_squares(History(entries), candidate, seed)


def _least_squares(plays: Csr | History, candidate: Candidate, seed: int) -> Model:
    if not 1 <= candidate.rank <= min(plays.shape):
        raise ValueError(f"rank must be from 1 to {min(plays.shape)} for these entries, got {candidate.rank}")
    return als(
        plays,
        rank=candidate.rank,
        alpha=candidate.alpha,
        regularization=candidate.regularization,
        iterations=candidate.iterations,
        seed=seed,
    )
