"""Few entries: found by a falling ridge where growing ranks fails, and never called found where it is not."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from rankfold.recover import LowRank, Ratings, entries
from rankfold.recover.solvers import search
from rankfold.recover.solvers.graded import graded


def few(m, n, r, over, seed=0):
    """(sparse, left, right): ``over`` entries for each degree of freedom, singular values nearly equal."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    cells = rng.choice(m * n, int(over * r * (m + n - r)), replace=False)
    rows, columns = cells // n, cells % n
    values = np.einsum("ij,ij->i", left[rows], right.T[columns])
    return scipy.sparse.csr_array((values, (rows, columns)), shape=(m, n)), left, right


def off(found, left, right):
    return np.linalg.norm(found.reconstruct() - left @ right) / np.linalg.norm(left @ right)


def test_few_entries_are_enough_with_a_falling_ridge(monkeypatch):
    x, left, right = few(1000, 800, 10, 1.5)
    found = LowRank(20).fit(x)
    assert found.rank_ == 10
    assert found.converged_
    enough = np.diff(x.indptr) >= 10  # one row has nine entries: any of many vectors meets them
    assert 0 < (~enough).sum() < 3
    assert np.abs((found.reconstruct() - left @ right)[enough]).max() < 1e-6
    assert "1 row has fewer entries than that and is not determined" in found.reason_
    monkeypatch.setattr(search, "POOR", np.inf)  # as it was without
    monkeypatch.setattr(search, "NEAR", np.inf)
    before = LowRank(20).fit(x)
    assert off(before, left, right) > 0.1
    assert not before.converged_


def test_too_few_are_not_called_found():
    x, left, right = few(300, 240, 10, 0.9)
    found = LowRank(20).fit(x)
    assert off(found, left, right) > 0.1
    assert not found.converged_


@pytest.mark.parametrize("shape", [(300, 240), (1200, 1000)])  # a mask, and single entries
def test_the_ridge_ends_at_the_rank_with_spare_columns(shape):
    x, left, right = few(*shape, 5, 2.5)
    known = x.tocoo()
    operator, y = entries(x.shape, *known.coords, known.data)
    start = graded(operator, y, 12, np.random.default_rng(0))
    assert start.rank == 5
    assert np.linalg.norm(start.left @ start.v - left @ right) < 0.1 * np.linalg.norm(left @ right)
    hopeless = graded(operator, y, 12, np.random.default_rng(0), missed=lambda _: 1.0)
    assert np.linalg.norm(hopeless.left @ hopeless.v - left @ right) > 0.1 * np.linalg.norm(left @ right)


def test_new_rows_join_without_a_new_fit():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 30))
    x = np.where(rng.random(truth.shape) < 0.6, truth, np.nan)
    found = LowRank().fit(x[:40])
    right = found.right_
    found.partial_fit(x[40:])
    assert found.right_ is right
    assert np.allclose(found.reconstruct(), truth, atol=1e-6)
    assert np.allclose(LowRank().partial_fit(x).reconstruct(), truth, atol=1e-6)
    with pytest.raises(ValueError, match="29 features"):
        found.partial_fit(x[:, :29])


def test_ratings_in_a_pipeline_and_a_grid():
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 25, (500, 2)), axis=0)
    values = rng.standard_normal(25)[pairs[:, 0]] + rng.standard_normal(25)[pairs[:, 1]]
    named = make_pipeline(FunctionTransformer(lambda x: x.astype(str)), Ratings(burn_in=20, draws=20))
    grid = GridSearchCV(named, {"ratings__rank": [1, 3]}, cv=3, scoring="neg_root_mean_squared_error")
    grid.fit(pairs, values)
    assert grid.best_score_ > -0.9
    assert set(grid.best_estimator_[-1].model_.row_names) <= {str(number) for number in range(25)}
