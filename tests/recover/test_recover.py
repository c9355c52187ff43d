"""Recovery of low-rank matrices: operators are linear and adjoint, estimators find planted matrices and say when they
cannot."""

import os

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_info, threadpool_limits

from rankfold.recover import (
    AlternatingMinimization,
    CompressedDeepLinear,
    DeepLinear,
    Entries,
    Gaussian,
    Identity,
    LowRank,
    Mask,
    Measurements,
    NuclearNorm,
    ScaledGradientDescent,
    entries,
    surrogate,
)
from rankfold.recover.measurements import threads
from rankfold.recover.solvers.alternating import solve_left

F64 = np.empty(0)


def planted(m, n, r, fraction, seed=0, noise=0.0):
    """(M, X): a matrix of rank r with singular values within a factor of two, and X with NaN where it is not
    observed."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((m, r)))[0]
    v = np.linalg.qr(rng.standard_normal((n, r)))[0]
    matrix = u * np.linspace(20, 10, r) @ v.T
    observed = rng.random((m, n)) < fraction
    return matrix, np.where(observed, matrix + noise * rng.standard_normal((m, n)), np.nan)


def off(found, matrix):
    """Relative error."""
    return np.linalg.norm(found.reconstruct() - matrix) / np.linalg.norm(matrix)


def operators(shape, rng, kind):
    """Every operator on matrices of ``shape``, of the kind of ``kind``."""
    m, n = shape
    mask = (rng.random(shape) < 0.5).astype(float)
    mask[0, 0] = 1
    rows, columns = np.nonzero(mask)
    matrices = rng.standard_normal((7, m, n))
    as_kind = torch.from_numpy if isinstance(kind, torch.Tensor) else np.asarray
    return {
        "identity": Identity(shape, kind),
        "mask": Mask(as_kind(mask)),
        "entries": Entries(shape, rows, columns, kind),
        "measurements": Measurements(matrices, kind),
        "sparse measurements": Measurements(scipy.sparse.csr_array(matrices.reshape(7, -1)), kind, shape),
        "measurements of its kind": Measurements(as_kind(matrices), kind),
        "gaussian": Gaussian(shape, 9, 3, kind),
        "gaussian kept": Gaussian(shape, 9, 3, kind, keep=True),
    }


def dense(z, n, kind):
    """A*(y) written out, through products from the right and from the left."""
    eye = torch.eye(n, dtype=torch.float64) if isinstance(kind, torch.Tensor) else np.eye(n)
    return np.asarray(z @ eye)


@pytest.mark.parametrize("kind", [F64, torch.empty(0, dtype=torch.float64)], ids=["numpy", "torch"])
@settings(max_examples=15, deadline=None)
@given(m=st.integers(2, 7), n=st.integers(2, 7), k=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_operator_is_linear_and_adjoint(kind, m, n, k, seed):
    rng = np.random.default_rng(seed)
    as_kind = torch.from_numpy if isinstance(kind, torch.Tensor) else np.asarray
    left, right = as_kind(rng.standard_normal((m, k))), as_kind(rng.standard_normal((k, n)))
    for name, operator in operators((m, n), rng, kind).items():
        image = operator.push(left, right)
        assert np.allclose(operator.push(2 * left, right), 2 * image), name
        y = operator.push(as_kind(rng.standard_normal((m, 2))), as_kind(rng.standard_normal((2, n))))
        back = operator.adjoint(y)
        inner = float((image * y).sum())
        assert inner == pytest.approx(float(((left.T @ back) * right).sum()), rel=1e-9, abs=1e-9), name
        assert np.allclose(dense(back, n, kind).T @ np.asarray(left), np.asarray(left.T @ back).T), name
        # a wrong adjoint is seen
        if np.linalg.norm(dense(back, n, kind)) > 1e-6:
            assert inner + 1.0 != pytest.approx(float(((left.T @ back) * right).sum()), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "name", ["mask", "entries", "measurements", "sparse measurements", "gaussian", "gaussian kept"]
)
def test_part_of_an_operator_is_those_measurements_and_no_others(name):
    rng = np.random.default_rng(0)
    operator = operators((6, 5), rng, F64)[name]
    left, right = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    order = rng.permutation(operator.count)
    (one, take_one), (two, take_two) = operator.part(order[:3]), operator.part(order[3:])
    y = operator.push(left, right)
    assert one.count == 3
    assert two.count == operator.count - 3
    assert np.allclose(one.push(left, right), take_one(y))
    whole = dense(operator.adjoint(y), 5, F64)
    parts = dense(one.adjoint(take_one(y)), 5, F64) + dense(two.adjoint(take_two(y)), 5, F64)
    assert np.allclose(whole, parts)


def test_gaussian_measurements_are_the_same_whatever_the_block_and_match_their_matrices():
    operator = Gaussian((8, 6), 40, 5, F64)
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((8, 2)), rng.standard_normal((2, 6))
    y = operator.push(left, right)
    assert y[17] == pytest.approx(float((operator.matrix(17) * (left @ right)).sum()))
    assert np.allclose(y, Measurements(np.stack([operator.matrix(i) for i in range(40)]), F64).push(left, right))
    assert np.var(operator.matrix(3)) == pytest.approx(1 / 40, rel=0.6)


def test_surrogate_estimates_the_matrix():
    matrix, _ = planted(30, 20, 2, 1.0)
    operator = Gaussian((30, 20), 6000, 1, F64)
    u, s, vt = np.linalg.svd(matrix)
    y = operator.push(u[:, :2] * s[:2], vt[:2])
    assert np.linalg.norm(surrogate(operator, y) - matrix) < 0.5 * np.linalg.norm(matrix)


def test_entries_take_the_dense_form_only_where_it_is_small():
    rows, columns = np.array([0, 1999]), np.array([5, 1999])
    assert isinstance(entries((2000, 2000), rows, columns, np.ones(2))[0], Entries)
    assert isinstance(entries((20, 2000), rows % 20, columns, np.ones(2))[0], Mask)
    with pytest.raises(ValueError, match="entry 1: its row must be from 0 to 999, got 1999"):
        entries((1000, 2000), rows, columns, np.ones(2))


@pytest.mark.parametrize("bound", [4, 8, 12, 16])
def test_default_recovers_whatever_the_bound_on_the_rank(bound):
    matrix, x = planted(60, 50, 4, 0.35)
    found = LowRank(bound).fit(x)
    assert found.rank_ == 4
    assert found.converged_
    assert off(found, matrix) < 1e-8


@pytest.mark.parametrize("shape", [(60, 50), (50, 60), (90, 20)])
def test_default_recovers_rectangular_matrices_and_finds_the_rank_under_noise(shape):
    matrix, x = planted(*shape, 3, 0.5, seed=1, noise=0.05)
    found = LowRank().fit(x)
    assert found.rank_ == 3
    assert off(found, matrix) < 0.12


def test_default_keeps_small_singular_values():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((size, 4)))[0] for size in (60, 60))
    matrix = u * np.array([100.0, 10.0, 1.0, 0.1]) @ v.T
    found = LowRank(12).fit(np.where(rng.random((60, 60)) < 0.5, matrix, np.nan))
    assert found.rank_ == 4
    assert np.allclose(found.singular_values_, [100, 10, 1, 0.1])


def test_float32_and_sparse_input_and_tensors_find_the_same():
    matrix, x = planted(60, 50, 3, 0.4)
    assert off(LowRank(6, tol=1e-5).fit(x.astype(np.float32)), matrix) < 1e-3
    assert off(LowRank(6, device="cpu").fit(x), matrix) < 1e-8
    stored = scipy.sparse.csr_array(np.nan_to_num(x))
    assert off(LowRank(6).fit(stored), matrix) < 1e-8


@pytest.mark.parametrize(
    "estimator",
    [
        LowRank(6),
        CompressedDeepLinear(6, tol=1e-7),
        CompressedDeepLinear(3, tol=1e-7, depth=2),
        CompressedDeepLinear(6, tol=1e-7, depth=4),
        AlternatingMinimization(3),
        ScaledGradientDescent(3),
    ],
    ids=repr,
)
def test_planted_matrices_come_back(estimator):
    matrix, x = planted(50, 40, 3, 0.5)
    estimator.fit(x)
    assert estimator.converged_, estimator.reason_
    assert estimator.rank_ == 3
    assert off(estimator, matrix) < 1e-5


def test_wide_network_and_nuclear_norm_come_near():
    matrix, x = planted(30, 24, 1, 0.6)
    wide = DeepLinear(max_iter=4000, tol=1e-4, momentum=0.9, scale=0.1).fit(x)
    assert off(wide, matrix) < 0.05
    random = DeepLinear(max_iter=4000, tol=1e-4, momentum=0.9, scale=0.1, start="random").fit(x)
    assert off(random, matrix) < 0.05
    assert off(NuclearNorm().fit(x), matrix) < 0.05


@pytest.mark.parametrize("estimator", [LowRank(5), AlternatingMinimization(2), CompressedDeepLinear(4)], ids=repr)
def test_sensing(estimator):
    matrix, _ = planted(20, 15, 2, 1.0)
    u, s, vt = np.linalg.svd(matrix)
    for operator in (Gaussian((20, 15), 200, 0, F64, keep=True), Identity((20, 15), F64)):
        y = operator.push(u[:, :2] * s[:2], vt[:2])
        estimator.fit(operator, y)
        assert estimator.rank_ == 2
        assert off(estimator, matrix) < 1e-6


def test_over_estimated_rank_is_told_where_others_fail():
    matrix, x = planted(60, 50, 4, 0.3)
    scaled = ScaledGradientDescent(16).fit(x)
    assert not scaled.converged_
    assert "diverged" in scaled.reason_ or "singular" in scaled.reason_
    alternating = AlternatingMinimization(12, max_iter=100).fit(x)
    assert off(alternating, matrix) > 0.1
    assert off(LowRank(16).fit(x), matrix) < 1e-8


def test_too_few_measurements_are_reported_not_hidden():
    matrix, x = planted(40, 40, 5, 0.2)  # 320 entries for 375 degrees of freedom
    found = LowRank(rank=5).fit(x)
    assert off(found, matrix) > 0.1
    assert not found.converged_
    assert "degrees of freedom" in found.reason_


def test_held_out_entries_stop_and_choose():
    matrix, x = planted(40, 30, 2, 0.6, noise=0.5)
    found = AlternatingMinimization(8, validation_fraction=0.2, patience=3).fit(x)
    assert found.validation_error_ > 0
    assert found.n_iter_ < 500
    looks = [point.validation for point in found.history_]
    told = found.at(*np.nonzero(~np.isnan(x)))
    assert np.isfinite(told).all()
    assert min(looks) < looks[-1]
    over = AlternatingMinimization(8, max_iter=200).fit(x)
    assert off(found, matrix) < off(over, matrix)


def test_progress_is_told_and_bad_requests_are_refused():
    _, x = planted(30, 20, 2, 0.6)
    seen = []
    AlternatingMinimization(2, progress=lambda what, done, total: seen.append((what, done, total))).fit(x)
    assert seen[-1][1] == seen[-1][2]
    with pytest.raises(ValueError, match=r"rank must be from 1 to 20 .* got 21"):
        AlternatingMinimization(21).fit(x)
    with pytest.raises(ValueError, match="at least 2 factors"):
        CompressedDeepLinear(2, depth=1).fit(x)
    with pytest.raises(ValueError, match="nothing is known"):
        LowRank().fit(np.full((4, 3), np.nan))
    with pytest.raises(ValueError, match="needs its measurements too"):
        LowRank().fit(Gaussian((4, 3), 5, 0, F64))
    with pytest.raises(ValueError, match="measurement 1 is NaN or infinite"):
        LowRank().fit(Gaussian((4, 3), 3, 0, F64), [1.0, np.inf, 2.0])
    with pytest.raises(ValueError, match=r"\(2,\) measurements were given for an operator that makes \(3,\)"):
        LowRank().fit(Gaussian((4, 3), 3, 0, F64), [1.0, 2.0])


def test_transform_keeps_what_is_known_and_fills_new_rows():
    matrix, x = planted(40, 30, 3, 0.6)
    found = LowRank().fit(x[:30])
    filled = found.transform(x[30:])
    known = ~np.isnan(x[30:])
    assert np.array_equal(filled[known], x[30:][known])
    assert np.allclose(filled, matrix[30:], atol=1e-6)
    assert not found.transform(np.full((1, 30), np.nan)).any()


def test_operators_take_float64_of_numpy_unless_told():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((4, 2)), rng.standard_normal((2, 3))
    matrices = rng.standard_normal((5, 4, 3)).astype(np.float32)
    rows, columns = np.array([0, 2]), np.array([1, 2])
    pairs = [
        (Measurements(matrices), Measurements(matrices, F64)),
        (Gaussian((4, 3), 6, 1), Gaussian((4, 3), 6, 1, F64)),
        (Identity((4, 3)), Identity((4, 3), F64)),
        (Entries((4, 3), rows, columns), Entries((4, 3), rows, columns, F64)),
    ]
    for plain, told in pairs:
        assert plain.push(left, right).dtype == np.float64
        assert np.array_equal(plain.push(left, right), told.push(left, right))


def test_a_row_is_solved_for_as_least_squares_would():
    rng = np.random.default_rng(0)
    right, values = rng.standard_normal((2, 9)), rng.standard_normal((4, 9))
    mask = (rng.random((4, 9)) < 0.7).astype(float)
    found = solve_left(Mask(mask), values * mask, np.zeros((4, 2)), right, 0.0)
    for row in range(4):
        seen = mask[row] > 0
        assert np.allclose(found[row], np.linalg.lstsq(right[:, seen].T, values[row, seen], rcond=None)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_with_fewer_entries_than_the_rank_are_no_obstacle(dtype):
    matrix, x = planted(60, 50, 3, 0.4)
    x[0], x[:, 0] = np.nan, np.nan
    x[1, 1:] = np.nan
    x[1, 4] = matrix[1, 4]
    found = AlternatingMinimization(3, max_iter=20).fit(x.astype(dtype))
    assert np.isfinite(found.left_).all()
    assert np.abs(found.left_[0]).max() < 1e-6 * np.abs(found.left_).max()
    assert np.allclose(found.reconstruct()[2:, 1:], matrix[2:, 1:], atol=0.2)


@parametrize_with_checks(
    [
        LowRank(),
        CompressedDeepLinear(1, max_iter=50),
        DeepLinear(max_iter=20),
        AlternatingMinimization(1, max_iter=20),
        ScaledGradientDescent(1, max_iter=20),
        NuclearNorm(path=2, max_iter=3),
    ]
)
def test_scikit_learn_accepts_it(estimator, check):
    check(estimator)


def test_small_problems_take_one_thread_and_large_ones_all_there_are(monkeypatch):
    seen: list[int] = []

    class Looking(LowRank):
        def _recover(self, operator, y, seed):
            seen.append(max(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"))
            return super()._recover(operator, y, seed)

    x = np.outer(np.arange(1.0, 31.0), np.arange(1.0, 21.0))
    with threadpool_limits(2, user_api="blas"):
        Looking(2).fit(x)
        monkeypatch.setattr(threads, "ALONE", 30 * 20 - 1)
        Looking(2).fit(x)
        after = max(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
    assert seen == [1, after]
    assert after == 2 or os.cpu_count() == 1


def test_the_last_of_overlapping_fits_gives_the_threads_back():
    def blas() -> int:
        return max(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")

    with threadpool_limits(2, user_api="blas"):
        before = blas()
        first, second = threads.threads_for(1), threads.threads_for(1)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas() == 1  # the second is still at work
        second.__exit__(None, None, None)
        assert blas() == before
