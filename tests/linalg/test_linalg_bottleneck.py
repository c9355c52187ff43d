"""Narrower bottlenecks against brute force on explicit activations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rankfold.linalg import tails
from rankfold.linalg.on_data.bottleneck import narrow, root_of, spread, triangle


def draw(seed: int, samples: int, rank: int, outputs: int, groups: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Activations (…, N, r), centred, a second factor (…, m, r) and a metric of its outputs (…, m, m)."""
    generator = torch.Generator().manual_seed(seed)
    batch = () if groups is None else (groups,)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    z = normal(samples, rank) @ normal(rank, rank)
    metric = normal(outputs, outputs)
    return z - z.mean(-2, keepdim=True), normal(outputs, rank), metric @ metric.mT + 0.1 * torch.eye(outputs)


def weighted(z: Tensor, left: Tensor, metric: Tensor) -> Tensor:
    """D^½ V Zᵀ/√N, whose squared norm is what the outputs weigh."""
    return root_of(metric).mT @ left @ z.mT / z.shape[-2] ** 0.5


def root(z: Tensor) -> Tensor:
    return root_of(z.mT @ z / z.shape[-2])


def change(z: Tensor, left: Tensor, metric: Tensor, inwards: Tensor, outwards: Tensor, positions: int = 1) -> Tensor:
    lost = z - z @ spread(inwards, positions).mT @ outwards.mT
    return weighted(lost, left, metric).square().sum((-2, -1)).sqrt()


@given(st.integers(1, 6), st.integers(1, 7), st.integers(2, 40), st.integers(0, 99))
def test_errors_are_those_of_the_best_approximation_and_are_met(rank, outputs, samples, seed):
    z, left, metric = draw(seed, samples, rank, outputs)
    narrowing = narrow(root_of(metric).mT @ left, root(z))
    best = torch.zeros(rank + 1, dtype=torch.float64)
    values = torch.linalg.svdvals(weighted(z, left, metric))[:rank]
    best[: len(values) + 1] = tails(values)
    # the statistics are squares: what is below half the digits of the largest is rounding
    torch.testing.assert_close(narrowing.errors, best, rtol=1e-7, atol=2e-7 * float(best[0]))
    for r in range(1, rank + 1):
        met = change(z, left, metric, *narrowing.maps(r))
        torch.testing.assert_close(met, best[r], rtol=1e-7, atol=2e-7 * float(best[0]))


def test_errors_are_exact_for_sound_statistics():
    z, left, metric = draw(3, 400, 6, 9)
    narrowing = narrow(root_of(metric).mT @ left, root(z))
    best = tails(torch.linalg.svdvals(weighted(z, left, metric))[:6])
    torch.testing.assert_close(narrowing.errors[:-1], best[:-1], rtol=1e-10, atol=0)
    for r in range(1, 6):
        torch.testing.assert_close(change(z, left, metric, *narrowing.maps(r)), best[r], rtol=1e-10, atol=0)


@pytest.mark.parametrize("wrong", ["first columns", "without the metric", "without the data"])
def test_a_wrong_choice_is_noticed(wrong):
    z, left, metric = draw(5, 200, 6, 8)
    half, lower = root_of(metric).mT @ left, root(z)
    best = narrow(half, lower).errors[3]
    if wrong == "first columns":
        inwards = torch.eye(6, dtype=torch.float64)[:3]
        outwards = inwards.mT
    elif wrong == "without the metric":
        inwards, outwards = narrow(left, lower).maps(3)
    else:
        inwards, outwards = narrow(half, torch.eye(6, dtype=torch.float64)).maps(3)
    assert change(z, left, metric, inwards, outwards) > 1.001 * best


def test_groups_are_independent():
    z, left, metric = draw(1, 50, 4, 5, groups=3)
    together = narrow(root_of(metric).mT @ left, root(z))
    alone = [narrow(root_of(metric[g]).mT @ left[g], root(z[g])) for g in range(3)]
    assert together.errors[2] ** 2 == pytest.approx(sum(float(one.errors[2]) ** 2 for one in alone), rel=1e-10)
    for g in range(3):
        apart = [part[g] for part in together.maps(2)]
        assert change(z[g], left[g], metric[g], *apart) == pytest.approx(float(alone[g].errors[2]), rel=1e-9)


def test_ranks_are_nested():
    z, left, metric = draw(2, 60, 5, 7)
    narrowing = narrow(root_of(metric).mT @ left, root(z))
    inwards, outwards = narrowing.maps(4)
    smaller = narrowing.maps(2)
    assert torch.equal(inwards[:2], smaller[0])
    assert torch.equal(outwards[:, :2], smaller[1])


def test_activations_that_say_nothing():
    z, left, metric = draw(4, 30, 5, 7)
    z[:, 3:] = 0
    narrowing = narrow(root_of(metric).mT @ left, root(z))
    assert narrowing.errors[3] < 1e-7 * narrowing.errors[0]
    assert all(bool(part.isfinite().all()) for part in narrowing.maps(5))
    dead = narrow(torch.zeros(3, 2), torch.zeros(2, 2))
    assert dead.errors.tolist() == [0, 0, 0]
    assert all(bool(part.isfinite().all()) for part in dead.maps(1))


@given(st.integers(2, 4), st.integers(2, 3), st.integers(3, 6), st.integers(0, 20))
def test_patches_get_the_second_factor_that_fits_best(rank, k, outputs, seed):
    z, left, metric = draw(seed, 300, rank * k, outputs)
    narrowing = narrow(root_of(metric).mT @ left, root(z), k)
    assert len(narrowing.errors) == rank + 1
    inwards, outwards = narrowing.maps(rank - 1)
    assert inwards.shape == (rank - 1, rank)
    assert outwards.shape == (rank * k, (rank - 1) * k)
    # alternation goes below the closed form that predicts it; the residual leaves nothing to a regression
    met = change(z, left, metric, inwards, outwards, k)
    assert met <= narrowing.errors[rank - 1] * (1 + 1e-6)
    kept = z @ spread(inwards, k).mT
    assert float((kept.mT @ (z - kept @ outwards.mT)).abs().max()) < 1e-7 * float((z.mT @ z).abs().max())
    assert narrowing.errors[rank] < 1e-3 * narrowing.errors[0]


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 50))
def test_roots(size, more, seed):
    a = torch.randn(size, size + more, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lower = triangle(a)
    torch.testing.assert_close(lower @ lower.mT, a @ a.mT)
    assert torch.equal(lower, lower.tril())
    assert bool((lower.diagonal() >= 0).all())
    singular = a.clone()
    singular[-1] = singular[0]
    square = root_of(singular @ singular.mT)
    torch.testing.assert_close(square @ square.mT, singular @ singular.mT, rtol=1e-9, atol=1e-12)


def test_shapes_and_ranks_are_checked():
    with pytest.raises(ValueError, match="does not fit weights"):
        narrow(torch.ones(3, 4), torch.eye(5))
    with pytest.raises(ValueError, match="positions"):
        narrow(torch.ones(3, 5), torch.eye(5), 2)
    with pytest.raises(ValueError, match="rank must be from 1 to 5, got 6"):
        narrow(torch.ones(7, 5), torch.eye(5)).maps(6)
