"""Ratings as a scikit-learn regressor: pairs of names in, ratings out."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_random_state

from rankfold.recover.model import FactorModel
from rankfold.recover.ratings.factors import averaged
from rankfold.recover.ratings.folding import with_rows
from rankfold.recover.ratings.sampler import Known, sample
from rankfold.recover.tables.times import complete
from rankfold.recover.tables.triplets import Duplicates, Triplets, pairs_of, triplets


@dataclass(eq=False, repr=False)
class Ratings(RegressorMixin, BaseEstimator):
    """Predicts ratings of pairs (user, item), names of any kind, by biases, factors and who rated what.

    The mean of Gibbs sweeps, so that regularisation is learned, not tuned. Users and items that were not in the
    training data get the prediction for an average one. Learned: ``model_``, ``noise_`` (standard deviation),
    ``history_`` (training root mean square error of each sweep), ``converged_`` and ``reason_``.

    Args:
        rank: of the factors.
        burn_in: sweeps before the first that counts.
        draws: sweeps that count. With far fewer than the defaults ranks cannot be told apart.
        strength: of the prior on the weights of who rated what; a large one turns that off.
        duplicates: of a pair with two ratings: "refuse", "mean", "last" or "sum".
        random_state: seed.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Cost: of a sweep O(entries · rank² + (rows + columns) · rank³).

    Source: Salakhutdinov and Mnih 2008; Rendle, Zhang, Koren 2019.

    Example:
        >>> import numpy as np
        >>> pairs = np.array([[u, i] for u in range(6) for i in range(4)])
        >>> found = rf.recover.Ratings(1).fit(pairs, 3.0 + pairs[:, 0] % 2)
        >>> bool(found.predict([[1, 0]])[0] > found.predict([[0, 0]])[0])
        True
    """

    rank: int = 10
    _: KW_ONLY
    burn_in: int = 30
    draws: int = 60
    strength: float = 2.0
    duplicates: Duplicates = "refuse"
    random_state: Any = 0
    progress: Any = None

    def fit(self, X: Any, y: Any = None, *, times: Any = None) -> Ratings:
        """Pairs ``X`` (count, 2) and their ratings ``y``, or `Triplets`, which have both; ``times`` (count,), seconds
        since 1970: a row's day, five minutes and second then have offsets of their own. Raises ``ValueError`` for
        faults in them, by name."""
        if self.rank < 1 or self.draws < 1 or self.burn_in < 0 or not self.strength > 0:
            raise ValueError("rank and draws must be at least 1, burn_in at least 0, and strength above 0")
        given = _given(X, y, times, self.duplicates)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        found = sample(
            given.rows,
            given.columns,
            given.values,
            given.shape,
            rank=self.rank,
            burn_in=self.burn_in,
            draws=self.draws,
            strength=self.strength,
            seed=seed,
            known=Known(given.times),
            progress=self.progress,
        )
        self.model_ = averaged(found, given)
        self.noise_, self.history_ = found.noise, found.history
        third = max(1, self.draws // 3)
        before, after = np.mean(self.history_[-2 * third : -third] or self.history_), np.mean(self.history_[-third:])
        self.converged_ = bool(abs(before - after) < 0.03 * after)
        self.reason_ = (
            f"{self.draws} draws after {self.burn_in}: the training error is at rest"
            if self.converged_
            else f"the training error still moves ({before:.4g} to {after:.4g}): raise burn_in"
        )
        return self

    def partial_fit(self, X: Any, y: Any = None, *, times: Any = None) -> Ratings:
        """Ratings of new rows, as `fit` takes them, without a new fit: columns and known rows stay, each new row is met
        by them, drawn to the known ones. A first call is `fit`.

        Ratings of columns that the fit did not know are left out, and those outside its scale count as given: both with
        a warning. Raises ``ValueError`` for a row that is known: its earlier ratings are not kept.
        Cost: a least squares a row.
        """
        if not hasattr(self, "model_"):
            return self.fit(X, y, times=times)
        given = _given(X, y, times, self.duplicates)
        known = set(self.model_.row_names)
        old = next((name for name in given.row_names if name in known), None)
        if old is not None:
            raise ValueError(
                f"row {old} is already known, and its earlier ratings are not kept: fit again with all of them"
            )
        _warn(self.model_, given)
        self.model_ = with_rows(self.model_, given, self.noise_)
        return self

    def predict(self, X: Any, *, times: Any = None, return_std: bool = False) -> Any:
        """Ratings (count,) of pairs or of those of `Triplets`, within the range of those that were learned from; with
        ``return_std`` also the standard deviation of a rating about each of them: noise, how far the draws
        differ, and what a moment of which nothing is known may add."""
        check_is_fitted(self)
        if isinstance(X, Triplets):
            at, when = X.numbered(self.model_.row_names, self.model_.column_names), X.times
        else:
            pairs = pairs_of(X)
            at = self.model_.indices(pairs[:, 0], pairs[:, 1])
            when = None if times is None else complete(times, len(pairs))
        told = self.model_.at(*at, when)
        return (told, self.model_.uncertainty(*at, when)) if return_std else told


def _warn(model: FactorModel, given: Triplets) -> None:
    """Of ratings that say less than they seem to."""
    columns = given.numbered(model.row_names, model.column_names)[1]
    new = np.flatnonzero(columns < 0)
    if len(new):
        warnings.warn(
            f"{len(new)} of {len(given)} ratings are of columns that the fit did not know, such as "
            f"{given.column_names[given.columns[new[0]]]}, and are left out: fit again with all ratings to learn them",
            stacklevel=3,
        )
    slack = 0.1 * (model.high - model.low)  # values without a scale may go a little farther
    outside = np.flatnonzero((given.values < model.low - slack) | (given.values > model.high + slack))
    if len(outside):
        warnings.warn(
            f"{len(outside)} of {len(given)} ratings, such as {given.values[outside[0]]:g}, are outside the scale of "
            f"the fit, {model.low:g} to {model.high:g}: are they in the same units? They count as given, and "
            "predictions stay on that scale",
            stacklevel=3,
        )


def _given(x: Any, y: Any, times: Any, duplicates: Duplicates) -> Triplets:
    if isinstance(x, Triplets):
        if y is not None or times is not None:
            raise ValueError("triplets hold their own ratings and times: leave y and times out")
        return x
    if y is None:
        raise ValueError("pairs need their ratings too: fit(pairs, ratings), or fit(triplets)")
    pairs = pairs_of(x)
    return triplets(pairs[:, 0], pairs[:, 1], y, duplicates=duplicates, times=times)
