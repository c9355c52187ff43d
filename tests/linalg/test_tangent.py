"""Laws of steps on the manifold of low rank, in float64."""

from itertools import pairwise

import pytest
import torch

from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.manifold import tangent
from rankfold.linalg.manifold.tangent import Triple

GRADED = (1.0, 0.3, 1e-3, 1e-9)


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn)[0]


def triple(m: int, n: int, values=GRADED) -> Triple:
    r = len(values)
    turn = orthonormal(r, r, 3)
    core = turn @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ orthonormal(r, r, 4).mT
    return Triple(orthonormal(m, r, 1), core, orthonormal(n, r, 2).mT)


def gradients(now: Triple, seed: int = 5) -> tuple[torch.Tensor, ...]:
    """A gradient of W and what is known of it."""
    m, n = now.left.shape[0], now.right.shape[1]
    g = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return g, g @ now.right.mT, now.left.mT @ g, now.left.mT @ g @ now.right.mT


def projected(now: Triple, g: torch.Tensor) -> torch.Tensor:
    """P(g), as its definition has it."""
    u, v = now.left @ now.left.mT, now.right.mT @ now.right
    return u @ g + g @ v - u @ g @ v


@pytest.mark.parametrize(("m", "n"), [(12, 9), (9, 12), (5, 30), (8, 8)])
def test_augmenting_changes_the_bases_and_not_the_matrix(m, n):
    now = triple(m, n)
    _, left, right, _ = gradients(now)
    wide, turn = now.augmented(left, right)
    assert wide.core.shape == (min(2 * now.rank, m), min(2 * now.rank, n))
    assert wide.rank == min(2 * now.rank, m, n)
    assert (wide.product - now.product).norm() < 1e-15 * 10
    for basis in (wide.left, wide.right.mT):
        assert (basis.mT @ basis - torch.eye(basis.shape[1])).norm() < 1e-14
    assert torch.equal(turn.linear(now.core)[: now.rank, : now.rank], now.core)


@pytest.mark.parametrize(
    ("m", "n"), [(12, 10), (5, 30), (30, 5), (4, 9), (9, 4), (4, 4)]
)  # with one side complete, too
def test_a_parallel_step_is_a_step_along_the_projected_gradient_however_small_singular_values_are(m, n):
    now, rate = triple(m, n), 0.3
    g, left, right, core = gradients(now)
    wide, _ = now.augmented(left, right)
    stepped = Triple(wide.left, wide.core - rate * wide.tangent_core(left, right, core), wide.right)
    assert (stepped.product - (now.product - rate * projected(now, g))).norm() < 1e-14
    if m != n and min(m, n) < 2 * now.rank:
        return  # the core is no square
    # the transposed product, as in one published code, is far away
    wrong = Triple(wide.left, wide.core - rate * wide.tangent_core(left, right, core).mT, wide.right)
    assert (wrong.product - (now.product - rate * projected(now, g))).norm() > 0.1


def test_an_augmented_step_adds_the_block_of_the_new_directions():
    now, rate = triple(12, 10), 0.3
    g, left, right, _ = gradients(now)
    wide, _ = now.augmented(left, right)
    stepped = Triple(wide.left, wide.core - rate * wide.left.mT @ g @ wide.right.mT, wide.right)
    u, v = wide.left[:, now.rank :], wide.right[now.rank :]
    expected = now.product - rate * (projected(now, g) + u @ (u.mT @ g @ v.mT) @ v)
    assert (stepped.product - expected).norm() < 1e-14


def flow(steps: int = 5) -> list[torch.Tensor]:
    """Matrices of rank 3 whose row and column spaces turn."""
    w1, w2 = (torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (7, 8))
    start = triple(10, 10, (1.0, 0.5, 0.2)).product
    turns = [torch.matrix_exp(0.1 * t * (w1 - w1.mT)) for t in range(steps + 1)]
    others = [torch.matrix_exp(0.1 * t * (w2 - w2.mT)) for t in range(steps + 1)]
    return [one @ start @ other for one, other in zip(turns, others, strict=True)]


@pytest.mark.parametrize("integrator", ["fixed", "augmented", "parallel"])
def test_flows_of_that_rank_are_reproduced_by_the_integrators_that_are_exact_and_not_by_the_parallel_one(integrator):
    path = flow()
    now = tangent.starting(path[0], 3)
    for before, after in pairwise(path):
        g = before - after  # a step of rate 1 along −g
        left, right = g @ now.right.mT, now.left.mT @ g
        if integrator == "fixed":
            wide, _ = now.moved(left, right, 1.0)
        else:
            wide, _ = now.augmented(left, right)
        core = wide.left.mT @ g @ wide.right.mT
        if integrator == "parallel":
            core = wide.tangent_core(left, right, now.left.mT @ g @ now.right.mT)
        now, _ = Triple(wide.left, wide.core - core, wide.right).truncated(3)
    error = float((now.product - path[-1]).norm())
    assert error < 1e-13 if integrator != "parallel" else error > 1e-4


@pytest.mark.parametrize("integrator", ["fixed", "augmented"])
def test_small_singular_values_do_no_harm(integrator):
    """A(t) = e^{tW₁} eᵗ D e^{tW₂}, D_j = 2^{−j}: at rank 32 the smallest value is 6e-10."""
    w1, w2 = (torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (9, 10))
    w1, w2 = (w1 - w1.mT) / 20, (w2 - w2.mT) / 20
    diagonal = torch.diag(2.0 ** -torch.arange(1, 41, dtype=torch.float64))

    def at(t: float) -> torch.Tensor:
        return torch.matrix_exp(t * w1) @ (diagonal * torch.tensor(t).double().exp()) @ torch.matrix_exp(t * w2)

    rank, times = 32, [0.02 * k for k in range(51)]
    now = tangent.starting(at(0), rank)
    for before, after in pairwise(times):
        g = at(before) - at(after)
        left, right = g @ now.right.mT, now.left.mT @ g
        wide, _ = now.moved(left, right, 1.0) if integrator == "fixed" else now.augmented(left, right)
        core = wide.left.mT @ g @ wide.right.mT
        now, _ = Triple(wide.left, wide.core - core, wide.right).truncated(rank)
    best = torch.linalg.svdvals(at(1.0))[rank:].norm()
    assert (now.product - at(1.0)).norm() < 3 * best


def test_descent_and_the_bound_of_truncation():
    """On ½‖W − A‖²: f falls by at least η(1 − η/2)‖P(g)‖², truncation moves W by at most the tail, and the rank found
    is that of A."""
    target = triple(14, 11, (3.0, 2.0, 1.0)).product
    now, rate, tolerance = tangent.starting(torch.randn(14, 11, dtype=torch.float64), 8), 0.5, 1e-3
    for _ in range(60):
        g = now.product - target
        left, right, core = g @ now.right.mT, now.left.mT @ g, now.left.mT @ g @ now.right.mT
        wide, _ = now.augmented(left, right)
        found = wide.tangent_core(left, right, core)
        stepped = Triple(wide.left, wide.core - rate * found, wide.right)
        before, after = (0.5 * float((x.product - target).square().sum()) for x in (now, stepped))
        assert after <= before - rate * (1 - rate / 2) * float(found.square().sum()) + 1e-12
        values = tangent.singular_values(stepped.core)
        rank = tangent.rank_within(values, tolerance)
        now, _ = stepped.truncated(rank)
        assert (now.product - stepped.product).norm() <= tolerance * values.norm() * (1 + 1e-9) + 1e-15
        assert abs(float((now.product - stepped.product).norm() - values[rank:].norm())) < 1e-12
    assert now.rank == 3


def test_bases_stay_orthonormal_over_ten_thousand_steps_of_float32():
    now = Triple(*(x.float() for x in vars(triple(20, 15, (1.0, 0.5, 0.2, 0.1))).values()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10_000):
        g = torch.randn(20, 15, generator=generator)
        wide, _ = now.augmented(g @ now.right.mT, now.left.mT @ g)
        core = wide.core - 0.01 * torch.randn(wide.core.shape, generator=generator)
        now, _ = Triple(wide.left, core / core.norm(), wide.right).truncated(4)
    for basis in (now.left, now.right.mT):
        assert (basis.mT @ basis - torch.eye(4)).norm() < 2e-5


def test_directions_that_lie_in_the_basis_are_no_new_ones():
    basis = orthonormal(10, 3, 0)
    inside = basis @ torch.randn(3, 4, dtype=torch.float64)
    assert tangent.new_directions(basis, inside).shape == (10, 0)
    one = torch.cat([inside, torch.randn(10, 1, dtype=torch.float64)], 1)
    found = tangent.new_directions(basis, one)
    assert found.shape == (10, 1)
    assert (basis.mT @ found).norm() < 1e-15
    assert tangent.new_directions(basis, torch.zeros(10, 2, dtype=torch.float64)).shape[1] == 0
    assert tangent.new_directions(orthonormal(3, 3, 0), torch.randn(3, 2, dtype=torch.float64)).shape[1] == 0


def test_moments_turn_with_the_bases():
    """A mean of gradients turns as they do; of squares of uncorrelated entries the mean stays the mean square."""
    now = triple(9, 8)
    _, turn = now.truncated(2)
    draws = torch.randn(20_000, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draws = draws * torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    turned = torch.stack([turn.linear(x) for x in draws[:50]])
    assert torch.allclose(turn.linear(draws[:50].mean(0)), turned.mean(0))
    squares = turn.squared(draws.square().mean(0))
    assert torch.allclose(squares, (turn.left.mT @ draws @ turn.right).square().mean(0), rtol=0.05)
    assert bool((squares >= 0).all())


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.3, 0.9])
def test_the_rank_within_a_tolerance_is_the_smallest(tolerance):
    values = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1])
    rank = tangent.rank_within(values, tolerance)
    assert float(values[rank:].norm()) <= tolerance * float(values.norm())
    assert rank == 1 or float(values[rank - 1 :].norm()) > tolerance * float(values.norm())
    assert tangent.rank_within(values, tolerance, most=2) <= 2
    assert tangent.rank_within(torch.zeros(3), tolerance) == 1


def test_ranks_compete_for_a_budget():
    spectra = [torch.tensor([4.0, 3.0, 0.1]), torch.tensor([2.0, 0.1]), torch.tensor([5.0, 4.9, 4.8])]
    worth = [tangent.shares(values) for values in spectra]
    prices = [lambda r: 10 * r, lambda r: 4 * r, lambda r: 20 * r]
    ranks = tangent.ranks_within(worth, prices, 10 + 4 + 20 + 30)
    assert ranks == [2, 1, 2]
    assert sum(p(r) for r, p in zip(ranks, prices, strict=True)) <= 64
    assert tangent.ranks_within(worth, prices, 34) == [1, 1, 1]
    assert tangent.ranks_within([1e4 * worth[0], worth[1], worth[2]], prices, 64) == [3, 2, 1]


@pytest.mark.parametrize("bound", [1.0, 2.0, 50.0])
def test_a_clamped_core_has_the_condition_number_that_was_asked(bound):
    core = triple(4, 4, (9.0, 2.0, 0.5, 1e-6)).core
    values = torch.linalg.svdvals(tangent.clamped(core, bound))
    assert float(values[0] / values[-1]) <= bound * (1 + 1e-9)
    gentle = triple(4, 4, (1.1, 1.0, 0.95, 0.9)).core
    assert torch.allclose(tangent.clamped(gentle, 50.0), gentle)


def test_the_penalty_on_the_spread_its_gradient_and_its_bound():
    core = triple(4, 4, (2.0, 1.5, 0.7, 0.2)).core.requires_grad_()
    size, gradient = tangent.spread(core)
    (expected,) = torch.autograd.grad(size, core)
    assert torch.allclose(gradient, expected, atol=1e-13)
    size = size.detach()
    for other in (core.detach()[:3], core.detach()[:, :3]):  # in an open window the core may be no square
        away, found = torch.linalg.svdvals(other).square(), tangent.spread(other)
        assert float(found[0]) == pytest.approx(float((away - away.mean()).norm()))
        expected = torch.func.grad(lambda core: tangent.spread(core)[0])(other)
        assert torch.allclose(found[1], expected, atol=1e-13)
    values = torch.linalg.svdvals(core.detach())
    assert float(size) == pytest.approx(len(values) ** 0.5 * float(values.square().std(correction=0)))
    assert values[0] / values[-1] <= (1 + 2**0.5 * size / values[-1] ** 2) ** 0.5
    even = torch.eye(3, dtype=torch.float64) * 2
    assert tangent.spread(even)[0] == 0
    assert not tangent.spread(even)[1].any()


def test_what_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError):
        tangent.starting(torch.full((3, 3), float("nan")), 2)
    with pytest.raises(NonFiniteError):
        tangent.singular_values(torch.full((3, 3), float("inf")))
