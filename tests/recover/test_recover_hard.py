"""Few entries: found by a falling ridge where growing ranks fails, and never called found where it is not."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from rankfold.recover import LowRank, Ratings, entries
from rankfold.recover.solvers import search, spectral
from rankfold.recover.solvers.blocks import Blocks
from rankfold.recover.solvers.graded import graded
from rankfold.recover.solvers.tangent import Point, residual, retract, tangent_step


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


def test_few_entries_are_enough_once_rows_and_columns_count_alike(monkeypatch):
    x, left, right = few(1000, 800, 10, 1.5)
    found = LowRank(20).fit(x)
    assert found.rank_ == 10
    assert found.converged_
    enough = np.diff(x.indptr) >= 10  # one row has nine entries: any of many vectors meets them
    assert 0 < (~enough).sum() < 3
    assert np.abs((found.reconstruct() - left @ right)[enough]).max() < 1e-6
    assert "1 row has fewer entries than that and is not determined" in found.reason_
    assert (len(found.undetermined_rows_), len(found.undetermined_columns_)) == (1, 0)
    monkeypatch.setattr(spectral, "ROUNDS", 0)  # as it was without, and without a falling ridge
    monkeypatch.setattr(search, "POOR", np.inf)
    monkeypatch.setattr(search, "NEAR", np.inf)
    before = LowRank(20).fit(x)
    assert off(before, left, right) > 0.1
    assert not before.converged_


def test_all_pairs_stand_out_from_few_entries():
    x, _, _ = few(1000, 800, 10, 1.5)
    known = x.tocoo()
    operator, y = entries(x.shape, *known.coords, known.data)
    assert spectral.outstanding(operator, y, 1, 40, np.random.default_rng(0)).rank == 10
    signs = np.random.default_rng(1).choice([-1.0, 1.0], len(y))
    assert spectral.outstanding(operator, y * signs, 1, 40, np.random.default_rng(0)).rank == 1
    large = np.geomspace(1, 1e3, 1000)[known.coords[0]]  # rows of other units leave the rank as it is
    assert spectral.outstanding(operator, y * large, 1, 40, np.random.default_rng(0)).rank == 10


@pytest.mark.parametrize("density", [0.05, 0.5])  # single entries, and a mask
def test_rows_are_solved_by_their_own_systems(density):
    """One step of least squares in which only the rows move, started at the true columns, ends at the truth."""
    rng = np.random.default_rng(0)
    m, n, r = 700, 600, 3
    left, right = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    rows, columns = np.nonzero(rng.random((m, n)) < density)
    operator, y = entries((m, n), rows, columns, (left @ right)[rows, columns])
    v = np.linalg.qr(right.T)[0].T
    u = np.linalg.qr(rng.standard_normal((m, r)))[0]
    blocks = Blocks.at(operator, u, v, 0.0)
    image = operator.adjoint(y)
    solved, _ = blocks(image @ v.T, u.T @ image)
    assert np.allclose(solved @ v, left @ right, atol=1e-6)
    damped, _ = Blocks.at(operator, u, v, 1e9)(image @ v.T, u.T @ image)
    assert np.abs(damped).max() < 1e-6


def test_barely_determined_rows_take_few_iterations_by_their_own_systems():
    x, left, right = few(300, 240, 4, 2.0, seed=4)
    known = x.tocoo()
    assert (np.diff(x.indptr) == 4).any()  # as many entries as the rank
    operator, y = entries(x.shape, *known.coords, known.data)
    u, s, vt = np.linalg.svd(left @ right, full_matrices=False)
    u = np.linalg.qr(u[:, :4] + 1e-4 * np.random.default_rng(0).standard_normal((300, 4)))[0]
    near = Point(u, s[:4], vt[:4])
    rest = residual(operator, y, near)
    *_, plain = tangent_step(operator, rest, near, iterations=1000, tol=1e-4)
    du, dv, by_rows = tangent_step(operator, rest, near, iterations=1000, tol=1e-4, blocks=True)
    assert 3 * by_rows < plain
    after = residual(operator, y, retract(near, du, dv))
    assert np.linalg.norm(after) < 0.01 * np.linalg.norm(rest)


@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_matrix_that_meets_its_entries_is_not_called_found(seed):
    x, left, right = few(300, 240, 4, 1.2, seed)
    found = LowRank(rank=4).fit(x)
    assert off(found, left, right) > 0.5
    assert not found.converged_
    assert "held-out ones are missed" in found.reason_


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


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_units_do_not_matter_to_directions_in_single_precision(unit):
    x, left, right = few(1000, 800, 5, 4.0)
    found = LowRank(10).fit(x * unit)
    assert found.rank_ == 5
    assert found.converged_
    assert off(found, left * unit, right) < 1e-8


def test_entries_in_any_order_are_the_same_operator():
    x, _, _ = few(1000, 800, 5, 4.0)
    known = x.sorted_indices().tocoo()
    rows, columns = known.coords
    order = np.random.default_rng(0).permutation(len(rows))
    operator, y = entries(x.shape, rows[order], columns[order], known.data[order])
    assert (operator.rows == rows).all()
    assert (operator.columns == columns).all()
    assert (y == known.data).all()
    few_columns = np.random.default_rng(1).standard_normal((1000, 3))
    assert np.allclose(few_columns.T @ operator.adjoint(y), few_columns.T @ x.toarray())
    assert np.allclose(operator.adjoint(y) @ x[:3].toarray().T, x.toarray() @ x[:3].toarray().T)
