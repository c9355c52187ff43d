"""The part that all estimators of a low-rank matrix share: from what is given to factors, from factors to
predictions."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from rankfold.recover.measurements.arrays import Array
from rankfold.recover.measurements.lazy import Lazy
from rankfold.recover.measurements.observed import held_apart, kind_for, measured, observed, plain, zero
from rankfold.recover.measurements.operators import Operator, entries, inside, known_entries
from rankfold.recover.measurements.threads import elements, threads_for
from rankfold.recover.solvers.outcome import Point, Recovered, Rules, Watch
from rankfold.recover.solvers.search import undetermined
from rankfold.recover.tables.names import paired

PARTS = 5  # of a row, of which a score predicts each from the others


@dataclass(eq=False, repr=False, kw_only=True)
class Recovery(TransformerMixin, BaseEstimator):
    """``fit(X)``: X (m, n) with NaN where nothing is known, or sparse (what is stored and not NaN is known; not bsr and
    dia), `Triplets`, `MappedEntries` (``LowRank``), or an operator with its measurements as ``y``.
    Learned: ``left_`` (m, rank_), ``right_`` (rank_, n), ``singular_values_``, ``n_iter_``, ``converged_``, ``reason_``
    (a sentence), ``history_``, ``training_error_``, ``validation_error_`` (relative, of these factors), and
    ``undetermined_rows_``, ``undetermined_columns_``: the numbers of those with fewer entries than the rank, of which
    the errors say nothing.

    Settings are the fields of a dataclass: a subclass adds its own and needs no constructor.
    """

    _thin = True  # it works on thin factors, unless the measurements need the whole matrix
    _streams = False  # it takes entries that lie in files

    tol: float = 1e-10
    max_iter: int = 1000
    validation_fraction: float = 0.0
    patience: int = 10
    random_state: Any = 0
    device: str | None = None
    progress: Any = None

    def fit(self, X: Any, y: Any = None) -> Recovery:
        """Find the factors. Not converging is told by ``converged_`` and ``reason_``, not raised.

        ``y`` beside an array is what a pipeline hands on, and is left out. Warns where nothing is missing
        and the numbers look like a table of entries, or are zeros by more than half. Raises
        ``ValueError`` for infinite entries, for nothing known, for pairs of names with their values ``y`` (take
        `triplets`), and for a rank that the shape does not allow.
        """
        self._check()
        operator, values = self._given(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with threads_for(elements(operator, thin=self._thin)):
            found = _nothing(operator.shape) if zero(values) else self._recover(operator, values, seed)
        self.left_, self.right_ = found.left, found.right
        self.singular_values_, self.rank_ = found.singular_values, found.rank
        self.converged_, self.reason_ = found.converged, found.reason
        self.n_iter_, self.history_ = found.iterations, found.history
        self.training_error_, self.validation_error_ = found.training_error, found.validation_error
        self.seconds_ = found.seconds
        self.undetermined_rows_, self.undetermined_columns_ = undetermined(operator, found.rank)
        return self

    @abstractmethod
    def _recover(self, operator: Operator, y: Array, seed: int) -> Recovered:
        """The recovery itself."""

    def _given(self, X: Any, y: Any) -> tuple[Operator, Array]:
        if hasattr(X, "push") and hasattr(X, "adjoint"):
            if y is None:
                raise ValueError("an operator needs its measurements too: fit(operator, y)")
            kind = getattr(X, "_kind", None)
            kind = getattr(X, "mask", kind) if kind is None else kind
            if self.device is not None:
                raise ValueError(
                    f"device {self.device!r} is for matrices and triplets, and an operator computes where its kind "
                    "lies: leave device out, and make the operator with kind=torch.empty(0, device=…)"
                )
            self.n_features_in_ = X.shape[1]
            return X, measured(X, y, kind)
        if hasattr(X, "measurements"):  # triplets, or entries in files
            if y is not None:
                raise ValueError("triplets hold their own values: leave y out")
            operator, values = self._placed(*X.measurements())
            if isinstance(values, Lazy) and not self._streams:
                raise ValueError(
                    f"{type(self).__name__} holds all entries in memory: use LowRank for entries in files, or "
                    "read them whole (read_triplets)"
                )
            self.n_features_in_ = X.shape[1]
            return operator, values
        if y is not None:
            _no_pairs(X, y, type(self).__name__)
        X = self._validated(X, reset=True)
        operator, values = observed(X, kind_for(X.dtype, self.device))
        if operator.count == X.shape[0] * X.shape[1] and _mistaken(X):
            warnings.warn(
                f"nothing is missing from this matrix of shape {X.shape}, so that there is nothing to complete "
                "(zeros count as known): write NaN for what is not known, or make entries of a table of row, "
                "column and value with triplets(rows, columns, values)",
                stacklevel=3,
            )
        return operator, values

    def _placed(self, operator: Operator, values: Array) -> tuple[Operator, Array]:
        """Entries of triplets, or in files, where ``device`` says."""
        if self.device is None:
            return operator, values
        kind, known = kind_for(np.float64, self.device), known_entries(operator, values)
        if known is None:
            raise ValueError(
                f"device {self.device!r} is not for entries in files, which NumPy takes a part at a time: leave it "
                "out, or read them whole (read_triplets)"
            )
        return entries(operator.shape, *known, kind)

    def _validated(self, X: Any, reset: bool) -> Any:
        if hasattr(X, "measurements") or hasattr(X, "push"):
            raise ValueError(
                f"{type(self).__name__} takes whole rows of the matrix here, an array (rows, n) with NaN where "
                "nothing is known: triplets and operators go into fit, at(rows, columns) gives single entries, "
                "and Ratings knows rows and columns by name"
            )
        return validate_data(
            self,
            plain(X),
            reset=reset,
            dtype=(np.float64, np.float32),
            ensure_all_finite="allow-nan",
            accept_sparse=("csr", "csc", "coo"),
        )

    def _check(self) -> None:
        for name in ("tol", "max_iter", "validation_fraction", "patience", "rank", "max_rank"):
            given = getattr(self, name, None)
            if given is not None and not isinstance(given, Real):
                raise ValueError(f"{name} must be a number, got {given!r}")
        if not self.tol >= 0:
            raise ValueError(f"tol, a relative residual, must be at least 0, got {self.tol}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be at least 1, got {self.max_iter}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {self.validation_fraction}")

    def _watch(self, operator: Operator, y: Array, seed: int, **rules: Any) -> tuple[Operator, Array, Watch]:
        """The measurements to learn from, and the watch that judges by the others."""
        part, part_y, judge = held_apart(operator, y, self.validation_fraction, seed)
        kept = Rules(tol=self.tol, max_iter=self.max_iter, patience=self.patience, **rules)
        return part, part_y, Watch(type(self).__name__, part, part_y, kept, judge, self.progress)

    def transform(self, X: Any) -> np.ndarray:
        """X (any number of rows, n) with what is missing filled in; what is known is kept.

        Each row is fitted by the right factor on its known entries; a row of which nothing is known becomes zero.
        """
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        X = _unknown_as_nan(X)
        filled = X.copy()
        missing = np.isnan(X)
        told = _coefficients(X, self.right_) @ self.right_
        filled[missing] = told[missing]
        return filled

    def partial_fit(self, X: Any, y: Any = None) -> Recovery:
        """More rows X (any number, n), appended to what was fitted: each is met by the right factor, which stays.

        A first call is `fit`. Cost: a least squares for each new row.
        """
        if not hasattr(self, "right_"):
            return self.fit(X, y)
        new = _coefficients(_unknown_as_nan(self._validated(X, reset=False)), self.right_)
        self.left_ = np.vstack([self.left_, new])
        return self

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the root mean square error of the known entries of X (any number of rows, n), each fifth of a row
        predicted by the right factor from the others: the larger the better, for cross-validation over rows.

        Raises ``ValueError`` where nothing is known. Cost: five least squares a row.
        """
        check_is_fitted(self)
        X = _unknown_as_nan(self._validated(X, reset=False))
        if np.isnan(X).all():
            raise ValueError("nothing is known of these rows, so that there is nothing to judge by")
        part = np.random.default_rng(0).integers(0, PARTS, X.shape)
        told = np.zeros_like(X)
        for number in range(PARTS):
            kept = _coefficients(np.where(part == number, np.nan, X), self.right_) @ self.right_
            told = np.where(part == number, kept, told)
        return -float(np.sqrt(np.nanmean((X - told) ** 2)))

    def at(self, rows: Any, columns: Any) -> np.ndarray:
        """Entries of the recovered matrix at pairs of indices, (count,); a single row or column counts for all of the
        others. Raises ``ValueError`` for names, for −1 and other numbers that the matrix has not, and where there are
        not as many rows as columns."""
        check_is_fitted(self)
        rows, columns = paired(rows, columns)
        inside((len(self.left_), self.right_.shape[1]), rows, columns)
        return np.einsum("ij,ji->i", self.left_[rows], self.right_[:, columns])

    def reconstruct(self) -> np.ndarray:
        """The recovered matrix (m, n), known entries included."""
        check_is_fitted(self)
        return self.left_ @ self.right_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _no_pairs(x: Any, y: Any, who: str) -> None:
    """Raises ``ValueError`` where ``x`` (N, 2) are names or numbers of rows and columns, and ``y`` (N,) their values.

    Any other ``y`` beside an array is the target that a pipeline hands to all of its steps."""
    if scipy.sparse.issparse(x):
        return
    pairs = np.asarray(x)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or np.shape(y) not in ((len(pairs),), (len(pairs), 1)):
        return
    if pairs.dtype.kind == "f" and not np.array_equal(pairs, np.floor(pairs)):
        return
    raise ValueError(
        f"{who} completes a matrix, and X looks like the rows and columns of the entries y: use "
        "fit(triplets(X[:, 0], X[:, 1], y)), or Ratings, which is fitted to such pairs"
    )


def _mistaken(x: Any) -> bool:
    """Whether a matrix with nothing missing looks like a table of row, column and value, or has zeros for unknown."""
    if scipy.sparse.issparse(x):
        return False
    m, n = x.shape
    table = m > n and 3 <= n <= 4 and np.array_equal(x[:, :2], np.floor(x[:, :2]))  # perhaps with a time
    return bool(table or 2 * np.count_nonzero(x) < x.size)


def _unknown_as_nan(x: Any) -> np.ndarray:
    if not scipy.sparse.issparse(x):
        return np.asarray(x)
    known = scipy.sparse.coo_array(x, copy=True)
    known.sum_duplicates()
    dense = np.full(x.shape, np.nan, dtype=x.dtype)
    dense[known.coords[0], known.coords[1]] = known.data
    return dense


def _coefficients(x: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(rows, k): of each row the least squares of its known entries by ``right`` (k, n); zero where none is known."""
    found = np.zeros((len(x), len(right)), dtype=x.dtype)
    for number, row in enumerate(x):
        known = ~np.isnan(row)
        if known.any() and len(right):
            found[number] = np.linalg.lstsq(right[:, known].T, row[known], rcond=None)[0]
    return found


def allowed(rank: int | None, shape: tuple[int, int], default: int) -> int:
    """``rank`` if the shape allows it. Raises ``ValueError``."""
    bound = min(shape)
    if rank is None:
        return min(default, bound)
    if not 1 <= rank <= bound:
        raise ValueError(f"rank must be from 1 to {bound} for a matrix of shape {shape}, got {rank}")
    return int(rank)


def _nothing(shape: tuple[int, int]) -> Recovered:
    m, n = shape
    point = Point(0, 0.0, 0.0, math.nan, 0)
    reason = "every measurement is zero, and so is the matrix"
    return Recovered(np.zeros((m, 0)), np.zeros((0, n)), np.zeros(0), True, reason, 0, 0.0, 0.0, math.nan, (point,))
