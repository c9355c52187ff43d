"""Spatial pairs: the closed form at every rank, against plain least squares, and the alternation that improves it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankfold.linalg.on_data.spatial import project_spatial

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(2, 3), st.integers(2, 4))


def problem(size: tuple[int, int, int, int], seed: int, rows: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """A kernel, the second moment of correlated patches, and a metric of its outputs."""
    g = torch.Generator().manual_seed(seed)
    c_out, n = size[0], size[1] * size[2] * size[3]
    weight = torch.randn(size, generator=g, dtype=torch.float64)
    patches = torch.randn(rows, n, generator=g, dtype=torch.float64) @ torch.randn(
        n, n, generator=g, dtype=torch.float64
    )
    gradients = torch.randn(3 * c_out, c_out, generator=g, dtype=torch.float64)
    return weight, patches.T @ patches / rows, gradients.T @ gradients + torch.eye(c_out, dtype=torch.float64)


def composed(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    c_out, c_in, k_h, k_w = weight.shape
    return torch.einsum("ojr,rci->ocij", left.reshape(c_out, k_w, -1), right.reshape(-1, c_in, k_h))


def error(change: Tensor, patches: Tensor, metric: Tensor) -> float:
    rows = change.flatten(1)
    return float(torch.trace(metric @ rows @ patches @ rows.T).clamp_min(0).sqrt())


def least_squares(weight: Tensor, rows: Tensor, patches: Tensor) -> Tensor:
    """Naive oracle: the best kernel in the span of ``rows`` ⊗ I, by a dense solve in the metric of the patches."""
    _, c_in, k_h, k_w = weight.shape
    basis = torch.einsum("rci,jl->rjcil", rows.reshape(-1, c_in, k_h), torch.eye(k_w, dtype=weight.dtype))
    basis = basis.reshape(-1, c_in * k_h * k_w)
    root = torch.linalg.cholesky(patches)
    solution = torch.linalg.lstsq((basis @ root).T, (weight.flatten(1) @ root).T).solution
    return (solution.T @ basis).reshape(weight.shape)


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 10**6))
def test_closed_form_is_least_squares_at_every_rank(size: tuple[int, int, int, int], seed: int) -> None:
    weight, patches, metric = problem(size, seed)
    found = project_spatial(weight, patches, metric)
    scale = float(found.errors[0])
    assert scale == pytest.approx(error(weight, patches, metric), rel=1e-4)
    for rank in range(1, len(found.errors)):
        left, right = found.factors(rank, rounds=0)
        kernel = composed(left, right, weight)
        assert error(weight - kernel, patches, metric) == pytest.approx(
            float(found.errors[rank]), rel=1e-3, abs=1e-4 * scale
        )
        best = least_squares(weight, right, patches)
        assert (
            error(weight - kernel, patches, metric) <= error(weight - best, patches, metric) * (1 + 1e-4) + 1e-6 * scale
        )


@settings(max_examples=25, deadline=None)
@given(SIZES, st.integers(0, 10**6))
def test_errors_never_rise_and_full_rank_is_exact(size: tuple[int, int, int, int], seed: int) -> None:
    weight, patches, metric = problem(size, seed)
    found = project_spatial(weight, patches, metric)
    assert bool((found.errors.diff() <= 0).all())
    left, right = found.factors(len(found.errors) - 1, rounds=0)
    assert torch.allclose(composed(left, right, weight), weight, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(0, 10**6))
def test_alternation_never_raises_the_error(size: tuple[int, int, int, int], seed: int) -> None:
    weight, patches, metric = problem(size, seed)
    found = project_spatial(weight, patches, metric)
    rank = max(1, (len(found.errors) - 1) // 2)
    errors = [
        error(weight - composed(*found.factors(rank, rounds), weight), patches, metric) for rounds in (0, 1, 3, 8)
    ]
    slack = 1e-6 * float(found.errors[0])
    assert all(later <= earlier + slack for earlier, later in pairwise(errors))


def test_data_and_metric_matter() -> None:
    """A pair fitted without the data, or without the metric, is worse: the oracle rejects both."""
    weight, patches, metric = problem((6, 4, 3, 3), 0)
    metric = metric @ torch.diag(torch.tensor([1, 1, 1, 30, 30, 30.0], dtype=torch.float64)) @ metric
    metric = (metric + metric.T) / 2
    right_one = composed(*project_spatial(weight, patches, metric).factors(3), weight)
    blind = composed(*project_spatial(weight, torch.eye(36, dtype=torch.float64), metric).factors(3), weight)
    unweighted = composed(*project_spatial(weight, patches).factors(3, rounds=20), weight)
    best = error(weight - right_one, patches, metric)
    assert error(weight - blind, patches, metric) > 1.1 * best
    assert error(weight - unweighted, patches, metric) > 1.02 * best


def test_rank_deficient_patches() -> None:
    weight, patches, metric = problem((4, 3, 3, 3), 1, rows=5)
    found = project_spatial(weight, patches, metric)
    left, right = found.factors(4)
    assert bool(left.isfinite().all())
    assert bool(right.isfinite().all())
    assert error(weight - composed(left, right, weight), patches, metric) <= float(found.errors[4]) * 1.01


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        project_spatial(torch.zeros(2, 3, 3, 3), torch.eye(5))
    with pytest.raises(ValueError, match="got 99"):
        project_spatial(*problem((2, 2, 2, 2), 0)).factors(99)
