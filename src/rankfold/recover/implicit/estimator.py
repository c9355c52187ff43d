"""Implicit feedback as an estimator: ``fit``, ``recommend``, ``similar``."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array as Csr
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from rankfold.recover.implicit.candidates import Candidate, trained, trained_mapped, weights
from rankfold.recover.implicit.history import History
from rankfold.recover.implicit.models import Factors
from rankfold.recover.implicit.ranking import judge
from rankfold.recover.implicit.search import best_unseen, scored
from rankfold.recover.mapped.entries import MappedEntries
from rankfold.recover.tables.names import name_of
from rankfold.recover.tables.triplets import Triplets, counted, pairs_of, triplets

FAINT = 1e-3  # entries of factors that are all smaller have shrunk to nothing


@dataclass(eq=False, repr=False)
class ImplicitFeedback(BaseEstimator):
    """Ranks what a row (a user) has not taken yet, from who took what.

    Each method needs only some of the settings. Learned: ``model_``, ``history_`` (rows × columns; of entries in files
    `History`), ``row_names_``, ``column_names_``.

    Args:
        method: ``als`` (weighted alternating least squares, by the package ``implicit`` where it is installed; a cell
            not seen weighs 1, one seen α r with r = log₂(1 + count)), ``regression`` (each column on all others, EASE;
            up to some thousand columns), ``neighbours`` (columns alike), ``popularity``.
        rank: of the factors.
        alpha: α.
        regularization: of als and regression.
        iterations: of als.
        count: of neighbours.
        half_life: in days, of popularity; None: all times count alike.
        random_state: seed.

    Raises:
        ValueError: in ``fit``: an unknown method, or a setting out of range.

    Example:
        >>> plays = [("ann", "a"), ("ann", "b"), ("bob", "a"), ("bob", "b"), ("bob", "c"), ("cid", "c"), ("cid", "d")]
        >>> rf.recover.ImplicitFeedback("neighbours").fit(plays).recommend("ann", 1)[0][0]
        'c'
    """

    method: str = "als"
    _: KW_ONLY
    rank: int = 32
    alpha: float = 1.0
    regularization: float = 10.0
    iterations: int = 15
    count: int = 50
    half_life: float | None = None
    random_state: int = 0

    def fit(self, X: Any, y: Any = None, *, times: Any = None) -> ImplicitFeedback:
        """``X``: pairs (count, 2) of names with their counts ``y`` (by default 1; repeated pairs are summed), a sparse
        matrix rows × columns of counts, `Triplets`, or `MappedEntries` (``als``). A count of 0 is no play: it is left
        out. ``times`` (count,): seconds, for ``half_life``.

        Raises ``ValueError`` for negative counts, for none above 0, missing names, and settings that the shape does not
        allow.
        """
        _check_alone(X, y, times)
        if isinstance(X, MappedEntries):
            self.model_ = trained_mapped(X, self._candidate(min(X.shape)), self.random_state)
            self.history_, self.row_names_, self.column_names_ = History(X), X.row_names, X.column_names
            self._look()
            return self
        entries = _entries(X, y, times)
        self.model_ = trained(entries, self._candidate(min(entries.shape)), self.random_state)
        self.history_, self.row_names_, self.column_names_ = weights(entries), entries.row_names, entries.column_names
        self._look()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> ImplicitFeedback:
        """More of what rows did, new rows too, without a new fit of the columns: their history grows, and scores follow
        from it. Columns that are not known are left out. Cost: that of the new entries."""
        if not hasattr(self, "model_"):
            return self.fit(X, y)
        if isinstance(self.history_, History):
            raise ValueError(
                "the entries lie in files, to which no rows can be added: map the longer table (map_entries) and "
                "fit again"
            )
        entries = _entries(X, y, None)
        at = {name: number for number, name in enumerate(self.row_names_)}
        new = [name for name in entries.row_names if name not in at]
        names = (*self.row_names_, *new)
        rows, columns = entries.numbered(names, self.column_names_)
        known = columns >= 0
        shape = (len(names), len(self.column_names_))
        more = scipy.sparse.csr_array((np.log2(1 + entries.values[known]), (rows[known], columns[known])), shape=shape)
        old = self.history_.tocoo()
        before = scipy.sparse.csr_array((old.data, (old.coords[0], old.coords[1])), shape=shape)
        counts = before.copy()
        counts.data, more.data = 2.0**before.data - 1.0, 2.0**more.data - 1.0
        total = Csr(counts + more)
        total.data = np.log2(1.0 + total.data)
        self.history_, self.row_names_ = total, names
        return self

    def score(self, X: Any, y: Any = None) -> float:
        """NDCG@10 of ranking what is in ``X`` (as in ``fit``) and not in the history of its row, over the rows that are
        known; 0 where there is none. Columns that are not known count as missed."""
        check_is_fitted(self)
        given = _entries(X, y, None)
        rows, columns = given.numbered(self.row_names_, self.column_names_)
        width = len(self.column_names_)
        columns = np.where(columns < 0, width + given.columns, columns)
        shape = (len(self.row_names_), width + given.shape[1])
        known = rows >= 0
        wanted = Csr((np.ones(int(known.sum())), (rows[known], columns[known])), shape=shape)
        users = np.flatnonzero(np.diff(wanted.indptr))
        if not len(users):
            return 0.0
        seen = Csr(self.history_[users])
        seen = Csr((np.ones(len(seen.data)), seen.indices, seen.indptr), shape=(len(users), shape[1]))
        wanted = Csr(wanted[users] > seen)
        asked = np.flatnonzero(np.diff(wanted.indptr))
        if not len(asked):
            return 0.0
        top = best_unseen(self.model_, self.history_, users[asked], 10)
        return float(judge(top, wanted, asked, 10).ndcg.mean())

    def recommend(self, row: Any, count: int = 10, *, seen: bool = False) -> list[tuple[str, float]]:
        """The ``count`` best columns for ``row`` with their scores; those it has taken only if ``seen``.

        A row whose entries are all in columns that the fit did not know gets popularity: how many rows took each.
        Raises ``ValueError`` for a row that is not known, and for a ``count`` below 1.
        """
        check_is_fitted(self)
        _at_least_one(count)
        at = _place(self.row_names_, row, "row")
        top = best_unseen(self.model_, self.history_, np.array([at]), count, seen=seen)[0]
        told = scored(self.model_, self.history_, Csr(self.history_[[at]]))[0]
        return [(self.column_names_[column], float(told[column])) for column in top if column >= 0]

    def similar(self, column: Any, count: int = 10) -> list[tuple[str, float]]:
        """The ``count`` columns most alike ``column``. Raises ``ValueError`` for one that is not known,
        and for a ``count`` below 1."""
        check_is_fitted(self)
        _at_least_one(count)
        at = _place(self.column_names_, column, "column")
        told = np.array(self.model_.similar(at), dtype=np.float64)
        told[at] = -np.inf
        order = np.argsort(-told, kind="stable")[: min(count, len(told) - 1)]
        return [(self.column_names_[other], float(told[other])) for other in order]

    def _look(self) -> None:
        """Warn of factors that have shrunk to nothing: above the largest singular value of the weighted plays, zero is
        what least squares end at."""
        if isinstance(self.model_, Factors) and np.abs(self.model_.columns).max() < FAINT:
            warnings.warn(
                f"all scores are next to zero, and their order says little: regularization {self.regularization:g} is "
                f"too large for these entries; give a smaller one, such as {self.regularization / 10:g}",
                stacklevel=3,
            )

    def _candidate(self, largest: int) -> Candidate:
        return Candidate(
            self.method,
            min(self.rank, largest),
            self.alpha,
            self.regularization,
            self.count,
            self.half_life,
            self.iterations,
        )


def _entries(x: Any, y: Any, times: Any) -> Triplets:
    return counted(_given(x, y, times))


def _check_alone(x: Any, y: Any, times: Any) -> None:
    """``ValueError`` for counts or times beside what has its own."""
    if (y is None and times is None) or not (isinstance(x, Triplets | MappedEntries) or scipy.sparse.issparse(x)):
        return
    if scipy.sparse.issparse(x):
        raise ValueError("a sparse matrix holds its own counts, and times go with pairs: leave y and times out")
    what = "triplets hold their own counts and times" if isinstance(x, Triplets) else "entries in files hold counts"
    raise ValueError(f"{what}: leave y and times out")


def _given(x: Any, y: Any, times: Any) -> Triplets:
    _check_alone(x, y, times)
    if isinstance(x, Triplets):
        return x
    if scipy.sparse.issparse(x):
        known = scipy.sparse.coo_array(x)
        m, n = known.shape
        return triplets(known.coords[0], known.coords[1], known.data, shape=(m, n), duplicates="sum")
    pairs = pairs_of(x)
    counts = np.ones(len(pairs)) if y is None else y
    return triplets(pairs[:, 0], pairs[:, 1], counts, duplicates="sum", times=times)


def _at_least_one(count: int) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")


def _place(names: tuple[str, ...], name: Any, what: str) -> int:
    try:
        return names.index(name_of(name))
    except ValueError:
        raise ValueError(f"{what} {name_of(name)!r} is not among the {len(names)} that were fitted") from None
