"""Dynamical low-rank training of convolutions in Tucker's form."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from test_dlrt import LAYERS, data, network, pass_through, trained
from torch import nn

import rankfold as rf
from rankfold.layers import DynamicTucker, TuckerConv
from rankfold.linalg.manifold.tucker import frames

CONVOLUTIONS = [kind for kind in LAYERS if "linear" not in kind]


def tucker(model: nn.Module, rank: int | None = 6, where=None) -> nn.Module:
    return rf.dlrt_(model, rank, where, convolutions="tucker")


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_one_backward_gathers_the_gradient_through_bases_and_frames(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    low = tucker(nn.Sequential(make()).double(), 3, "*")
    layer, reference = low[0], rf.fold_(copy.deepcopy(low))
    assert type(reference[0]) is type(make())
    assert torch.allclose(layer.weight + 0, reference[0].weight, atol=1e-13)
    layer.probing = True
    pass_through(low, reference, shape)
    g, (left, right) = reference[0].weight.grad, layer.gradients
    out_frame, in_frame = frames(layer.core.detach())
    assert torch.allclose(left, torch.einsum("oc...,qc,rq...->or", g, layer.right, out_frame), atol=1e-12)
    assert torch.allclose(right, torch.einsum("oc...,op,pr...->rc", g, layer.left, in_frame), atol=1e-12)
    assert torch.allclose(layer.core.grad, torch.einsum("op,oc...,qc->pq...", layer.left, g, layer.right), atol=1e-12)
    assert torch.allclose(layer.bias.grad, reference[0].bias.grad)


@pytest.mark.parametrize("integrator", ["window", "parallel", "augmented", "fixed"])
def test_every_integrator_learns(integrator):
    model = tucker(network())
    assert isinstance(model[0], DynamicTucker)
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=0.02, integrator=integrator, window=8)
    losses = trained(model, optimizer, 64)
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    assert all(tail <= 0.1 for tail in optimizer.tails.values())
    for basis in (model[0].left, model[0].right.T):
        assert (basis.T @ basis - torch.eye(basis.shape[1]).double()).norm() < 1e-12


def test_ranks_grow_and_fall_and_clipping_knows_the_projected_norm():
    """A network whose kernel has ranks (6, 3) is found from below."""
    torch.manual_seed(0)
    teacher = tucker(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1)).double(), 6, "*")
    with torch.no_grad():
        teacher[0].core.mul_(10)
    wanted = teacher[0].core.shape[:2]
    rf.fold_(teacher)
    model = tucker(nn.Sequential(nn.Conv2d(8, 16, 3, padding=1)).double(), 2, "*")
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=0.03, window=20, tolerance=0.03)
    x = torch.randn(32, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        y = teacher(x)
    for step in range(400):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        if step == 0:
            layer = model[0]
            known = [layer.core.grad, *layer.gradients, layer.bias.grad]
            outside = (
                known[1] - layer.left @ (layer.left.T @ known[1]),
                known[2] - known[2] @ layer.right.T @ layer.right,
            )
            expected = sum(float(part.square().sum()) for part in (known[0], known[3], *outside)) ** 0.5
            assert abs(float(optimizer.clip_grad_norm_(1e9)) - expected) < 1e-10
        optimizer.step()
    assert model[0].core.shape[:2] == wanted
    assert loss.item() < 1e-2 * float(y.var())


def test_a_budget_holds_and_the_folded_network_has_as_many_parameters(tmp_path):
    model = network()
    dense = sum(p.numel() for p in model.parameters())
    optimizer = rf.Dlrt(tucker(model), torch.optim.SGD, lr=0.05, window=4, budget=0.2, reach=6)
    trained(model, optimizer, 40)
    optimizer.settle()
    assert optimizer.met
    x = data()[0]
    model.eval()
    expected = model(x)
    small = rf.fold_(copy.deepcopy(model), keep=True)
    assert isinstance(small[0], TuckerConv)
    assert sum(p.numel() for p in small.parameters()) <= 0.2 * dense
    assert torch.allclose(small(x), expected, atol=1e-12)
    assert torch.allclose(rf.fold_(model)(x), expected, atol=1e-12)


def test_directions_that_one_side_lacks_are_stored_as_zeros():
    """With more inputs than the ladder has at the rank of the outputs the stored form is the next one on it."""
    model = tucker(nn.Sequential(nn.Conv2d(6, 16, 3)).double(), 4, "*")
    layer = model[0]
    wider = torch.cat([layer.right, torch.linalg.qr(torch.randn(6, 6).double())[0][:1]])
    core = torch.cat([layer.core, torch.randn(4, 1, 3, 3).double()], 1).detach()
    layer.put_(layer.left, core, wider)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected = model(x)
    small = rf.fold_(copy.deepcopy(model), keep=True)
    assert sum(p.numel() for p in small.parameters()) - 16 == layer.numbers
    assert torch.allclose(small(x), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_resumed_is_as_uninterrupted_to_the_bit(kind):
    settings = {"lr": 0.05, "momentum": 0.9} if kind == "SGD" else {"lr": 0.02}
    model = tucker(network())
    optimizer = rf.Dlrt(model, getattr(torch.optim, kind), window=7, **settings)
    trained(model, optimizer, 18)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    ahead = trained(model, optimizer, 10)
    again = tucker(network(1), 3)
    other = rf.Dlrt(again, getattr(torch.optim, kind), window=7, **settings)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert trained(again, other, 10) == ahead
    assert pickle.loads(pickle.dumps(again))[0].rank == again[0].rank


@pytest.mark.parametrize("condition", [rf.Condition(1.5), rf.Spread(0.3)])
def test_conditioning_looks_at_the_unfolding_along_the_outputs(condition):
    def spreads(how) -> float:
        model = tucker(network())
        trained(model, rf.Dlrt(model, torch.optim.SGD, lr=0.1, window=4, condition=how), 20)
        values = torch.linalg.svdvals(model[0].core.detach().flatten(1))
        return float(values[0] / values[-1])

    assert spreads(condition) < spreads(None)
    if isinstance(condition, rf.Condition):
        assert spreads(condition) <= 1.5 * (1 + 1e-6)


def test_other_layers_stay_matrices_and_other_words_are_refused():
    model = tucker(nn.Sequential(nn.Conv2d(16, 20, 1), nn.Conv2d(20, 20, 3), nn.Flatten(), nn.Linear(80, 20)), 4)
    assert [type(layer).__name__ for layer in model] == ["DynamicLowRank", "DynamicTucker", "Flatten", "DynamicLowRank"]
    assert repr(model[1]) == "DynamicTucker(20, 20, kernel_size=(3, 3), ranks=(4, 4))"
    with pytest.raises(ValueError, match="matrix, tucker"):
        rf.dlrt_(network(), convolutions="cp")
