"""Least squares and its nuclear-norm ball: cvxpy, the recovery oracle of theorem 3.1, and statistics that are hard."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.linalg import (
    NonFiniteError,
    least_squares,
    nuclear_fit,
    nuclear_fit_rows,
    nuclear_radius,
    project,
    shrink_to_ball,
    squared_error,
)
from rankfold.linalg.on_data.regression import column_space
from rankfold.linalg.programs.proximal import project_nuclear_ball

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cvxpy

seeds = st.integers(0, 2**31)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioned(rows, n, decades, seed=0):
    u, v = torch.linalg.qr(draw(rows, n, seed=seed))[0], torch.linalg.qr(draw(n, n, seed=seed + 1))[0]
    return (u * torch.logspace(0, -decades, n, dtype=torch.float64)) @ v


def moments(x, y):
    return x.mT @ x, x.mT @ y


def nuclear(a):
    return float(torch.linalg.svdvals(a).sum())


@pytest.mark.parametrize("decades", [5, 7, 9])
@pytest.mark.parametrize("weighted", [False, True])
def test_from_rows_the_condition_of_the_inputs_does_not_matter(decades, weighted):
    x, y = conditioned(60, 5, decades), draw(60, 4, seed=2)
    root = torch.tensor([2.0, 1.0, 0.5, 1.5], dtype=x.dtype) if weighted else torch.ones(4, dtype=x.dtype)
    basis = torch.linalg.qr(draw(60, 5))[0]
    u, s, vh = torch.linalg.svd(basis.mT @ y * root, full_matrices=False)
    fit = nuclear_fit_rows(x, y, radius=3.0, metric=root.square() if weighted else None)
    torch.testing.assert_close(fit.singular_values, s)
    assert nuclear(x @ (fit.left @ fit.right).mT * root) == pytest.approx(3, rel=1e-6)
    best = nuclear_fit_rows(x, y, rank=2, metric=root.square() if weighted else None).debias()
    found = x @ (best.left @ best.right).mT * root
    assert (found - basis @ (u[:, :2] * s[:2]) @ vh[:2]).norm() < 1e-6 * s[0]


def test_from_rows_a_rank_above_that_of_the_inputs_is_the_whole_fit():
    x, y = draw(20, 2) @ draw(2, 5, seed=1), draw(20, 4, seed=2)
    fit = nuclear_fit_rows(x, y, rank=3)
    assert fit.rank == 2
    assert fit.singular_values.shape == (4,)
    torch.testing.assert_close(x @ (fit.left @ fit.right).mT, x @ torch.linalg.pinv(x) @ y)


def reference(x, y, radius, root=None):
    """½ the squared error at the optimum, by an interior-point method that knows nothing of ours."""
    z = cvxpy.Variable((x.shape[1], y.shape[1]))
    d = torch.eye(y.shape[1], dtype=x.dtype) if root is None else root
    x, y, d = x.numpy(), y.numpy(), d.numpy()
    problem = cvxpy.Problem(
        cvxpy.Minimize(0.5 * cvxpy.sum_squares((y - x @ z) @ d)), [cvxpy.normNuc(x @ z @ d) <= radius]
    )
    problem.solve(cvxpy.CLARABEL, tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
    return problem.value


def value(fit, x, y, root=1.0):
    return float((((y - x @ (fit.left @ fit.right).mT) * root) ** 2).sum()) / 2


@pytest.mark.parametrize("part", [0.2, 0.7, 2.0])
@pytest.mark.parametrize("rank_of_x", [6, 4])
def test_objective_is_that_of_an_interior_point_method(part, rank_of_x):
    """Also where the radius does not bind, and where the inputs are linearly dependent."""
    x, y = draw(14, rank_of_x, seed=1) @ draw(rank_of_x, 6, seed=2), draw(14, 7, seed=3)
    fitted = column_space(x).basis
    radius = part * nuclear(fitted.mT @ y)
    for fit in (nuclear_fit(*moments(x, y), radius=radius), nuclear_fit_rows(x, y, radius=radius)):
        assert value(fit, x, y) == pytest.approx(reference(x, y, radius), rel=1e-6)
        assert nuclear(x @ (fit.left @ fit.right).mT) <= radius * (1 + 1e-9)
        residual = float((y - fitted @ (fitted.mT @ y)).square().sum())
        assert 2 * value(fit, x, y) == pytest.approx(float(fit.lost) ** 2 + residual)


def test_the_reference_rejects_truncation_to_the_radius():
    """Keeping whole singular values as long as their sum allows is feasible and not optimal."""
    x, y = draw(14, 6, seed=1), draw(14, 7, seed=3)
    radius = 0.7 * nuclear(column_space(x).basis.mT @ y)
    found = project(least_squares(*moments(x, y)), inputs=x.mT @ x)
    rank = int((found.singular_values.cumsum(0) <= radius).sum())
    left, right = found.factors(rank)
    wrong = float((y - x @ (left @ right).mT).square().sum()) / 2
    assert wrong > reference(x, y, radius) * (1 + 1e-3)


def test_an_output_metric_is_the_same_program_on_weighted_outputs():
    x, y, metric = draw(14, 5, seed=4), draw(14, 6, seed=5), draw(6, seed=6).square() + 0.1
    radius = 0.5 * nuclear(column_space(x).basis.mT @ (y * metric.sqrt()))
    fit = nuclear_fit(*moments(x, y), radius=radius, metric=metric)
    assert value(fit, x, y, metric.sqrt()) == pytest.approx(
        reference(x, y, radius, torch.diag(metric.sqrt())), rel=1e-6
    )


@given(seed=seeds, rank=st.integers(1, 5), n=st.integers(5, 9), m=st.integers(5, 9))
def test_the_radius_of_a_rank_leaves_that_rank_and_debiasing_is_the_best_fit(seed, rank, n, m):
    x, y = draw(20, n, seed=seed), draw(20, m, seed=seed + 1)
    fit = nuclear_fit(*moments(x, y), rank=rank)
    assert fit.rank == rank
    assert fit.right.shape == (rank, n)
    assert nuclear(x @ (fit.left @ fit.right).mT) == pytest.approx(nuclear_radius(fit.singular_values, rank))
    best = fit.debias()
    fitted = column_space(x).basis.mT @ y
    tail = torch.linalg.svdvals(fitted)[rank:].square().sum()
    expected = y.square().sum() - fitted.square().sum() + tail
    assert 2 * value(best, x, y) == pytest.approx(float(expected))
    assert squared_error(best.left @ best.right, *moments(x, y), y.square().sum()) == pytest.approx(float(expected))
    assert value(fit, x, y) >= value(best, x, y) * (1 - 1e-12)


def test_projection_onto_the_span_comes_before_truncation():
    """Where the inputs are others than those the outputs were made from: the other order is worse."""
    original, x, weight = draw(60, 12, seed=1), draw(60, 12, seed=2), draw(9, 12, seed=3)
    x = original + 0.7 * x
    y = original @ weight.mT
    found = project(least_squares(*moments(x, y)), inputs=x.mT @ x)
    u, s, vh = torch.linalg.svd(y, full_matrices=False)
    for rank in (2, 4, 6):
        left, right = found.factors(rank)
        ours = (y - x @ (left @ right).mT).norm()
        truncated = torch.linalg.lstsq(x, (u[:, :rank] * s[:rank]) @ vh[:rank]).solution
        symmetric = project(weight, inputs=original.mT @ original).factors(rank)
        assert ours < (y - x @ truncated).norm() * (1 - 1e-4)
        assert ours < (y - x @ (symmetric[0] @ symmetric[1]).mT).norm() * (1 - 1e-4)


@given(seed=seeds)
def test_only_the_span_of_the_inputs_counts(seed):
    x, y, change = draw(15, 5, seed=seed), draw(15, 4, seed=seed + 1), draw(5, 5, seed=seed + 2)
    for rank in (1, 3):
        one, other = nuclear_fit(*moments(x, y), rank=rank), nuclear_fit(*moments(x @ change, y), rank=rank)
        torch.testing.assert_close(
            x @ (one.left @ one.right).mT, x @ change @ (other.left @ other.right).mT, rtol=1e-5, atol=1e-6
        )


def mse_over_oracle(fit, repeats=40, rows=200, n=20, m=30, rank=4, sigma=0.1):
    """Mean squared error of a batched estimator over σ² r (k + m − r)/(N m), k = n: 1 for theorem 3.1."""
    x = draw(rows, n, seed=7)
    truth = x @ draw(n, rank, seed=8) @ draw(rank, m, seed=9)
    y = truth + sigma * draw(repeats, rows, m, seed=10)
    error = (fit(x.expand(repeats, -1, -1), y, rank) - truth).square().mean()
    return float(error) / (sigma**2 * rank * (n + m - rank) / (rows * m))


def closed_form(x, y, rank):
    gram = x.mT @ x
    left, right = project(least_squares(gram, x.mT @ y), inputs=gram).factors(rank)
    return x @ (left @ right).mT


def test_mean_squared_error_is_that_of_theory():
    assert mse_over_oracle(closed_form) == pytest.approx(1, abs=0.03)


def test_the_oracle_rejects_an_estimator_without_the_projection():
    def truncated(x, y, rank):
        u, s, vh = torch.linalg.svd(y, full_matrices=False)
        return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]

    assert mse_over_oracle(truncated) > 1.5
    assert mse_over_oracle(lambda x, y, rank: closed_form(x, y, rank + 1)) > 1.03


def hard(kind):
    x = {
        "condition 1e6": conditioned(80, 12, 6),
        "dependent": draw(80, 4, seed=1) @ draw(4, 12, seed=2),
        "outlier": draw(80, 12, seed=3) * torch.tensor([1e5] + [1.0] * 11),
        "few": draw(7, 12, seed=4),
        "silent": draw(80, 12, seed=5) * torch.tensor([0.0] + [1.0] * 11),
    }[kind]
    return x, x @ draw(12, 9, seed=6) + 0.1 * x.norm() / 30 * draw(len(x), 9, seed=7)


@pytest.mark.parametrize("kind", ["condition 1e6", "dependent", "outlier", "few", "silent"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hard_statistics_reach_the_optimum_within_a_percent(kind, dtype):
    x, y = hard(kind)
    rows = x.to(dtype), y.to(dtype)
    exact = rows[0].double(), rows[1].double()  # the problem that the rows state
    basis = torch.linalg.svd(exact[0], full_matrices=False)
    basis = basis[0][:, basis[1] > 1e-7 * basis[1][0]] if kind != "condition 1e6" else basis[0]
    fitted = basis.mT @ exact[1]
    for rank in (2, 5):
        tail = torch.linalg.svdvals(fitted)[rank:].square().sum()
        optimum = float((exact[1].square().sum() - fitted.square().sum() + tail).clamp_min(0).sqrt())
        for fit in (nuclear_fit(*moments(*exact), rank=rank), nuclear_fit_rows(*rows, rank=rank)):
            left, right = fit.debias().left, fit.debias().right
            error = float((exact[1] - exact[0] @ (left @ right).mT).norm())
            assert error <= 1.01 * optimum + 1e-6 * float(exact[1].norm())


def test_an_anchor_decides_where_the_data_are_silent():
    x = draw(30, 3, seed=1) @ draw(3, 8, seed=2)
    weight = draw(5, 8, seed=3)
    gram, cross = moments(x, x @ weight.mT)
    torch.testing.assert_close(least_squares(gram, cross, anchor=weight), weight)
    free = least_squares(gram, cross)
    torch.testing.assert_close(x @ free.mT, x @ weight.mT)
    assert not torch.allclose(free, weight)


@given(seed=seeds, ridge=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_ridge_is_rows_added_to_the_data(seed, ridge):
    x, y, weight = draw(12, 5, seed=seed), draw(12, 4, seed=seed + 1), draw(4, 5, seed=seed + 2)
    rows = torch.cat([x, ridge**0.5 * torch.eye(5).double()])
    wanted = torch.cat([y, ridge**0.5 * weight.mT])
    torch.testing.assert_close(
        least_squares(*moments(x, y), anchor=weight, ridge=ridge), torch.linalg.lstsq(rows, wanted).solution.mT
    )


def test_batches_are_solved_one_by_one():
    x, y = draw(3, 20, 5, seed=1), draw(3, 20, 4, seed=2)
    together = least_squares(x.mT @ x, x.mT @ y)
    for g in range(3):
        torch.testing.assert_close(together[g], least_squares(*moments(x[g], y[g])))


@given(seed=seeds, part=st.floats(0.01, 1.5))
def test_the_nearest_point_of_the_ball_is_found(seed, part):
    """Optimality: no feasible point lies in front of the plane through the projection."""
    a, other = draw(5, 4, seed=seed), draw(5, 4, seed=seed + 1)
    radius = part * nuclear(a)
    found = project_nuclear_ball(a, radius)
    assert nuclear(found) <= radius * (1 + 1e-12)
    feasible = other * (radius / nuclear(other))
    assert float(((a - found) * (feasible - found)).sum()) <= 1e-9
    assert float(((a - found) * (feasible - found)).sum()) <= 1e-9


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"radius": 0.0}, "above 0"),
        ({"radius": float("nan")}, "above 0"),
        ({"radius": float("inf")}, "finite"),
        ({"rank": 0}, "rank must be from 1 to 3, got 0"),
        ({"rank": 9}, "rank must be from 1 to 3, got 9"),
        ({}, "and not both"),
        ({"rank": 1, "radius": 1.0}, "and not both"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, word):
    x, y = draw(10, 4), draw(10, 3, seed=1)
    for call in (lambda: nuclear_fit(*moments(x, y), **options), lambda: nuclear_fit_rows(x, y, **options)):
        with pytest.raises(ValueError, match=word) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_is_not_a_statistic_is_refused():
    x, y = draw(10, 4), draw(10, 3, seed=1)
    with pytest.raises(NonFiniteError):
        nuclear_fit_rows(x, y.clone().fill_(float("inf")), rank=1)
    with pytest.raises(ValueError, match="at least one"):
        nuclear_fit_rows(x[:0], y[:0], rank=1)
    with pytest.raises(ValueError, match="do not fit"):
        least_squares(x.mT @ x, draw(5, 3))
    with pytest.raises(ValueError, match="anchor"):
        least_squares(*moments(x, y), anchor=draw(4, 3))
    with pytest.raises(ValueError, match="ridge"):
        least_squares(*moments(x, y), ridge=-1.0)
    with pytest.raises(ValueError, match="equal"):
        nuclear_radius(torch.ones(4), 2)
    with pytest.raises(ValueError, match="singular values of one weight were expected"):
        shrink_to_ball(project(draw(2, 3, 4), inputs=torch.eye(4).double().expand(2, 4, 4)), 1.0)


def test_a_radius_below_rounding_leaves_nothing():
    fit = nuclear_fit(torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), radius=1e-17)
    assert len(fit.shrunk) == 0
    assert float((fit.left @ fit.right).norm()) == 0
