"""Gaussian mixtures, deep linear networks, the transition and neural collapse: closed forms against oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import kstest
from torch import Tensor

from rankfold.collapse import Partition, critical_decay, scatter_of, transitions
from rankfold.collapse.neural_collapse import Projected, cdnv, neural_collapse, simplex
from rankfold.collapse.theory.gaussian import exceedance, mixture, proposition_4_1, scatter_interval, stable_rank
from rankfold.collapse.theory.linear import best_of_rank, critical_point, linear_bounds, ridge, target, with_ridge
from rankfold.collapse.theory.transition import chain_factor, schatten, shrunk, threshold_product

seeds = st.integers(0, 2**31)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Gaussian mixtures


def test_the_variation_of_blobs_follows_the_chi_square_law() -> None:
    found = []
    for seed in range(150):
        data = mixture(24, 3, 4, 0.7, torch.Generator().manual_seed(seed))
        found.append(24 * scatter_of(data.points, Partition.of(data.blob)).clusters("blobs").wcss / 0.7**2)
    assert kstest(found, "chi2", args=(3 * (24 - 4),)).pvalue > 1e-3
    assert kstest(found, "chi2", args=(3 * 24,)).pvalue < 1e-6  # without the degrees of freedom of the centroids
    low, high = scatter_interval(24, 3, 4, 0.7)
    assert low < min(found) * 0.7**2 / 24 < max(found) * 0.7**2 / 24 < high


@settings(max_examples=10)
@given(d=st.integers(1, 4), t=st.floats(0.2, 2.0), seed=seeds)
def test_the_tail_bound_holds_and_is_not_everything(d: int, t: float, seed: int) -> None:
    root = draw(d, d, seed=seed)
    covariance, count = root @ root.mT, 12
    normal = torch.randn(2000, count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ root.mT
    variation = (normal - normal.mean(1, keepdim=True)).square().sum((1, 2)) / count
    exceeded = float((variation >= (1 + t) * covariance.trace()).double().mean())
    bound = exceedance(count, covariance, t)
    assert exceeded <= bound + 3 * math.sqrt(bound / 2000) + 1e-9
    assert 1 <= stable_rank(covariance) <= d + 1e-9
    assert exceedance(count, covariance, 0.0) == 1
    promise = proposition_4_1([count] * 2, [covariance] * 2, t)
    assert promise.bound == pytest.approx(2 * (1 + t) * float(covariance.trace()))
    assert promise.vacuous == (2 * bound >= 1)


# --- deep linear networks


def problem(seed: int) -> tuple[Tensor, Tensor, Partition]:
    index = torch.arange(30) % 3
    x = draw(5, 3, seed=seed)[:, index] + 0.2 * draw(5, 30, seed=seed + 1)
    y = draw(4, 3, seed=seed + 2)[:, index] + 0.1 * draw(4, 30, seed=seed + 3)
    return x, y, Partition.of(index)


@given(seed=seeds, rank=st.integers(1, 3))
def test_critical_points_have_no_gradient_along_the_manifold(seed: int, rank: int) -> None:
    x, y, _ = problem(seed)
    directions = torch.randperm(4, generator=torch.Generator().manual_seed(seed))[:rank].tolist()

    def tangent_gradient(w: Tensor) -> float:
        slope = 2 * (w @ x - y) @ x.mT
        u, _, vh = torch.linalg.svd(w)
        rest = (u[:, rank:] @ u[:, rank:].mT) @ slope @ (vh[rank:].mT @ vh[rank:])
        return float((slope - rest).norm() / (y @ x.mT).norm())

    w, value = critical_point(x, y, directions)
    assert value == pytest.approx(float((w @ x - y).square().sum()))
    assert tangent_gradient(w) < 1e-9
    u, s, vh = torch.linalg.svd(ridge(x, y, 0.0), full_matrices=False)
    truncated = (u[:, :rank] * s[:rank]) @ vh[:rank]  # of W*, not of Q: no critical point
    assert tangent_gradient(truncated) > 1e-6
    assert float((best_of_rank(x, y, rank) @ x - y).norm()) <= float((truncated @ x - y).norm()) + 1e-9
    assert torch.allclose(target(x, y) @ target(x, y).mT, y @ x.mT @ torch.linalg.solve(x @ x.mT, x @ y.mT))


@given(seed=seeds, decay=st.floats(1e-2, 100.0))
def test_theorems_5_3_and_5_4_hold_and_the_sharper_constants_are_sharper(seed: int, decay: float) -> None:
    x, y, partition = problem(seed)
    found = linear_bounds(x, y, partition, decay)
    assert found.to_rank <= found.distance + 1e-9
    assert found.distance <= found.sharper * (1 + 1e-9)
    assert found.distance <= found.printed * (1 + 1e-9)
    assert found.to_rank <= found.to_minimiser + 1e-9
    assert found.to_minimiser <= found.labels_sharper * (1 + 1e-9) + 1e-9
    assert found.labels_sharper <= found.labels * (1 + 1e-9)
    assert ("printed" in found.vacuous) == (found.printed >= found.norm)
    xl, yl = with_ridge(x, y, decay)
    w = draw(4, 5, seed=seed)
    assert float((w @ xl - yl).square().sum()) == pytest.approx(
        float((w @ x - y).square().sum() + decay * w.square().sum())
    )


# --- the transition


@pytest.mark.parametrize(("layers", "factor"), [(2, 1.0), (3, 0.3969), (4, 0.2722), (5, 0.2104), (6, 0.1724)])
def test_the_factors_of_chains(layers: int, factor: float) -> None:
    assert chain_factor(layers) == pytest.approx(factor, abs=1e-4)


@settings(max_examples=8)
@given(layers=st.integers(2, 7), variance=st.floats(0.01, 10), q=st.floats(0.05, 5))
def test_a_direction_dies_where_brute_force_says(layers: int, variance: float, q: float) -> None:
    def survives(decay: float) -> bool:
        def value(w: float) -> float:
            return variance * w * w - 2 * q * math.sqrt(variance) * w + decay * layers * w ** (2 / layers)

        top = q / math.sqrt(variance)
        found = minimize_scalar(value, bounds=(1e-4 * top, top), method="bounded", options={"xatol": 1e-9 * top})
        best = min(found.fun, min(value(w) for w in np.linspace(1e-3 * top, top, 100)))
        assert shrunk(layers, variance, q, decay) == 0 or value(
            shrunk(layers, variance, q, decay)
        ) <= best + 1e-6 * abs(best)
        return best < 0

    threshold = critical_decay(layers, variance, q)
    assert survives(0.98 * threshold)
    assert not survives(1.02 * threshold)
    assert critical_decay(layers, variance) == pytest.approx(chain_factor(layers) * variance)


def test_transitions_of_an_autoencoder_are_its_variances() -> None:
    x = draw(4000, 3) * torch.tensor([2.0, 1.0, 0.3])
    x = x - x.mean(0)
    found = transitions(x, x, 4)
    variances = torch.linalg.eigvalsh(x.mT @ x / len(x)).flip(0)
    assert torch.allclose(found.decays, 2 * chain_factor(4) * variances)
    assert [found.rank_at(d) for d in (0.0, float(found.decays[1]), 1e9)] == [3, 1, 0]
    assert found.decay_for(2) == pytest.approx(float(found.decays[2]))
    assert found.decay_for(3) == 0
    entropy = transitions(x, torch.eye(4, dtype=torch.float64)[torch.arange(4000) % 4], 3, loss="cross-entropy")
    assert "second order" in entropy.about
    assert "constant" in transitions(torch.ones(4, 2), torch.ones(4, 2), 3).about
    with pytest.raises(ValueError, match="loss must be"):
        transitions(x, x, 4, loss="hinge")


def test_one_layer_keeps_every_direction_at_any_decay() -> None:
    x = draw(200, 5)
    found = transitions(x, x @ draw(5, 3, seed=1), 1)
    assert found.decays.tolist() == [math.inf] * 3
    assert [found.rank_at(decay) for decay in (0.01, 1e6)] == [3, 3]
    assert (found.decay_for(2), found.decay_for(3)) == (math.inf, 0.0)
    assert len(transitions(x, x @ draw(5, 3, seed=1), 2).decays) == 3


def test_the_threshold_is_what_factors_under_decay_reach_and_ridge_is_not() -> None:
    x, decay = draw(60, 3) * torch.tensor([2.0, 1.0, 0.5]), 0.05
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    optimizer = torch.optim.LBFGS(factors, max_iter=300, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        w = factors[2] @ factors[1] @ factors[0]
        value = (x @ w.mT - x).square().sum(1).mean() + decay * sum(f.square().sum() for f in factors)
        value.backward()
        return value

    optimizer.step(closure)
    trained = (factors[2] @ factors[1] @ factors[0]).detach()
    predicted = threshold_product(x, x, 3, decay)
    assert float((trained - predicted).norm()) < 1e-3 * float(predicted.norm())
    norms = sum(float(f.detach().square().sum()) for f in factors)
    assert norms == pytest.approx(schatten(predicted, 3), rel=1e-3)
    assert float((trained - ridge(x.mT / 60**0.5, x.mT / 60**0.5, decay)).norm()) > 0.05


# --- neural collapse


@settings(max_examples=8)
@given(k=st.integers(3, 5), d=st.integers(5, 9), seed=seeds)
def test_neural_collapse_of_a_simplex_is_complete_and_of_noise_is_not(k: int, d: int, seed: int) -> None:
    labels = torch.arange(4 * k) % k
    means = torch.linalg.qr(draw(d, d, seed=seed))[0][:k] * 3
    for spread in (1e-6, 1.0):
        rows = means[labels] + spread * draw(4 * k, d, seed=seed + 1)
        scatter = scatter_of(rows, Partition.of(labels))
        projected = Projected(scatter)
        projected.update(rows, labels, labels)
        centred = scatter.means - scatter.means.mean(0)
        found = neural_collapse(scatter, projected, 2 * centred)
        # the definitions, with the full matrices
        within = sum((r - scatter.means[i]).outer(r - scatter.means[i]) for r, i in zip(rows, labels, strict=True))
        between = centred.mT @ centred / k
        naive = float((within / len(rows) @ torch.linalg.pinv(between, rtol=1e-10)).trace()) / k
        assert found.nc1 == pytest.approx(naive, rel=1e-6)
        assert found.nc3 == pytest.approx(0, abs=1e-7)
        small = spread < 1e-3
        assert (
            (found.nc1 < 1e-9) == (found.cdnv < 1e-9) == (found.nc2_norms < 1e-5) == (found.nc2_angles < 1e-5) == small
        )
        assert found.nc4 == 0 or not small


def test_neural_collapse_that_cannot_be_said_is_not_a_number() -> None:
    one = scatter_of(draw(4, 3), Partition.of(torch.zeros(4, dtype=torch.long)))
    assert math.isnan(cdnv(one))
    assert math.isnan(Projected(one).nc1)
    assert all(math.isnan(value) for value in simplex(one.means))
    same = scatter_of(torch.ones(4, 3), Partition.of(torch.tensor([0, 0, 1, 1])))
    assert neural_collapse(same, Projected(same)).to_dict()["nc2_norms"] is None
