"""Deep linear networks do what the theory of C-DLN says: recursion, theorem 2, incremental learning."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankfold.recover import (
    Descent,
    Identity,
    Rules,
    Watch,
    compressed_start,
    cosines,
    descend,
    incremental,
    singular_value_recursion,
    wide_start,
)
from rankfold.recover.solvers.spectral import _of_small

D, R, WIDTH = 12, 4, 7


def target(seed, values=(4.0, 3.0, 2.0, 1.0), shape=(D, D)):
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((shape[0], len(values))))[0]
    v = np.linalg.qr(rng.standard_normal((shape[1], len(values))))[0]
    return u, np.array(values), v.T


def train(matrix, weights, rate, steps, every=1, alpha=1.0, momentum=0.0):
    """The products W_L ⋯ W_1 at every look, with the loss a sum as in the paper's text."""
    operator = Identity(matrix.shape, np.empty(0))
    watch = Watch("", operator, matrix, Rules(tol=0.0, max_iter=steps, every=every))
    seen = []

    def observe(_, factors):
        product = factors[0]
        for factor in factors[1:]:
            product = factor @ product
        seen.append(product)

    descend(operator, matrix, weights, Descent(rate * operator.count, alpha, momentum), watch, observe)
    return seen


@settings(max_examples=12, deadline=None)
@given(
    depth=st.integers(2, 5),
    alpha=st.sampled_from([1.0, 0.5, 2.0, 5.0]),
    seed=st.integers(0, 99),
    columns=st.integers(9, 14),
)
def test_singular_values_follow_the_recursion_exactly(depth, alpha, seed, columns):
    u, s, v = target(seed, shape=(D, columns))
    matrix, scale, rate, steps = u * s @ v, 0.3, 0.01 / alpha, 300
    weights = compressed_start(Identity(matrix.shape, np.empty(0)), matrix, WIDTH, depth, scale)
    padded = np.concatenate([s, np.zeros(WIDTH - R)])
    seen = train(matrix, weights, rate, steps, alpha=alpha)
    told = singular_value_recursion(padded, depth=depth, scale=scale, rate=rate, alpha=alpha, steps=steps)
    left, right = weights[-1] / scale, weights[0] / scale
    diagonals = np.array([np.einsum("ij,ij->j", left, product @ right.T) for product in seen])
    assert np.abs(diagonals - told).max() < 1e-12
    if alpha != 1.0 and depth > 2:  # the recursion as printed, for α = 1, is seen to be wrong
        printed = singular_value_recursion(padded, depth=depth, scale=scale, rate=rate, steps=steps)
        assert np.abs(diagonals - printed).max() > 1e-3


def test_the_compressed_network_is_never_worse_than_the_wide_one():
    """Theorem 2, over all iterations, with ε · orthogonal starts."""
    for seed in range(3):
        u, s, v = target(seed, values=(10.0, 3.0, 1.0, 0.3))
        matrix, scale, rate, steps = u * s @ v, 0.1, 0.005, 3000
        operator = Identity(matrix.shape, np.empty(0))
        narrow = train(matrix, compressed_start(operator, matrix, WIDTH, 3, scale), rate, steps, every=10)
        wide = train(matrix, wide_start((D, D), 3, scale, "orthogonal", seed, matrix), rate, steps, every=10)
        off = [np.linalg.norm(product - matrix) for product in narrow]
        wide_off = [np.linalg.norm(product - matrix) for product in wide]
        assert all(a <= b + 1e-9 for a, b in zip(off, wide_off, strict=True))
        assert wide_off[-1] < 0.1 * wide_off[0]
        # a worse network is seen: a start that is not spectral
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.standard_normal((D, WIDTH)))[0]
        poor = train(matrix, [scale * q.T, scale * np.eye(WIDTH), scale * q], rate, steps, every=10)
        assert any(np.linalg.norm(a - matrix) > b for a, b in zip(poor, wide_off, strict=True))


def test_the_scale_of_the_start_is_that_of_orthogonal_matrices():
    """With W Wᵀ = ε I, as printed, corollary 1 fails: math.md has the numbers."""
    s, depth, scale, d = np.array([2.0, 1.5, 1.0]), 3, 0.2, 10
    padded = np.concatenate([s, np.zeros(d - 3)])

    def start(size):
        kept = np.concatenate([np.full(6, size**depth), np.zeros(d - 6)])
        compressed = ((kept - padded) ** 2).sum()
        wide = ((np.full(d, size**depth) - padded) ** 2).sum()
        return compressed, wide

    compressed, wide = start(scale)
    assert compressed <= wide
    weights = wide_start((d, d), depth, scale, "orthogonal", 0, np.empty(0))
    assert np.allclose(weights[0] @ weights[0].T, scale**2 * np.eye(d))


def test_singular_values_are_learned_one_after_another():
    u, s, v = target(0, values=(10.0, 5.0, 2.0))
    matrix = u * s @ v
    operator = Identity(matrix.shape, np.empty(0))
    weights = compressed_start(operator, matrix, 6, 3, 1e-2)
    seen = [np.linalg.svd(product) for product in train(matrix, weights, 0.01, 8000, every=10)]
    values = np.stack([one[1][:3] for one in seen])
    left = cosines([one[0] for one in seen], u)
    right = cosines([one[2].T for one in seen], v.T)
    found = incremental(values, left, right, s)
    times = [one.at for one in found]
    assert None not in times
    assert times == sorted(times)
    assert times[0] < times[1] < times[2]
    assert all(one.alone for one in found)
    assert all(0 < one.c_val <= (0.1 * wanted) ** 2 for one, wanted in zip(found, s, strict=True))
    assert all(0 <= one.c_vec <= 0.1 for one in found)
    # values that rise together are not incremental
    together = np.outer(np.linspace(0, 1, len(values)), s)
    assert not all(one.alone for one in incremental(together, left, right, s))
    never = incremental(0 * values, left, right, s)
    assert [one.at for one in never] == [None] * 3


def test_rectangular_networks_and_wrong_depths():
    u, s, v = target(0, shape=(9, 14))
    matrix = u * s @ v
    weights = wide_start((9, 14), 3, 0.3, "orthogonal", 0, matrix)
    assert [w.shape for w in weights] == [(14, 14), (14, 14), (9, 14)]
    seen = train(matrix, weights, 0.02, 2000, every=100)
    assert np.linalg.norm(seen[-1] - matrix) < 1e-2 * np.linalg.norm(matrix)
    with pytest.raises(ValueError, match="at least 2 factors"):
        singular_value_recursion(s, depth=1, scale=0.1, rate=0.1, steps=1)


def test_gradients_are_those_of_finite_differences():
    from rankfold.recover.solvers.deep_linear import _chain, _gradients

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape) for shape in ((3, 5), (3, 3), (3, 3), (4, 3))]
    matrix = rng.standard_normal((4, 5))

    def loss(factors):
        return 0.5 * ((_chain(factors)[-1] - matrix) ** 2).sum()

    gradients = _gradients(_chain(weights)[-1] - matrix, weights, _chain(weights[:-1]))
    for l, gradient in enumerate(gradients):
        for index in ((0, 0), (2, 1)):
            moved = [w.copy() for w in weights]
            moved[l][index] += 1e-6
            assert gradient[index] == pytest.approx((loss(moved) - loss(weights)) / 1e-6, rel=1e-4)


def test_constants_hold_from_the_time_of_fitting_to_the_end():
    values = np.array([[0.0], [9.5], [10.4], [10.0]])  # fitted from the second look on
    left = np.array([[0.0], [0.95], [0.99], [1.0]])
    right = np.array([[0.0], [0.97], [0.93], [1.0]])
    (one,) = incremental(values, left, right, np.array([10.0]))
    assert one.at == 1
    assert one.c_val == pytest.approx(0.25)  # of the second look, not of the last
    assert one.c_vec == pytest.approx(0.07)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (3, 3), (5, 1)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_leading_pairs_of_a_small_matrix_are_those_of_its_svd(shape, size):
    matrix = size * np.random.default_rng(0).standard_normal(shape)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    for width in {1, 2, min(shape)}:
        found, k = _of_small(matrix, width), min(width, len(s))
        assert found.s == pytest.approx(s[:k], rel=1e-6)
        best = (u[:, :k] * s[:k]) @ vt[:k]
        assert np.linalg.norm(found.left @ found.v - best) <= 1e-5 * np.linalg.norm(matrix)
        assert found.u.T @ found.u == pytest.approx(np.eye(k), abs=1e-12)
        assert found.v @ found.v.T == pytest.approx(np.eye(k), abs=1e-12)
    assert not _of_small(0 * matrix, 1).s.any()
