"""The bounds of the three theorems hold, are not vacuous, and fail where their constants are made smaller."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.linalg import nuclear_fit_rows, nuclear_max_norm, recovery_bounds
from rankfold.linalg.on_data.regression import column_space
from rankfold.linalg.programs.entrywise import Tobit
from rankfold.linalg.recovery_bounds import (
    approximate_rank,
    constrained_mse_bound,
    constrained_mse_rate,
    error_bound,
    misfit_rmse_bound,
    mse_bound,
    mse_expected,
    noise_bound,
    paper_radius,
    relu_curvature,
    relu_mse_rate,
    relu_slope_bound,
)

seeds = st.integers(0, 2**31)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(seed, rows=60, n=8, m=10, rank=2, sigma=0.3, signal=1.0):
    x = draw(rows, n, seed=seed)
    truth = signal * x @ draw(n, rank, seed=seed + 1) @ draw(rank, m, seed=seed + 2) / math.sqrt(n * rank)
    return x, truth, sigma * draw(rows, m, seed=seed + 3)


def projected(x, noise):
    return float(torch.linalg.matrix_norm(column_space(x).basis.mT @ noise, 2))


def best(x, y, rank):
    fit = nuclear_fit_rows(x, y, rank=rank).debias()
    return x @ (fit.left @ fit.right).mT


@given(seed=seeds, rank=st.integers(1, 5), signal=st.sampled_from([0.01, 0.3, 10.0]))
def test_the_error_is_below_the_deterministic_bound(seed, rank, signal):
    x, truth, noise = planted(seed, rank=rank, signal=signal)
    error = float((best(x, truth + noise, rank) - truth).norm())
    assert error <= error_bound(rank, projected(x, noise))
    assert error <= math.sqrt(60 * 10 * mse_bound(rank, 0.3, 60, 8, 10, confidence=1 - 1e-9))


def test_the_bound_without_its_constant_would_not_hold():
    x, truth, noise = planted(0)
    error = float((best(x, truth + noise, 2) - truth).norm())
    assert error > 0.2 * error_bound(2, projected(x, noise))


def test_gaussian_noise_stays_below_its_bound_as_often_as_said():
    noise = torch.linalg.matrix_norm(0.3 * draw(2000, 8, 10, seed=1), 2)
    for confidence in (0.0, 0.5, 0.9, 0.99):
        assert float((noise <= noise_bound(0.3, 8, 10, confidence)).double().mean()) >= confidence
    assert float((noise <= 0.7 * noise_bound(0.3, 8, 10, 0.5)).double().mean()) < 0.5


@pytest.mark.parametrize(("rank", "rows", "n", "m"), [(1, 60, 8, 10), (3, 120, 12, 9), (4, 80, 6, 20)])
def test_the_expected_error_is_attained(rank, rows, n, m):
    errors = []
    for seed in range(60):
        x, truth, noise = planted(10 * seed, rows, n, m, rank, 1e-3)
        errors.append(float((best(x, truth + noise, rank) - truth).square().mean()))
    mean = sum(errors) / len(errors)
    assert mean == pytest.approx(mse_expected(rank, 1e-3, rows, n, m), rel=0.06)
    assert mean != pytest.approx(mse_expected(rank + 1, 1e-3, rows, n, m), rel=0.06)


@given(seed=seeds, rank=st.integers(1, 4))
def test_a_matrix_of_rank_r_is_approximately_so(seed, rank):
    a = draw(20, rank, seed=seed) @ draw(rank, 9, seed=seed + 1)
    found = approximate_rank(a)
    assert found <= rank * (1 + 1e-12)
    largest = float(a.abs().max())
    assert paper_radius(largest, found, 20, 9) == pytest.approx(float(torch.linalg.svdvals(a).sum()))


def test_approximate_rank_says_little():
    """What the docstring warns of."""
    a = draw(2000, 64, seed=1) @ draw(64, 128, seed=2)
    assert 1.5 < approximate_rank(a) < 4
    with pytest.raises(ValueError, match="other than 0"):
        approximate_rank(torch.zeros(3, 2))


def constrained(seed, sigma, relu):
    x, truth, noise = planted(seed, sigma=sigma)
    y = truth + noise
    radius, bound = float(torch.linalg.svdvals(truth).sum()), float(truth.abs().max())
    data = y.clamp_min(0) if relu else y
    fit = nuclear_max_norm(x, data, radius=radius, bound=bound, sigma=sigma if relu else None, tolerance=1e-6)
    slopes = Tobit(data, sigma).slopes(truth) if relu else noise
    curvature = relu_curvature(bound, sigma) if relu else 1.0
    limit = constrained_mse_bound(radius, projected(x, slopes), 60, 10, curvature)
    return float((x @ fit.weight.mT - truth).square().mean()), limit, (x, truth, slopes, curvature)


@pytest.mark.parametrize("seed", [0, 10, 20])
@pytest.mark.parametrize(("sigma", "relu"), [(0.3, False), (1.0, False), (1.5, True), (3.0, True)])
def test_the_constrained_error_is_below_our_bound(seed, sigma, relu):
    error, limit, (x, _, slopes, curvature) = constrained(seed, sigma, relu)
    assert error <= limit
    # the step of the proof that the data decide: |⟨PS, Δ⟩| ≤ ‖PS‖₂ ‖Δ‖_*, for any Δ in the span
    change = column_space(x).basis @ draw(8, 10, seed=seed)
    change = change / torch.linalg.svdvals(change).sum()
    assert float((slopes * change).sum()) <= projected(x, slopes)
    assert 0 < curvature <= 1


def test_a_bound_made_a_hundredth_is_violated():
    error, limit, _ = constrained(0, 1.0, False)
    assert error > limit / 100


def test_the_curvature_of_the_relu_is_the_least_within_the_bound():
    told = re.search(r"in α²/\(2σ²\): (.*) at α/σ = 1, 2, 3, 4", relu_curvature.__doc__ or "")
    assert told
    for ratio, said in enumerate(told[1].split(", "), 1):
        t = torch.tensor(float(ratio)).double()
        h = math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi) / float(torch.special.ndtr(t))
        assert relu_curvature(2.0 * ratio, 2.0) == pytest.approx(h * (h + ratio), rel=1e-9)
        assert float(f"{h * (h + ratio):.2g}") == float(said)
    s = torch.linspace(-2, 2, 401).double().requires_grad_()
    loss = Tobit(torch.zeros(401).double(), 0.8)
    (slope,) = torch.autograd.grad(loss.values(s).sum(), s, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), s)
    assert float(second.min()) == pytest.approx(relu_curvature(2.0, 0.8), rel=1e-6)
    assert float(second.max()) <= 1


def test_slopes_at_the_truth_are_no_larger_than_noise():
    truth = draw(40, 6, seed=1).expand(300, -1, -1)
    basis = column_space(draw(40, 5, seed=2)).basis
    data = (truth + 0.7 * draw(300, 40, 6, seed=3)).clamp_min(0)
    norms = torch.linalg.matrix_norm(basis.mT @ Tobit(data, 0.7).slopes(truth), 2)
    assert 0.4 * relu_slope_bound(0.7, 5, 6) < float(norms.mean()) <= relu_slope_bound(0.7, 5, 6)


def test_rates_grow_as_the_paper_says():
    assert constrained_mse_rate(2, 1, 8, 100, 50) == pytest.approx(2 * constrained_mse_rate(2, 1, 2, 100, 50))
    assert constrained_mse_rate(2, 1, 2, 10**9, 50) == pytest.approx(6 * math.sqrt(2 / 50))
    assert constrained_mse_bound(10, 1, 10**9, 50) < 1e-6 * constrained_mse_rate(2, 1, 2, 10**9, 50)
    t, density = 2.0, math.exp(-2.0) / math.sqrt(2 * math.pi)
    below = 0.5 * math.erfc(-t / math.sqrt(2))
    beta = (density / 0.5) ** 2 / (8 * below * (1 - below))
    lipschitz = (2 * 1.0 + 2 * 0.5 * math.sqrt(math.log(200))) / 0.25
    assert relu_mse_rate(1.0, 0.5, 3, 20, 10) == pytest.approx(lipschitz / beta * math.sqrt(3 * 30 / 200))
    assert misfit_rmse_bound(0.04, 0.1) == pytest.approx(0.3)


@pytest.mark.parametrize("seed", range(3))
def test_corollary_4_7_data_that_are_near_truth_and_noise(seed):
    x, truth, noise = planted(seed, sigma=0.5)
    radius, bound = float(torch.linalg.svdvals(truth).sum()), float(truth.abs().max())
    off = 0.2 * draw(60, 10, seed=seed + 50)
    options = {"radius": radius, "bound": bound, "tolerance": 1e-8}
    near = x @ nuclear_max_norm(x, truth + noise + off, **options).weight.mT
    exact = x @ nuclear_max_norm(x, truth + noise, **options).weight.mT
    assert float((near - exact).norm()) <= float(off.norm())
    limit = misfit_rmse_bound(
        constrained_mse_bound(radius, projected(x, noise), 60, 10), float(off.square().mean()) ** 0.5
    )
    assert float((near - truth).square().mean()) ** 0.5 <= limit


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="probability"):
        noise_bound(1.0, 2, 2, 1.0)
    for bound, sigma in ((0.0, 1.0), (1.0, 0.0), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="above 0"):
            recovery_bounds.relu_curvature(bound, sigma)
