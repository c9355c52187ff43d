"""Output projection: the closed forms of theory against whitening, alternating least squares and each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankfold.linalg import (
    Moments,
    NonFiniteError,
    NotMaterialisedError,
    bias_from_inputs,
    bias_from_outputs,
    project,
    tails,
)

sizes = st.integers(1, 8)
seeds = st.integers(0, 2**31)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioned(rows, n, decades, seed=0):
    """Rows whose singular values fall over that many decades, in no particular coordinates."""
    u, v = torch.linalg.qr(draw(rows, n, seed=seed))[0], torch.linalg.qr(draw(n, n, seed=seed + 1))[0]
    return (u * torch.logspace(0, -decades, n, dtype=torch.float64)) @ v


def error(x, weight, left, right):
    return float((x @ (weight.double() - left.double() @ right.double()).mT).norm())


def optimum(y, rank):
    """No matrix of that rank comes nearer to Y (Eckart–Young), and X Zᵀ reaches it."""
    return float(torch.linalg.svdvals(y)[rank:].square().sum().sqrt())


def whitened(x, weight, rank):
    """H^(−½) (H^½ Wᵀ)_r by the eigenvalues of H = XᵀX: another road to the same optimum."""
    values, q = torch.linalg.eigh(x.mT @ x)
    keep = values > 1e-11 * values[-1]
    half, inverse = q[:, keep] * values[keep].sqrt(), q[:, keep] / values[keep].sqrt()
    u, s, vh = torch.linalg.svd(half.mT @ weight.mT, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).mT, inverse.mT


def both_sides(weight, x, **options):
    y = x @ weight.mT
    return project(weight, inputs=x.mT @ x, **options), project(weight, outputs=y.mT @ y, **options)


def is_optimal(factors, x, weight):
    """The oracle: errors at the optimum for every rank, nested orthonormal factors, right = leftᵀ W."""
    y, k = x @ weight.mT, min(weight.shape)
    left, right = factors(k)
    sound = torch.allclose(left.mT @ left, torch.eye(k, dtype=left.dtype)) and torch.allclose(right, left.mT @ weight)
    scale = float(y.norm()) + 1e-30
    for rank in range(k + 1):
        some_left, some_right = factors(rank)
        sound = sound and torch.allclose(some_left, left[:, :rank]) and torch.allclose(some_right, right[:rank])
        sound = sound and error(x, weight, some_left, some_right) <= optimum(y, rank) + 1e-9 * scale
    return sound and torch.allclose(left @ right, weight)


@given(m=sizes, n=sizes, rows=st.integers(1, 20), seed=seeds)
def test_every_rank_is_optimal_from_either_side(m, n, rows, seed):
    """Fewer rows than inputs (rank-deficient statistics) included."""
    x, weight = draw(rows, n, seed=seed), draw(m, n, seed=seed + 1)
    y = x @ weight.mT
    for found in both_sides(weight, x):
        assert is_optimal(found.factors, x, weight)
        expected = torch.tensor([optimum(y, rank) for rank in range(min(m, n) + 1)], dtype=torch.float64)
        torch.testing.assert_close(found.errors, expected, atol=1e-6 * float(y.norm()), rtol=1e-6)


def test_the_oracle_rejects_the_truncation_of_the_weight():
    x, weight = conditioned(40, 6, 2), draw(5, 6, seed=3)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    assert is_optimal(project(weight, inputs=x.mT @ x).factors, x, weight)
    assert not is_optimal(lambda rank: (u[:, :rank], s[:rank, None] * vh[:rank]), x, weight)


@pytest.mark.parametrize(("m", "n"), [(9, 6), (6, 9), (7, 7)])
def test_projection_is_whitening_on_the_data(m, n):
    x, weight = draw(30, n), draw(m, n, seed=1)
    left, right = project(weight, inputs=x.mT @ x).factors(3)
    truncated, inverse = whitened(x, weight, 3)
    torch.testing.assert_close(x @ (left @ right).mT, x @ (truncated @ inverse).mT)


@pytest.mark.parametrize(("m", "n"), [(9, 6), (6, 9)])
def test_alternating_least_squares_finds_nothing_better(m, n):
    x, weight, rank = draw(30, n), draw(m, n, seed=1), 2
    y, right = x @ weight.mT, draw(rank, n, seed=2)
    for _ in range(500):
        z = x @ right.mT
        left = torch.linalg.lstsq(z, y).solution.mT
        right = torch.linalg.lstsq(x, y @ torch.linalg.pinv(left).mT).solution.mT
    brute = float((y - x @ right.mT @ left.mT).norm())
    for found in both_sides(weight, x):
        ours = error(x, weight, *found.factors(rank))
        assert ours == pytest.approx(brute, rel=1e-8)
        assert ours == pytest.approx(float(found.errors[rank]), rel=1e-10)


@pytest.mark.parametrize(("m", "n"), [(30, 20), (20, 30)])
@pytest.mark.parametrize("decades", [3, 6])
def test_ill_conditioned_statistics_lose_nothing(m, n, decades):
    """cond X of 1e6 is cond 1e12 for the Gram: as good as the singular value decomposition of the outputs."""
    x, weight = conditioned(60, n, decades), draw(m, n, seed=5)
    found = project(weight, inputs=x.mT @ x)
    y = x @ weight.mT
    for rank in (1, 5, 10, 15, 18):
        best = optimum(y, rank)
        assert error(x, weight, *found.factors(rank)) <= best * (1 + 1e-6)
        assert float(found.errors[rank]) == pytest.approx(best, rel=1e-4)


def test_small_directions_are_refined():
    """At the last ranks the eigenvectors of the Gram matrix itself are some per cent worse than the optimum."""
    x, weight, rank = conditioned(80, 40, 7), draw(40, 40, seed=5), 39
    gram, best = x.mT @ x, optimum(x @ weight.mT, 39)
    assert error(x, weight, *project(weight, inputs=gram).factors(rank)) < best * (1 + 1e-4)
    unrefined = torch.linalg.eigh(weight @ gram @ weight.mT)[1].flip(1)[:, :rank]
    assert error(x, weight, unrefined, unrefined.mT @ weight) > best * (1 + 1e-2)


@pytest.mark.parametrize("case", ["wide range", "rank-deficient", "zero column"])
def test_badly_conditioned_tall_weights_fall_back_to_householder(case):
    weight = conditioned(30, 8, 7)
    if case == "rank-deficient":
        weight = draw(30, 3) @ draw(3, 8)
    if case == "zero column":
        weight[:, 2] = 0
    x = draw(40, 8, seed=9)
    for found in both_sides(weight, x):
        assert is_optimal(found.factors, x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("statistic", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype, statistic):
    x, weight = draw(50, 6), draw(9, 6, seed=1).to(dtype)
    found = project(weight, inputs=(x.mT @ x).to(statistic))
    left, right = found.factors(3)
    assert found.singular_values.dtype == torch.float64
    assert left.dtype == right.dtype == (torch.float32 if statistic == torch.float32 else torch.float64)
    best = optimum(x @ weight.double().mT, 3)
    assert error(x, weight, left, right) <= best * (1.01 if statistic == torch.bfloat16 else 1 + 1e-5)


def test_float32_statistics_are_decomposed_in_float64():
    x, weight = conditioned(60, 30, 3.5), draw(30, 30, seed=1)
    moment = (x.mT @ x).float()
    exact = torch.linalg.eigvalsh(weight @ moment.double() @ weight.mT).flip(0).clamp_min(0).sqrt()

    def right(values):
        return bool((values[:25] - exact[:25]).abs().max() < 1e-6 * exact[0])

    assert right(project(weight.float(), inputs=moment).singular_values)
    narrow = weight.float() @ moment @ weight.float().mT
    assert not right(torch.linalg.eigvalsh(narrow).flip(0).clamp_min(0).sqrt().double())


def free_bias_errors(x, weight, bias, rank):
    """(free bias, bias kept and nothing centred, the paper's augmented matrix [W b] at the same rank)."""
    y = x @ weight.mT + bias
    moments = Moments(weight.shape[0]).update(y)
    left, right = project(weight, outputs=moments.covariance_sum).factors(rank)
    free = float((y - x @ right.mT @ left.mT - bias_from_outputs(left, moments.mean, bias)).norm())
    kept = error(x, weight, *project(weight, inputs=x.mT @ x).factors(rank))
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    augmented = torch.cat([weight, bias.unsqueeze(1)], 1)
    return free, kept, error(ones, augmented, *project(augmented, inputs=ones.mT @ ones).factors(rank))


@pytest.mark.parametrize(("m", "n"), [(6, 10), (10, 6), (8, 8)])
def test_the_free_bias_beats_the_kept_one_and_the_augmented_matrix(m, n):
    x, weight, bias = draw(200, n) + 2 * draw(n, seed=7), draw(m, n, seed=1), 3 * draw(m, seed=2)
    free, kept, augmented = free_bias_errors(x, weight, bias, 3)
    assert free < min(kept, augmented)
    centred = (x - x.mean(0)) @ weight.mT
    assert free == pytest.approx(optimum(centred, 3), rel=1e-10)


def test_the_known_order_of_the_three_biases():
    """A mean that the uncentred components must spend a rank on: free < kept < augmented."""
    x, weight, bias = draw(300, 12) + 1, draw(10, 12, seed=1), 4 * draw(10, seed=2)
    free, kept, augmented = free_bias_errors(x, weight, bias, 4)
    assert free < kept < augmented


def test_output_components_without_centring_are_rejected_as_free_bias():
    """The wrong one: uncentred outputs, bias included, and yet a free bias."""
    x, weight, bias = draw(200, 6) + 2, draw(8, 6, seed=1), 3 * draw(8, seed=2)
    y = x @ weight.mT + bias
    best = optimum(y - y.mean(0), 2)

    def reached(moment):
        left, right = project(weight, outputs=moment).factors(2)
        free = bias_from_outputs(left, y.mean(0), bias)
        return float((y - x @ right.mT @ left.mT - free).norm()) <= best * (1 + 1e-9)

    centred = Moments(8).update(y)
    assert reached(centred.covariance_sum)
    assert not reached(centred.gram)


@given(m=sizes, n=sizes, groups=st.sampled_from([None, 2]), seed=seeds)
def test_both_ways_to_the_free_bias_agree(m, n, groups, seed):
    batch = () if groups is None else (groups,)
    x, weight, bias = draw(*batch, 20, n, seed=seed) + 1, draw(*batch, m, n, seed=seed + 1), draw(*batch, m, seed=seed)
    left, right = project(weight, inputs=x.mT @ x).factors((min(m, n) + 1) // 2)
    mean = (x @ weight.mT).mean(-2) + bias
    from_outputs = bias_from_outputs(left, mean, bias)
    torch.testing.assert_close(bias_from_inputs(weight, left, right, x.mean(-2), bias), from_outputs)
    torch.testing.assert_close(from_outputs + ((left @ right) @ x.mean(-2).unsqueeze(-1)).squeeze(-1), mean)
    no_bias = bias_from_inputs(weight, left, right, x.mean(-2))
    torch.testing.assert_close(bias_from_outputs(left, mean - bias), no_bias)


@pytest.mark.parametrize(("m", "n"), [(7, 4), (4, 7)])
@pytest.mark.parametrize("decades", [0, 6])
def test_groups_are_projected_one_by_one(m, n, decades):
    x = torch.stack([conditioned(20, n, decades, seed) for seed in (0, 10, 20)])
    weight = draw(3, m, n)
    for found, sides in zip(
        both_sides(weight, x), zip(*(both_sides(weight[i], x[i]) for i in range(3)), strict=True), strict=True
    ):
        for group, alone in enumerate(sides):
            torch.testing.assert_close(found.errors[group], alone.errors, atol=1e-8, rtol=1e-6)
            torch.testing.assert_close(
                (found.factors(2)[0] @ found.factors(2)[1])[group], alone.factors(2)[0] @ alone.factors(2)[1]
            )


@pytest.mark.parametrize(("m", "n"), [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("diagonal", [False, True])
def test_an_output_metric_is_what_is_minimised(m, n, diagonal):
    x, weight, rank = draw(40, n), draw(m, n, seed=1), 2
    metric = draw(m, seed=2).square() + 0.1 if diagonal else draw(m, 3 * m, seed=2) @ draw(m, 3 * m, seed=2).mT
    dense = torch.diag(metric) if diagonal else metric
    root = torch.linalg.cholesky(dense)

    def measured(left, right):
        return float((x @ (weight - left @ right).mT @ root).norm())

    best = optimum(x @ weight.mT @ root, rank)
    for found in both_sides(weight, x, metric=metric):
        left, right = found.factors(rank)
        assert measured(left, right) == pytest.approx(best, rel=1e-10)
        assert float(found.errors[rank]) == pytest.approx(best, rel=1e-9)
        torch.testing.assert_close(left.mT @ dense @ left, torch.eye(rank, dtype=torch.float64))
        torch.testing.assert_close(right, left.mT @ dense @ weight)
        shift = bias_from_outputs(left, weight @ x.mean(0), metric=metric)
        torch.testing.assert_close(shift, bias_from_inputs(weight, left, right, x.mean(0)))
        full = found.factors()
        torch.testing.assert_close(full[0] @ full[1], weight)
    assert measured(*project(weight, inputs=x.mT @ x).factors(rank)) > best * (1 + 1e-6)


def test_a_batch_takes_a_batch_of_metrics():
    x, weight, metric = draw(2, 20, 3), draw(2, 5, 3), draw(2, 5).square() + 0.1
    found = project(weight, inputs=x.mT @ x, metric=metric)
    alone = project(weight[1], inputs=(x.mT @ x)[1], metric=metric[1])
    torch.testing.assert_close(found.errors[1], alone.errors)
    torch.testing.assert_close(found.factors(2)[1][1].abs(), alone.factors(2)[1].abs())


@pytest.mark.parametrize(("m", "n"), [(8, 5), (5, 8)])
def test_ridge_anchors_at_the_weight(m, n):
    """min ‖X(W−Z)ᵀ‖² + μ‖W−Z‖² is the plain problem with √μ·I appended to the rows; few rows show the difference."""
    x, weight, ridge, rank = draw(2, n), draw(m, n, seed=1), 0.3, 3
    more = torch.cat([x, ridge**0.5 * torch.eye(n, dtype=torch.float64)])
    for found in both_sides(weight, x, ridge=ridge):
        assert error(more, weight, *found.factors(rank)) == pytest.approx(optimum(more @ weight.mT, rank), rel=1e-9)
        assert float(found.errors[rank]) == pytest.approx(optimum(more @ weight.mT, rank), rel=1e-9)
    assert (
        error(more, weight, *project(weight, inputs=x.mT @ x).factors(rank)) > optimum(more @ weight.mT, rank) * 1.001
    )


@pytest.mark.parametrize(("m", "n"), [(0, 3), (3, 0), (0, 0)])
def test_zero_size_weights_have_empty_factors(m, n):
    for side, size in (("inputs", n), ("outputs", m)):
        found = project(torch.zeros(m, n), **{side: torch.zeros(size, size)})
        assert found.errors.tolist() == [0.0]
        left, right = found.factors()
        assert (left.shape, right.shape) == ((m, 0), (0, n))


def test_zero_statistics_have_zero_errors():
    weight = draw(5, 3)
    found = project(weight, inputs=torch.zeros(3, 3, dtype=torch.float64))
    assert not found.errors.any()
    left, right = found.factors()
    torch.testing.assert_close(left @ right, weight)


@given(k=st.integers(0, 6), groups=st.sampled_from([(), (2,)]), seed=seeds)
def test_tails_sum_what_is_left_out(k, groups, seed):
    s = draw(*groups, k, seed=seed).abs().sort(descending=True).values
    for rank in range(k + 1):
        torch.testing.assert_close(tails(s)[..., rank], s[..., rank:].square().sum(-1).sqrt())


def test_what_does_not_fit_is_refused():
    weight, gram = draw(4, 3), torch.eye(3)
    wrong = [
        ({}, "and not both"),
        ({"inputs": gram, "outputs": torch.eye(4)}, "and not both"),
        ({"inputs": torch.eye(4)}, r"inputs of shape \(4, 4\) does not fit a weight of shape \(4, 3\)"),
        ({"outputs": gram}, r"expected \(4, 4\)"),
        ({"inputs": gram, "ridge": -1.0}, "ridge"),
        ({"inputs": gram, "ridge": float("nan")}, "ridge"),
        ({"inputs": gram, "metric": torch.zeros(4)}, "positive"),
        ({"inputs": gram, "metric": -torch.eye(4)}, "positive definite"),
        ({"inputs": gram, "metric": torch.ones(3)}, "output metric must have the shape"),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            project(weight, **options)
    with pytest.raises(ValueError, match=r"a weight .* was expected"):
        project(torch.ones(3), inputs=gram)
    with pytest.raises(NonFiniteError):
        project(weight / 0, inputs=gram)
    with pytest.raises(NonFiniteError):
        project(weight, inputs=gram * float("nan"))
    with pytest.raises(NotMaterialisedError):
        project(torch.empty(4, 3, device="meta"), inputs=gram)
    for rank in (-1, 4):
        with pytest.raises(ValueError, match="rank must be from"):
            project(weight, inputs=gram).factors(rank)
