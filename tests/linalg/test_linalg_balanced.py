"""Balanced factors: product, penalty and optimality of LoRITa's Proposition 4.2."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.linalg import NonFiniteError, balanced_factors, product, singular_values

POWERS = [(2.0, 2.0), (2.0, 2.0, 2.0), (1.0, 2.0, 3.0), (4.0, 4.0), (0.5, 3.0), (2.0,) * 5]
seeds = st.integers(0, 2**31)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def power_sum(a, p):
    return float(singular_values(a).pow(p).sum())


def penalty(factors, powers):
    total = 1 / sum(1 / power for power in powers)
    return total * sum(power_sum(factor, power) / power for factor, power in zip(factors, powers, strict=True))


@given(m=st.integers(0, 7), n=st.integers(0, 7), count=st.integers(1, 5), wider=st.integers(0, 4), seed=seeds)
def test_the_product_is_the_matrix(m, n, count, wider, seed):
    a = draw(m, n, seed=seed)
    inner = [min(m, n) + (wider * i) % 5 for i in range(count - 1)]
    factors = balanced_factors(a, count, inner)
    assert [tuple(f.shape) for f in factors] == list(zip([m, *inner], [*inner, n], strict=True))
    torch.testing.assert_close(product(factors), a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_stays(dtype):
    a = draw(5, 3).to(dtype)
    factors = balanced_factors(a, 3)
    assert {factor.dtype for factor in factors} == {dtype}
    torch.testing.assert_close(product(factors), a, atol=0.05, rtol=0.05)


def test_batches_are_factored_one_by_one():
    a = draw(3, 4, 5)
    factors = balanced_factors(a, 3, [6, 4])
    torch.testing.assert_close(product(factors), a)
    torch.testing.assert_close(factors[0][1], balanced_factors(a[1], 3, [6, 4])[0])


def optimal(factors, a, powers):
    """Does the penalty equal Σσ^p, its minimum over all factorisations?"""
    least = power_sum(a, 1 / sum(1 / power for power in powers))
    assert math.isfinite(least)
    return abs(penalty(factors, powers) - least) <= 1e-10 * least


@pytest.mark.parametrize("powers", POWERS)
def test_the_penalty_is_the_least(powers):
    a = draw(6, 5)
    factors = balanced_factors(a, len(powers), [7] * (len(powers) - 1), powers)
    assert optimal(factors, a, powers)
    # another factorisation of the same matrix: R_1 G, G⁻¹ R_2
    change = torch.eye(7, dtype=torch.float64) + 0.1 * draw(7, 7, seed=1)
    worse = [factors[0] @ change, torch.linalg.inv(change) @ factors[1], *factors[2:]]
    torch.testing.assert_close(product(worse), a)
    assert penalty(worse, powers) > penalty(factors, powers)
    assert not optimal(worse, a, powers)


def test_frobenius_factors_are_balanced():
    factors = balanced_factors(draw(6, 4), 4)
    for left, right in pairwise(factors):
        torch.testing.assert_close(left.mT @ left, right @ right.mT)


def test_smaller_inner_sizes_keep_the_best_approximation():
    a = draw(6, 5)
    error = float((a - product(balanced_factors(a, 3, [4, 2]))).norm())
    assert error == pytest.approx(float(singular_values(a)[2:].square().sum().sqrt()))


def test_what_does_not_fit_is_refused():
    a = draw(3, 3)
    for kwargs in (
        {"count": 0},
        {"count": 3, "inner": [2]},
        {"inner": [-1]},
        {"powers": [2.0]},
        {"powers": [0.0, 1.0]},
    ):
        with pytest.raises(ValueError, match=r"count|inner sizes|positive powers"):
            balanced_factors(a, **kwargs)
    with pytest.raises(NonFiniteError):
        balanced_factors(a / 0)
    with pytest.raises(ValueError, match="at least one"):
        product([])


def test_whole_numbers_have_factors_that_are_none():
    matrix = torch.tensor([[2, 0], [0, 3]])
    factors = balanced_factors(matrix)
    assert all(factor.dtype == torch.float64 for factor in factors)
    torch.testing.assert_close(product(factors), matrix.double())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_no_real_finite_matrix_is_refused_for_any_count(count):
    with pytest.raises(NonFiniteError, match="1 of 6 values"):
        balanced_factors(torch.tensor([[1.0, 2.0, math.nan], [0.0, 1.0, 2.0]]), count)
    with pytest.raises(TypeError, match="complex64"):
        balanced_factors(torch.ones(2, 3, dtype=torch.complex64), count)


def test_one_factor_is_a_copy_of_the_matrix():
    matrix = torch.randn(3, 2, dtype=torch.float64)
    (factor,) = balanced_factors(matrix, 1)
    assert torch.equal(factor, matrix)
    assert factor.data_ptr() != matrix.data_ptr()
