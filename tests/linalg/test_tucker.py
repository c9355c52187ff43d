"""Laws of steps on the manifold of kernels of low multilinear rank, in float64."""

import pytest
import torch

from rankfold.linalg.errors import NonFiniteError
from rankfold.linalg.manifold import tucker
from rankfold.linalg.manifold.tucker import TuckerPoint

SHAPES = [(12, 7, 3, 3), (6, 10, 5), (9, 4, 2, 2, 2)]


def ladder(m: int, channels: int) -> tuple[tuple[int, int], ...]:
    return tuple((rank, max(1, -(-rank * channels // m))) for rank in range(1, m + 1))


def point(shape, rank: int = 3, seed: int = 0) -> TuckerPoint:
    drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return tucker.starting(drawn, rank, ladder(*shape[:2]))


def seen(now: TuckerPoint, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a layer gathers of a gradient g of the kernel."""
    out_frame, in_frame = tucker.frames(now.core)
    left = torch.einsum("oc...,qc,rq...->or", g, now.right, out_frame)
    right = torch.einsum("oc...,op,pr...->rc", g, now.left, in_frame)
    return left, right, torch.einsum("op,oc...,qc->pq...", now.left, g, now.right)


def projected(now: TuckerPoint, g: torch.Tensor) -> torch.Tensor:
    """g projected onto the tangent space by its definition: the span of all that small changes of U, C and V do."""
    m, c = now.left.shape[0], now.right.shape[1]
    directions = []
    for k in range(now.core.numel()):
        unit = torch.zeros(now.core.numel(), dtype=torch.float64)
        unit[k] = 1
        directions.append(TuckerPoint(now.left, unit.reshape(now.core.shape), now.right, ()).product.flatten())
    for basis, rows in ((now.left, m), (now.right.mT, c)):
        for i in range(rows):
            for j in range(basis.shape[1]):
                unit = torch.zeros_like(basis)
                unit[i, j] = 1
                parts = (unit, now.right) if basis is now.left else (now.left, unit.mT)
                directions.append(TuckerPoint(parts[0], now.core, parts[1], ()).product.flatten())
    span, values, _ = torch.linalg.svd(torch.stack(directions, 1), full_matrices=False)
    span = span[:, values > 1e-10 * values[0]]
    return (span @ (span.mT @ g.flatten())).reshape(g.shape)


def gradient(shape, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stepped(wide: TuckerPoint, core: torch.Tensor) -> TuckerPoint:
    return TuckerPoint(wide.left, wide.core - core, wide.right, wide.ladder)


@pytest.mark.parametrize("shape", SHAPES)
def test_augmenting_changes_the_bases_and_not_the_kernel(shape):
    now = point(shape)
    left, right, _ = seen(now, gradient(shape))
    wide, turn = now.augmented(left, right)
    assert wide.core.shape[0] == min(shape[0], 2 * now.core.shape[0])
    assert (wide.product - now.product).norm() < 1e-13
    assert torch.equal(turn.linear(now.core), wide.core)
    for basis in (wide.left, wide.right.mT):
        assert (basis.mT @ basis - torch.eye(basis.shape[1])).norm() < 1e-13
    most, _ = now.augmented(left, right, 1)
    assert most.core.shape[0] == now.core.shape[0] + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_parallel_step_is_a_step_along_the_projected_gradient(shape):
    now, g, rate = point(shape), gradient(shape), 0.3
    left, right, core = seen(now, g)
    wide, _ = now.augmented(left, right)
    taken = stepped(wide, rate * wide.tangent_core(left, right, core)).product
    assert (taken - (now.product - rate * projected(now, g))).norm() < 1e-13
    # gradients that are seen through the core and not through its frame, as those of plain factors, are far away
    skewed = torch.einsum("oc...,qc,rq...->or", g, now.right, now.core)
    other, _ = now.augmented(skewed, right)
    wrong = stepped(other, rate * other.tangent_core(skewed, right, core)).product
    assert (wrong - (now.product - rate * projected(now, g))).norm() > 0.1


def test_small_cores_do_not_matter():
    """A core of one large and one tiny direction, and one that is zero altogether: finite, and descends."""
    shape = (10, 6, 3, 3)
    now, g = point(shape, 2), gradient(shape)
    for core in (now.core * torch.tensor([1.0, 1e-9]).reshape(2, 1, 1, 1), torch.zeros_like(now.core)):
        here = TuckerPoint(now.left, core, now.right, now.ladder)
        left, right, inside = seen(here, g)
        wide, _ = here.augmented(left, right)
        move = wide.tangent_core(left, right, inside)
        assert bool(move.isfinite().all())
        change = stepped(wide, move).product - here.product
        assert float((change * g).sum()) < 0


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_is_off_by_no_more_than_it_says(shape):
    now = point(shape, shape[0])
    values = now.spectrum
    assert abs(float(values.square().sum() - now.core.square().sum())) < 1e-9
    for rank in range(1, shape[0] + 1):
        cut, turn = now.truncated(rank)
        assert cut.core.shape[:2] == tuple(min(*pair) for pair in zip(now.ladder[rank - 1], now.core.shape))
        off = float((cut.product - now.product).norm())
        assert abs(off - float(values[rank:].norm())) < 1e-12
        tails = [torch.linalg.svdvals(now.core.transpose(0, side).flatten(1)) for side in (0, 1)]
        bound = sum(float(tail[size:].square().sum()) for tail, size in zip(tails, now.ladder[rank - 1])) ** 0.5
        assert off <= bound + 1e-12
        assert torch.allclose(turn.linear(now.core).norm(), cut.core.norm())
        for basis in (cut.left, cut.right.mT):
            assert (basis.mT @ basis - torch.eye(basis.shape[1])).norm() < 1e-13
    assert now.rank == shape[0]


def test_descent_finds_the_ranks_of_the_target():
    shape = (10, 6, 3, 3)
    target = point(shape, 3, seed=9).product
    now, rate = point(shape, 6), 0.5
    for _ in range(80):
        g = now.product - target
        left, right, inside = seen(now, g)
        wide, _ = now.augmented(left, right)
        move = wide.tangent_core(left, right, inside)
        after = stepped(wide, rate * move)
        losses = [0.5 * float((x.product - target).square().sum()) for x in (now, after)]
        assert losses[1] <= losses[0] - rate * (1 - rate / 2) * float(move.square().sum()) + 1e-12
        from rankfold.linalg.manifold.tangent import rank_within

        now, _ = after.truncated(rank_within(after.spectrum, 1e-3))
    assert now.core.shape[:2] == (3, 2)
    assert (now.product - target).norm() < 1e-2 * target.norm()


def test_the_fixed_step_projects_onto_bases_that_follow_the_gradient():
    """On a flow of that rank the bases after the step hold the kernel after it."""
    shape = (8, 6, 3)
    now = point(shape, 4)
    other = torch.einsum(
        "ao,oc...,cb->ab...",
        torch.matrix_exp(0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()),
        now.product,
        torch.matrix_exp(0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(2)).double()),
    )
    left, right, _ = seen(now, now.product - other)
    there, turn = now.moved(left, right, 1.0)
    assert torch.equal(turn.linear(now.core), there.core)
    inside = torch.einsum("op,pa,oc...->ac...", there.left, torch.eye(4).double(), other)
    assert there.core.shape == now.core.shape
    assert (torch.einsum("op,pc...->oc...", there.left, inside) - other).norm() < 0.05 * (now.product - other).norm()


def test_what_is_not_finite_is_refused():
    now = point((6, 4, 3), 2)
    with pytest.raises(NonFiniteError, match="core"):
        _ = TuckerPoint(now.left, now.core * float("nan"), now.right, now.ladder).spectrum
    with pytest.raises(NonFiniteError, match="6, 4"):
        tucker.starting(torch.full((6, 4, 3), float("inf")), 2, now.ladder)
