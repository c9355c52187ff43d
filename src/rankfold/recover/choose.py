"""Which method and rank suit some entries: by cross-validation, then one fit on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from rankfold.recover.estimators.base import Recovery
from rankfold.recover.estimators.completion import (
    AlternatingMinimization,
    CompressedDeepLinear,
    LowRank,
    NuclearNorm,
    ScaledGradientDescent,
)
from rankfold.recover.measurements.arrays import normal
from rankfold.recover.measurements.operators import surrogate
from rankfold.recover.model import FactorModel
from rankfold.recover.ratings.factors import averaged
from rankfold.recover.ratings.sampler import Known, sample
from rankfold.recover.scale import Seen
from rankfold.recover.several import Progress, each
from rankfold.recover.solvers.tangent import leading
from rankfold.recover.tables.sides import Sides
from rankfold.recover.tables.triplets import Triplets

BURN_IN, DRAWS = 30, 60  # sweeps of the ratings model thrown away, and averaged
METHODS = ("low-rank", "ratings", "compressed-deep-linear", "alternating", "nuclear", "scaled-gd")
START, RIDGE = 1e-2, 1e-5  # in units of the largest singular value, so that no result hangs on the unit of the values
STRENGTH = 2.0  # of the prior on what is learned from who rated what


@dataclass(frozen=True)
class Choice:
    """A ``method`` of `METHODS` at a ``rank`` (None: it finds its own); ratings perhaps with offsets of their moments
    (``time``) and with properties of rows and columns (``sides``)."""

    method: str
    rank: int | None = None
    time: bool = False
    sides: bool = False

    def __str__(self) -> str:
        return self.name if self.rank is None else f"{self.name}, {'up to ' * self.finds}rank {self.rank}"

    @property
    def beside(self) -> bool:
        """Whether more than the entries is used."""
        return self.time or self.sides

    @property
    def name(self) -> str:
        """The method, and what it uses beside the entries."""
        beside = [name for name, used in (("time", self.time), ("side tables", self.sides)) if used]
        return f"{self.method} with {' and '.join(beside)}" if beside else self.method

    @property
    def finds(self) -> bool:
        """Whether the method finds its own rank, up to the one that is given."""
        return self.method in ("low-rank", "nuclear")


@dataclass(frozen=True)
class Tried:
    """``error``: root mean square over all held-out entries; ``folds``: of each fold; ``rank``: of the last fit."""

    choice: Choice
    error: float
    folds: tuple[float, ...]
    rank: int
    remark: str


def choices(
    methods: Sequence[str],
    ranks: Sequence[int] | None,
    shape: tuple[int, int],
    *,
    time: bool = False,
    sides: bool = False,
) -> list[Choice]:
    """Each method at each rank, by default 5, 10 and 20; those that find their rank take the largest as a bound, once.
    Ratings at the middle rank also with ``time``, with ``sides``, and with both, where there are any.

    Raises ``ValueError`` for an unknown method, and for a rank that a matrix of ``shape`` cannot have.
    """
    m, n = shape
    for rank in ranks or ():
        if not 1 <= rank <= min(m, n):
            raise ValueError(f"rank must be from 1 to {min(m, n)} for {m} rows and {n} columns, got {rank}")
    tried = sorted({min(rank, m, n) for rank in ranks or (5, 10, 20)})
    found = []
    for method in [methods] if isinstance(methods, str) else methods:
        if method not in METHODS:
            raise ValueError(f"there is no method {method!r}: the methods are {', '.join(METHODS)}")
        if Choice(method).finds:
            found.append(Choice(method, max(ranks) if ranks else None))
        else:
            found += [Choice(method, rank) for rank in tried]
        if method == "ratings":
            ways = [(a, b) for a in (False, True) for b in (False, True) if (a or b) and a <= time and b <= sides]
            found += [Choice(method, tried[len(tried) // 2], *way) for way in ways]
    return found


def cross_validate(
    entries: Triplets,
    candidates: Sequence[Choice],
    *,
    folds: int,
    seed: int,
    sides: Sides | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Tried]:
    """The held-out error of every candidate, best first. ``folds`` parts of the entries, each held out once.

    ``jobs``: fits at a time, in processes of one thread each (-1: one for each core); results do not depend on it.
    Memory: one copy of the entries for all, and what a fit takes for each.

    With one candidate more than needed and few entries the best error is a little too good: judge the winner on others.
    Raises ``ValueError`` for fewer entries than folds.
    """
    if not 2 <= folds <= len(entries):
        raise ValueError(
            f"{folds} folds cannot be made of {len(entries)} entries: give folds (--folds) from 2 to the number "
            "of entries"
        )
    parts = np.array_split(np.random.default_rng(seed).permutation(len(entries)), folds)
    fits = each(
        _held_out,
        [(entries, parts, fold, choice, seed, sides) for choice in candidates for fold in range(folds)],
        jobs,
        progress,
        lambda number: f"cross-validating {candidates[number // folds]}",
        "cross-validating",
    )
    tried, sizes = [], [len(part) for part in parts]
    for number, choice in enumerate(candidates):
        of_folds = fits[number * folds : (number + 1) * folds]
        errors = tuple(error for error, _, _ in of_folds)
        mean = float(np.sqrt(np.average(np.square(errors), weights=sizes)))
        tried.append(Tried(choice, mean, errors, *of_folds[-1][1:]))
    return sorted(tried, key=lambda one: one.error)


def _held_out(
    entries: Triplets, parts: Sequence[np.ndarray], fold: int, choice: Choice, seed: int, sides: Sides | None
) -> tuple[float, int, str]:
    """(root mean square over the held-out part, rank, remark) of a fit to the others."""
    held = parts[fold]
    learnt = entries.take(np.concatenate([part for at, part in enumerate(parts) if at != fold]))
    model, rank, remark = fit(learnt, choice, seed=seed, sides=sides)
    times = None if entries.times is None else entries.times[held]
    missed = model.at(entries.rows[held], entries.columns[held], times) - entries.values[held]
    return float(np.sqrt(np.mean(missed**2))), rank, remark


def fit(
    entries: Triplets,
    choice: Choice,
    *,
    seed: int = 0,
    sides: Sides | None = None,
    progress: Progress | None = None,
) -> tuple[FactorModel, int, str]:
    """(model, rank, sentence on how it went) of one choice on all ``entries``.

    Raises ``ValueError`` for a rank above what the shape allows.
    """
    m, n = entries.shape
    if choice.rank is not None and not 1 <= choice.rank <= min(m, n):
        raise ValueError(f"rank must be from 1 to {min(m, n)} for {m} rows and {n} columns, got {choice.rank}")
    if choice.method == "ratings":
        rank = choice.rank or 10
        draws = sample(
            entries.rows,
            entries.columns,
            entries.values,
            (m, n),
            rank=rank,
            burn_in=BURN_IN,
            draws=DRAWS,
            strength=STRENGTH,
            seed=seed,
            known=_known(entries, choice, sides),
            progress=progress,
        )
        how = f"mean of {DRAWS} draws, cut to rank {rank} beside biases; noise {draws.noise:.3g} in units of the values"
        return averaged(draws, entries), rank, how
    table = scipy.sparse.csr_array((entries.values, (entries.rows, entries.columns)), shape=(m, n))
    estimator = _estimator(choice, entries, progress).set_params(random_state=seed).fit(table)
    counts = (np.bincount(entries.rows, minlength=m), np.bincount(entries.columns, minlength=n))
    names = (entries.row_names, entries.column_names)
    model, how = completed(estimator, counts, names, Seen.of([entries.values]))
    return model, estimator.rank_, how


def completed(
    estimator: Recovery,
    counts: tuple[np.ndarray, np.ndarray],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    seen: Seen,
) -> tuple[FactorModel, str]:
    """The model of a fitted ``estimator``, and how it went; rows and columns without entries (by ``counts``) are
    predicted as average ones, and values within the bounds (`scale`) of those ``seen``."""
    factors = []
    for factor, count in zip((estimator.left_, estimator.right_.T), counts, strict=True):
        average = factor[count > 0].mean(0)
        factors.append(np.vstack([np.where((count > 0)[:, None], factor, average), average]))
    low, high, told = seen.bounds(estimator)
    right = np.ascontiguousarray(factors[1].T)
    how = f"{estimator.reason_}; {told}" if told else estimator.reason_
    return FactorModel(factors[0], right, 0.0, low, high, *names), how


def _known(entries: Triplets, choice: Choice, sides: Sides | None) -> Known:
    if choice.time and entries.times is None:
        raise ValueError("ratings with time need a time for each value: read the times too (time=True, --time)")
    if choice.sides and sides is None:
        raise ValueError("ratings with side tables need one of the rows or of the columns (--rows, --items)")
    return Known(
        entries.times if choice.time else None,
        sides.rows if choice.sides and sides is not None else None,
        sides.columns if choice.sides and sides is not None else None,
    )


def _estimator(choice: Choice, entries: Triplets, progress: Progress | None):  # type: ignore[no-untyped-def]
    if choice.method == "low-rank":
        return LowRank(choice.rank, progress=progress)
    if choice.method == "nuclear":
        return NuclearNorm(max_rank=choice.rank, validation_fraction=0.05, progress=progress)
    rank = choice.rank or 10
    if choice.method == "compressed-deep-linear":
        scale = START * _largest(entries) ** (1 / CompressedDeepLinear.depth)
        return CompressedDeepLinear(rank, scale=scale, validation_fraction=0.05, progress=progress)
    if choice.method == "alternating":
        ridge = RIDGE * _largest(entries)
        return AlternatingMinimization(rank, ridge=ridge, validation_fraction=0.05, progress=progress)
    return ScaledGradientDescent(rank, validation_fraction=0.05, progress=progress)


def _largest(entries: Triplets) -> float:
    """About the largest singular value of the matrix that the entries are of: that of the surrogate; 1 for zeros."""
    operator, values = entries.measurements()
    start = normal((operator.shape[1], min(operator.shape[1], 5)), np.random.default_rng(0), values)
    return float(leading(surrogate(operator, values), 1, start, passes=4).s[0]) or 1.0
