"""What the theory of LoRITa says of products of factors (Propositions 4.2 and 4.5), in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from rankfold import fold_, overparametrize_
from rankfold.induce import factor_energy, factors, schatten_penalty
from rankfold.linalg.balanced import balanced_factors, product
from rankfold.linalg.chain import cheapest_order, multiply

seeds = st.integers(0, 2**31)
sides = st.integers(2, 7)
depths = st.integers(2, 5)


@pytest.fixture(autouse=True, scope="module")
def _no_search_for_optimizers() -> Iterator[None]:
    """A tenth of a second each time, in a process as full as that of a test suite; tested in test_lorita_training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankfold.induce.overparametrize.warn_of_earlier_optimizers", lambda *_: None)
        yield


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def penalty(parts: list[Tensor] | tuple[Tensor, ...]) -> float:
    return float(sum(part.square().sum() for part in parts))


def composed(m: int, n: int, depth: int, seed: int, **settings: object) -> nn.Module:
    model = nn.Sequential(nn.Linear(n, m, dtype=torch.float64))
    with torch.no_grad():
        model[0].weight.copy_(random(m, n, seed=seed))
    return overparametrize_(model, depth, **settings)  # type: ignore[arg-type]


# ---- Proposition 4.2 -------------------------------------------------------------------------------------------------


@given(sides, sides, depths, seeds)
def test_a_balanced_start_attains_the_schatten_minimum(m: int, n: int, depth: int, seed: int) -> None:
    weight = random(m, n, seed=seed)
    model = composed(m, n, depth, seed)
    least = float(schatten_penalty(weight, depth))
    values = torch.linalg.svdvals(weight)
    assert least == pytest.approx(depth * float(values.pow(2 / depth).sum()), rel=1e-10)
    assert float(factor_energy(model)["0"]) == pytest.approx(least, rel=1e-9)
    # the exponent printed before equation 7, p = 1/K, is not what the factors attain
    wrong = depth * float(values.pow(1 / depth).sum())
    assume(abs(wrong - least) > 1e-3 * least)
    assert float(factor_energy(model)["0"]) != pytest.approx(wrong, rel=1e-4)


@given(sides, sides, depths, seeds, st.floats(0.01, 2.0))
def test_every_gauge_change_costs_at_least_as_much(m: int, n: int, depth: int, seed: int, size: float) -> None:
    parts = [part.detach().clone() for part in factors(composed(m, n, depth, seed, inner="paper"))["0"]]
    least, weight = penalty(parts), product(parts)
    where = seed % (depth - 1)
    width = parts[where].shape[1]
    gauge = torch.eye(width, dtype=torch.float64) + size * random(width, width, seed=seed + 1) / width**0.5
    assume(float(torch.linalg.cond(gauge)) < 1e6)
    parts[where], parts[where + 1] = parts[where] @ gauge, torch.linalg.solve(gauge, parts[where + 1])
    torch.testing.assert_close(product(parts), weight, rtol=1e-6, atol=1e-6)
    assert penalty(parts) >= least * (1 - 1e-9)


@given(sides, sides, depths, seeds)
def test_orthogonal_gauges_are_free_and_the_law_rejects_unbalanced_factors(
    m: int, n: int, depth: int, seed: int
) -> None:
    parts = [part.detach().clone() for part in factors(composed(m, n, depth, seed))["0"]]
    least = penalty(parts)
    rotation, _ = torch.linalg.qr(random(parts[0].shape[1], parts[0].shape[1], seed=seed))
    turned = [parts[0] @ rotation, rotation.T @ parts[1], *parts[2:]]
    assert penalty(turned) == pytest.approx(least, rel=1e-9)
    # all of W in one factor, partial isometries elsewhere: the same product, a dearer one
    u, s, vh = torch.linalg.svd(product(parts), full_matrices=False)
    assume(float((s - 1).abs().max()) > 0.1)
    lazy = [u * s, *[torch.eye(len(s), dtype=torch.float64)] * (depth - 2), vh]
    torch.testing.assert_close(product(lazy), product(parts), rtol=1e-8, atol=1e-9)
    assert penalty(lazy) > least * (1 + 1e-6)


@given(sides, sides, depths, seeds)
def test_any_factors_cost_at_least_the_penalty_of_their_product(m: int, n: int, depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for start in ("random", "orthogonal"):
        model = composed(m, n, depth, seed, start=start, generator=generator)
        assert float(factor_energy(model)["0"]) >= float(schatten_penalty(model[0].weight, depth)) * (1 - 1e-9)


def test_weight_decay_alone_takes_the_smaller_singular_values_first() -> None:
    """Descent of ½‖W − A‖² + λ Σ‖R_i‖² ends with σ at a minimum of ½(σ − a)² + λ N σ^{2/N}: zero below a threshold.

    One factor only shrinks all singular values alike.
    """
    values = torch.tensor([3.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    target, ends = torch.diag(values), {}
    for depth in (1, 3):
        model = nn.Sequential(nn.Linear(4, 4, bias=False, dtype=torch.float64))
        with torch.no_grad():
            model[0].weight.copy_(target)
        if depth > 1:
            overparametrize_(model, depth)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=2 * 0.05)
        for _ in range(2000):
            optimizer.zero_grad()
            (0.5 * (model[0].weight - target).square().sum()).backward()
            optimizer.step()
        ends[depth] = torch.linalg.svdvals(fold_(model)[0].weight.detach())
    torch.testing.assert_close(ends[1], values / 1.1, rtol=1e-6, atol=1e-8)
    assert float(ends[3][0]) > 2.8
    assert float(ends[3][2:].max()) < 1e-6


# ---- Proposition 4.5 -------------------------------------------------------------------------------------------------


def rescaling(weights: list[Tensor], alphas: list[float], p: float) -> tuple[float, list[float]]:
    """λ and β_l with Π β_l = 1 such that Σ α_l ‖W_l‖_p^p = λ Σ ‖β_l W_l‖_p^p, term by term (LoRITa, B.2).

    β_l = (α_l/λ)^{1/p}, hence λ is the geometric mean of the α_l.
    """
    rate = float(torch.tensor(alphas, dtype=torch.float64).log().mean().exp())
    return rate, [(alpha / rate) ** (1 / p) for alpha in alphas]


def relu_network(weights: list[Tensor], x: Tensor) -> Tensor:
    for weight in weights[:-1]:
        x = torch.relu(x @ weight.T)
    return x @ weights[-1].T


@given(st.integers(1, 4), st.sampled_from([2, 4]), seeds)
def test_one_weight_decay_is_enough_for_relu_networks_without_biases(hidden: int, depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    widths = [int(torch.randint(2, 6, (), generator=generator)) for _ in range(hidden + 2)]
    weights = [random(m, n, seed=seed + i) for i, (n, m) in enumerate(pairwise(widths))]
    alphas = (0.1 + 10 * torch.rand(len(weights), generator=generator, dtype=torch.float64)).tolist()
    p, x = 2 / depth, random(8, widths[0], seed=seed)
    rate, betas = rescaling(weights, alphas, p)
    scaled = [beta * weight for beta, weight in zip(betas, weights)]
    assert float(torch.tensor(betas, dtype=torch.float64).prod()) == pytest.approx(1.0)
    torch.testing.assert_close(relu_network(scaled, x), relu_network(weights, x), rtol=1e-8, atol=1e-9)
    for alpha, weight, new in zip(alphas, weights, scaled):
        # the factors of (7) at rate α p/2 each cost what those of (8) cost at rate λ p/2
        before = alpha * p / 2 * penalty(balanced_factors(weight, depth))
        after = rate * p / 2 * penalty(balanced_factors(new, depth))
        assert after == pytest.approx(before, rel=1e-8)
    # with the exponent as printed, p = 1/K, the penalties of K factors would differ
    _, wrong = rescaling(weights, alphas, 1 / depth)
    assume(max(alphas) > 1.5 * min(alphas))
    pairs = list(zip(alphas, weights, wrong))
    assert any(
        rate * penalty(balanced_factors(beta * weight, depth))
        != pytest.approx(alpha * penalty(balanced_factors(weight, depth)), rel=1e-3)
        for alpha, weight, beta in pairs
    )
    # and a network with biases does not keep its outputs
    biased = [torch.relu(x @ w.T + 1.0) for w in (weights[0], scaled[0])]
    assert abs(betas[0] - 1) < 1e-3 or not torch.allclose(biased[0] * betas[0], biased[1], rtol=1e-6)


# ---- the cheapest order ----


def every_order(sizes: list[int]) -> list[int]:
    """Multiply-adds of every way to set the brackets."""
    if len(sizes) == 2:
        return [0]
    return [
        left + right + sizes[0] * sizes[cut] * sizes[-1]
        for cut in range(1, len(sizes) - 1)
        for left in every_order(sizes[: cut + 1])
        for right in every_order(sizes[cut:])
    ]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=7), seeds)
def test_the_order_of_a_chain_is_the_cheapest_and_its_product_is_the_product(sizes: list[int], seed: int) -> None:
    cost, order = cheapest_order(sizes)
    assert cost == min(every_order(sizes))
    parts = [random(m, n, seed=seed + i) for i, (m, n) in enumerate(pairwise(sizes))]
    torch.testing.assert_close(multiply(parts, order), product(parts))


def test_an_order_that_is_not_the_cheapest_would_be_noticed() -> None:
    sizes = [2, 9, 9, 1]
    from_the_left = 2 * 9 * 9 + 2 * 9 * 1
    assert cheapest_order(sizes)[0] == 9 * 9 * 1 + 2 * 9 * 1 < from_the_left
    with pytest.raises(ValueError, match="at least two sizes"):
        cheapest_order([3])
    with pytest.raises(ValueError, match="at least 1 factor"):
        schatten_penalty(torch.eye(2), 0)
