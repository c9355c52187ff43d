"""How the default finds a rank: what stands out from noise is taken at once, and what dies away is let go."""

import numpy as np
import pytest
import scipy.sparse

from rankfold.recover import LowRank, Measurements, entries, surrogate
from rankfold.recover.solvers import search
from rankfold.recover.solvers.growth import Search, _sparer, fineness, grow, simplest
from rankfold.recover.solvers.outcome import Rules
from rankfold.recover.solvers.spectral import outstanding
from rankfold.recover.solvers.tangent import Point, krylov, leading, residual


def equal(m, n, r, over, seed=0):
    """Entries of a matrix of r nearly equal singular values, ``over`` for each degree of freedom: (operator, y, U)."""
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    cells = np.unique(rng.integers(0, m * n, int(over * r * (m + n - r))))
    rows, columns = cells // n, cells % n
    values = np.einsum("ij,ij->i", left[rows], right.T[columns])
    operator, y = entries((m, n), rows, columns, values)
    return operator, y, np.linalg.qr(left)[0]


def captured(u, point):
    """The part of the true column space (1 is all) that the found one holds."""
    return np.linalg.norm(u.T @ point.u) ** 2 / u.shape[1]


def test_krylov_finds_more_than_power_steps_of_the_same_number_of_products():
    operator, y, u = equal(1500, 1200, 10, 4.0)
    seed = np.random.default_rng(1).standard_normal((1200, 14))
    matrix = surrogate(operator, y)
    by_blocks, by_steps = krylov(matrix, 10, seed, 4), leading(matrix, 10, seed, 3)
    assert (by_blocks.s >= by_steps.s).all()  # Rayleigh–Ritz in a space that holds the other
    assert captured(u, by_blocks) > captured(u, krylov(matrix, 10, seed, 2)) + 0.05


@pytest.mark.parametrize("most", [10, 12, 40])
def test_all_that_stands_out_is_taken_at_once_and_noise_is_not(most):
    operator, y, u = equal(600, 500, 10, 4.0)
    found = outstanding(operator, y, 1, most, np.random.default_rng(0))
    assert found.rank == 10
    assert captured(u, found) > 0.7
    flipped = y * np.random.default_rng(3).choice([-1.0, 1.0], y.shape)
    assert outstanding(operator, flipped, 1, most, np.random.default_rng(0)).rank <= 2  # noise beside noise
    assert outstanding(operator, flipped, 3, most, np.random.default_rng(0)).rank == 3
    assert outstanding(operator, y, 1, 4, np.random.default_rng(0)).rank == 4  # a bound is a bound


def test_a_search_visits_the_true_rank_first():
    operator, y, _ = equal(600, 500, 10, 4.0)
    x, seen = grow(operator, y, None, Search(40), Rules(tol=1e-8), np.random.default_rng(0))
    assert [one.rank for one in seen] == [10]
    assert x.rank == 10
    assert seen[0].training < 1e-8


def test_a_value_on_its_way_to_zero_is_let_go_and_one_that_is_needed_is_not():
    operator, y, _ = equal(300, 250, 3, 6.0)
    rng = np.random.default_rng(0)
    x, _ = grow(operator, y, None, Search(3), Rules(tol=1e-10), rng)

    def beside(last):
        u = np.linalg.qr(np.column_stack([x.u, rng.standard_normal(300)]))[0]
        v = np.linalg.qr(np.column_stack([x.v.T, rng.standard_normal(250)]))[0].T
        u[:, :3], v[:3] = x.u, x.v
        return Point(u, np.append(x.s, last * x.s[-1]), v)

    spurious = beside(0.01)
    rest = residual(operator, y, spurious)
    kept, left = _sparer(operator, y, spurious, rest, float(np.linalg.norm(rest)))
    assert kept.rank == 3
    assert np.linalg.norm(left) < np.linalg.norm(rest)
    wanted = y + operator.push(spurious.left, spurious.v) - operator.push(x.left, x.v)
    rest = residual(operator, wanted, spurious)
    kept, _ = _sparer(operator, wanted, spurious, rest, 0.5 * float(np.linalg.norm(wanted - y)))
    assert kept.rank == 4
    assert _sparer(operator, y, x, residual(operator, y, x), np.inf)[0].rank == 3  # no gap, nothing to let go


def test_a_large_noisy_matrix_gets_its_rank():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((1000, 6)), rng.standard_normal((6, 700))
    cells = np.unique(rng.integers(0, 700_000, 60_000))
    rows, columns = cells // 700, cells % 700
    truth = left @ right
    given = truth[rows, columns] + rng.standard_normal(len(rows))
    found = LowRank().fit(scipy.sparse.csr_array((given, (rows, columns)), shape=truth.shape))
    assert found.rank_ == 6
    error = np.sqrt(np.mean((found.reconstruct() - truth) ** 2))
    best = np.sqrt(6 * (1000 + 700 - 6) / len(rows))  # of least squares with all else known
    assert best < error < 1.3 * best


def test_finding_nothing_is_told():
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(rng.random((300, 200)) < 0.2)
    shape = (300, 200)
    found = LowRank().fit(scipy.sparse.csr_array((rng.standard_normal(len(rows)), (rows, columns)), shape=shape))
    assert not found.converged_
    assert "there are too few measurements, or there is only noise" in found.reason_
    left, right = rng.standard_normal((300, 2)), rng.standard_normal((2, 200))
    values = (left @ right)[rows, columns] + 0.5 * rng.standard_normal(len(rows))
    found = LowRank().fit(scipy.sparse.csr_array((values, (rows, columns)), shape=shape))
    assert found.converged_
    assert "Held-out" not in found.reason_


def sensed(seed, count=120, noise=0.05):
    """(operator, y, truth): ``count`` Gaussian measurements of a 15 × 12 matrix of rank 2, 50 degrees of freedom."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((15, 2)) @ rng.standard_normal((2, 12))
    matrices = rng.standard_normal((count, 15, 12))
    y = np.einsum("kij,ij->k", matrices, truth) + noise * rng.standard_normal(count)
    return Measurements(matrices), y, truth


@pytest.mark.parametrize("bound", [None, 12])
def test_few_noisy_measurements_get_no_rank_that_fits_their_noise(bound):
    operator, y, truth = sensed(2)
    found, known = LowRank(bound).fit(operator, y), LowRank(rank=2).fit(operator, y)
    assert found.rank_ == 2
    assert found.converged_
    assert "120 measurements for 50 degrees of freedom, held-out ones missed by 0." in found.reason_
    assert np.linalg.norm(found.reconstruct() - truth) < 1.05 * np.linalg.norm(known.reconstruct() - truth)
    # the noise alone would be met at rank 5, and is not counted as error of what is held out
    over = LowRank(rank=5).fit(operator, y)
    assert over.training_error_ < 0.3 * found.training_error_
    assert over.validation_error_ > 1.8 * found.validation_error_


def test_few_entries_with_noise_get_their_rank():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((25, 3)) @ rng.standard_normal((3, 20))
    given = truth + 0.2 * rng.standard_normal(truth.shape)
    found = LowRank().fit(np.where(rng.random(truth.shape) < 0.8, given, np.nan))
    assert found.rank_ == 3
    assert found.converged_


@pytest.mark.parametrize("seed", range(3))
def test_too_few_measurements_do_not_vouch_for_what_was_found(seed):
    operator, y, truth = sensed(seed, count=30)
    found = LowRank().fit(operator, y)
    assert np.linalg.norm(found.reconstruct() - truth) > 0.5 * np.linalg.norm(truth)
    assert not found.converged_
    assert "30 measurements for 26 degrees of freedom; held-out ones are missed by" in found.reason_
    assert found.validation_error_ > 3 * found.training_error_  # not the residual under another name
    operator, y, _ = sensed(seed, count=75, noise=0.0)  # as few, but met: a matrix of smaller rank is no accident
    found = LowRank().fit(operator, y)
    assert found.rank_ == 2
    assert found.converged_


def test_the_smallest_rank_within_a_standard_error():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(200) ** 2
    squares = {1: noise + 1.0 * rng.random(200), 2: noise + 1e-3 * rng.standard_normal(200), 3: noise}
    assert simplest(squares, 3, 200) == 2
    assert simplest({3: noise, 1: squares[1]}, 3, 200) == 3  # rank 1 is surely worse


def test_noise_is_no_reason_to_start_again(monkeypatch):
    calls = []
    monkeypatch.setattr(search, "graded", lambda *_: calls.append(1))
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((500, 3)), rng.standard_normal((3, 400))
    rows, columns = np.nonzero(rng.random((500, 400)) < 0.1)
    truth = (left @ right)[rows, columns]
    given = truth + 1.5 * rng.standard_normal(len(rows))  # held-out ones are missed by more than half of their size
    table = scipy.sparse.csr_array((given, (rows, columns)), shape=(500, 400))
    assert LowRank(10).fit(table).rank_ == 3
    assert not calls
    monkeypatch.setattr(search, "NOISE", 0.0)
    LowRank(10).fit(table)
    assert calls


def test_a_step_is_solved_no_further_than_the_tolerance_asks():
    assert fineness(0.5, 1e-3) == 0.1
    assert fineness(1e-3, 1e-5) == 1e-3
    assert fineness(1e-9, 1e-9) == 1e-4
    assert fineness(1e-9, 0.02) == pytest.approx(0.004)
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 50))
    found = LowRank(6, tol=1e-6).fit(np.where(rng.random(truth.shape) < 0.4, truth, np.nan))
    assert 1e-12 < np.linalg.norm(found.reconstruct() - truth) / np.linalg.norm(truth) < 1e-5


def far_from_zero(m, n, noise, mean=1500.0):
    """(x, truth, which are unknown): rank 2 beside a mean that is a thousand times as large, a half known."""
    rng = np.random.default_rng(1)
    truth = mean + rng.standard_normal((m, 2)) @ rng.standard_normal((2, n))
    known = rng.random((m, n)) < 0.5
    return np.where(known, truth + noise * rng.standard_normal((m, n)), np.nan), truth, ~known


@pytest.mark.parametrize(("m", "n"), [(60, 50), (100, 80)])  # cross-validated, and with a part held out
def test_what_a_matrix_far_from_zero_varies_by_is_kept(m, n):
    x, truth, unknown = far_from_zero(m, n, 0.05)
    found = LowRank(6).fit(x)
    assert found.rank_ == 3
    missed = np.linalg.norm((found.reconstruct() - truth)[unknown])
    assert missed < 0.04 * np.linalg.norm((truth - truth.mean())[unknown])
    noisy = np.hypot(missed / unknown.sum() ** 0.5, 0.05) / 1500  # what is held out has noise too
    assert 0.8 * noisy < found.validation_error_ < 1.5 * noisy


@pytest.mark.parametrize(("m", "n"), [(60, 50), (100, 80)])
def test_the_held_out_error_is_that_of_what_is_returned(m, n, monkeypatch):
    monkeypatch.setattr(search, "AS_WELL", np.inf)  # all is let go
    x, truth, unknown = far_from_zero(m, n, 0.05)
    found = LowRank(6).fit(x)
    assert found.rank_ == 1
    missed = np.linalg.norm((found.reconstruct() - truth)[unknown]) / np.linalg.norm(truth[unknown])
    assert 0.7 * missed < found.validation_error_ < 1.4 * missed


def test_a_singular_value_below_the_tolerance_is_returned_where_it_is_needed():
    x, truth, unknown = far_from_zero(60, 50, 0.0, 1e9)
    found = LowRank(6).fit(x)
    assert np.linalg.norm((found.reconstruct() - truth)[unknown]) < 0.1 * np.linalg.norm(truth[unknown] - truth.mean())
