"""What directions are worth where they compete for a budget: to the loss, not to the norm of their layer."""

import copy

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.induce.worth import Worth
from rankfold.linalg.manifold.tangent import Triple
from rankfold.linalg.manifold.tucker import TuckerPoint


def drawn(m, n, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, rank, generator=generator).double())[0] for size in (m, n))
    core, gradient = torch.randn(2, rank, rank, generator=generator).double()
    return Triple(left, core, right.mT), gradient


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_slope_is_the_mean_square_of_what_shares_a_singular_vector(rank):
    point, gradient = drawn(8, 6, rank)
    p, _, q = torch.linalg.svd(point.core)
    for i, slope in enumerate(point.slopes(gradient)):
        row = [float(p[:, i] @ gradient @ q[j]) ** 2 for j in range(rank)]
        column = [float(p[:, j] @ gradient @ q[i]) ** 2 for j in range(rank)]
        assert float(slope) == pytest.approx(sum(row + column) / (2 * rank))


def test_a_kernel_of_one_point_has_the_slopes_of_its_matrix():
    matrix, gradient = drawn(8, 6, 4)
    kernel = TuckerPoint(matrix.left, matrix.core[..., None, None], matrix.right, tuple((r, r) for r in range(1, 5)))
    torch.testing.assert_close(kernel.slopes(gradient[..., None, None]), matrix.slopes(gradient))


def test_a_ladder_that_adds_outputs_alone_has_their_slopes():
    generator = torch.Generator().manual_seed(0)
    core, gradient = torch.randn(2, 3, 2, 3, 3, generator=generator).double()
    kernel = TuckerPoint(torch.eye(3).double(), core, torch.eye(2).double(), ((1, 2), (3, 2)))
    left, right = (torch.linalg.svd(core.transpose(0, side).flatten(1))[0] for side in (0, 1))
    seen = torch.einsum("pa,pqxy,qb->abxy", left, gradient, right[:, :2]).square().mean((2, 3))
    first, second = kernel.slopes(gradient)
    torch.testing.assert_close(first, torch.cat([seen[:1].mean(1), seen.mean(0)]).mean())
    torch.testing.assert_close(second, seen[1:].mean())


class Two(nn.Module):
    """Two matrices of the same spectrum, on inputs of which the second are ``small``."""

    def __init__(self, small):
        super().__init__()
        self.first, self.second, self.small = nn.Linear(32, 32), nn.Linear(32, 32), small
        nn.init.orthogonal_(self.first.weight)
        self.second.weight = nn.Parameter(self.first.weight.detach().clone())

    def forward(self, x):
        return self.first(x[:, :32]) + self.small * self.second(x[:, 32:])


def trained(model, steps=12, **settings):
    torch.manual_seed(0)
    rf.dlrt_(model)
    wanted = torch.randn(32, 32)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=1e-3, window=4, budget=0.4, reach=2, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(64, 64)
        (model(x) - (x[:, :32] + model.small * x[:, 32:]) @ wanted).square().mean().backward()
        optimizer.step()
    return optimizer


def test_a_matrix_that_the_loss_hardly_sees_leaves_the_budget_to_others():
    ranks = trained(Two(0.05)).ranks
    assert ranks["second"] == 1
    assert ranks["first"] >= 10
    even = trained(Two(1.0)).ranks
    assert min(even.values()) > 2


def test_what_a_layer_was_worth_is_remembered_and_saved():
    optimizer = trained(Two(1.0))
    assert set(optimizer.worth.seen) == {"first", "second"}
    other = rf.Dlrt(optimizer.layers["first"], torch.optim.SGD, lr=1e-3, budget=0.9)
    assert other.worth.seen == {}
    other.load_state_dict(other.state_dict() | {"seen": {"": 2.0}})
    assert other.worth.seen == {"": 2.0}
    old = {key: value for key, value in copy.deepcopy(optimizer.state_dict()).items() if key != "seen"}
    optimizer.load_state_dict(old)  # of an earlier version
    assert optimizer.worth.seen == {}


def test_a_layer_that_the_last_step_did_not_reach_counts_by_what_was_seen():
    worth, (first, gradient), (second, _) = Worth(), drawn(8, 6, 3), drawn(8, 6, 3, seed=1)
    points = {"first": first, "second": second}
    spectra = {name: point.spectrum for name, point in points.items()}
    together = worth.of(points, spectra, {"first": gradient, "second": 3 * gradient})
    again = worth.of(points, spectra, {"first": gradient, "second": None})
    torch.testing.assert_close(again[0], together[0])
    assert float(again[1].sum() / spectra["second"].square().sum()) == pytest.approx(
        float((3 * gradient).square().mean())
    )
    never = Worth().of(points, spectra, {"first": gradient, "second": None})
    assert float(never[1].sum() / spectra["second"].square().sum()) == pytest.approx(float(gradient.square().mean()))


@pytest.mark.parametrize("gradient", [None, torch.zeros(3, 3).double()])
def test_where_the_loss_says_nothing_energy_decides(gradient):
    point, _ = drawn(8, 6, 3)
    (worth,) = Worth().of({"a": point}, {"a": point.spectrum}, {"a": gradient})
    torch.testing.assert_close(worth, point.spectrum.square() / point.spectrum.square().sum())
