"""Training that goes on in factors, once ranks are found."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from test_dlrt import LAYERS, data, network, trained
from torch import nn

import rankfold as rf
from rankfold.layers import DynamicLowRank, DynamicTucker
from rankfold.linalg.errors import NonFiniteError

FOUND = {"window": 3, "budget": 0.4, "reach": 2, "factors": True}
KINDS = {"SGD": {"lr": 0.05, "momentum": 0.9}, "AdamW": {"lr": 3e-3}}


def ready(model: nn.Module, kind: str = "SGD", **settings) -> rf.Dlrt:
    return rf.Dlrt(model, getattr(torch.optim, kind), **KINDS[kind] | FOUND | settings)


@pytest.mark.parametrize("form", ["matrix", "tucker"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_freed_layer_is_the_same_function_of_two_factors(kind, form):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    model = rf.dlrt_(nn.Sequential(make()).double(), 3, "*", convolutions=form)
    layer, x = model[0], torch.randn(shape).double()
    expected, weight, keys = model(x), layer.weight.detach().clone(), list(model.state_dict())
    layer.free_()
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(layer.weight.detach(), weight)
    sides = {"left", "right"} | ({"core"} if isinstance(layer, DynamicTucker) else set())
    assert {name for name, _ in layer.named_parameters()} - {"bias"} == sides
    assert sorted(model.state_dict()) == sorted(keys)
    if not isinstance(layer, DynamicTucker):
        assert torch.equal(layer.core, torch.eye(3).double())
        left, right = layer.left.detach(), layer.right.detach()
        torch.testing.assert_close(left.T @ left, right @ right.T)  # balanced
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    layer.hold_()
    torch.testing.assert_close(model(x), expected)
    assert {name for name, _ in layer.named_parameters()} - {"bias"} == {"core"}
    torch.testing.assert_close(rf.fold_(model)(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convolutions", ["matrix", "tucker"])
def test_once_the_budget_holds_both_factors_learn_at_the_ranks_that_were_found(kind, convolutions):
    model = rf.dlrt_(network(), 8, convolutions=convolutions)
    optimizer = ready(model, kind)
    trained(model, optimizer, 5)
    assert not optimizer.freed
    trained(model, optimizer, 1)
    assert optimizer.freed
    assert optimizer.met
    ranks = optimizer.ranks
    before = {name: layer.left.detach().clone() for name, layer in optimizer.layers.items()}
    losses = trained(model, optimizer, 1)
    for name, layer in optimizer.layers.items():
        assert bool((layer.left != before[name]).any()), name  # at once: no window is waited for
    losses += trained(model, optimizer, 60)
    optimizer.settle()
    assert optimizer.ranks == ranks
    assert sum(losses[-8:]) < sum(losses[:8])
    expected = model(data(8)[0])
    dense = sum(p.numel() for p in network().parameters())
    small = rf.fold_(model, keep=True)
    torch.testing.assert_close(small(data(8)[0]), expected)
    assert sum(p.numel() for p in small.parameters()) <= 0.4 * dense
    assert all(p.requires_grad for p in small.parameters())


def test_a_freed_network_steps_as_its_factors_do():
    """The oracle: the same factors as plain parameters, by the same optimizer."""
    model = rf.dlrt_(network(), 8)
    optimizer = ready(model)
    trained(model, optimizer, 6)
    plain = rf.fold_(copy.deepcopy(model), keep=True)
    theirs = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    x, y = data(64)
    for one, how in ((model, optimizer), (plain, theirs)):
        for group in how.param_groups:  # both from rest
            for p in group["params"]:
                how.state.pop(p, None)
        for _ in range(5):
            how.zero_grad()
            F.cross_entropy(one(x), y).backward()
            how.step()
    torch.testing.assert_close(model(x), plain(x))


def test_after_a_tolerance_the_windows_are_counted():
    model = rf.dlrt_(network(), 8)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.05, window=3, reach=2, tolerance=0.2, factors=True)
    trained(model, optimizer, 5)
    assert not optimizer.freed
    trained(model, optimizer, 1)
    assert optimizer.freed


@pytest.mark.parametrize("at", [4, 15])
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_as_uninterrupted_to_the_bit(kind, at):
    whole = rf.dlrt_(network(dtype=torch.float32), 8)
    optimizer = ready(whole, kind)
    trained(whole, optimizer, at)
    kept = pickle.loads(pickle.dumps({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}))
    trained(whole, optimizer, 12)
    resumed = rf.dlrt_(network(dtype=torch.float32), 2)
    other = ready(resumed, kind)
    resumed.load_state_dict(kept["model"])
    other.load_state_dict(kept["optimizer"])
    trained(resumed, other, 12)
    assert other.freed
    state = resumed.state_dict()
    for name, one in whole.state_dict().items():
        assert torch.equal(one, state[name]), name


def test_an_earlier_state_is_taken_back():
    model = rf.dlrt_(network(), 8)
    optimizer = ready(model)
    trained(model, optimizer, 4)
    early = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    trained(model, optimizer, 8)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    assert optimizer.freed
    model.load_state_dict(early[0])
    optimizer.load_state_dict(early[1])
    assert not optimizer.freed
    trained(model, optimizer, 8)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, first[name])


def test_a_state_of_before_is_the_same_function_in_a_model_that_is_trained_in_factors():
    """As where the best epoch is restored that lies before ranks were found."""
    model, x = rf.dlrt_(network(), 8), data(8)[0]
    optimizer = ready(model)
    trained(model, optimizer, 3)
    early, expected = copy.deepcopy(model.state_dict()), model.eval()(x)
    trained(model.train(), optimizer, 8)
    assert optimizer.freed
    model.load_state_dict(early)
    torch.testing.assert_close(model.eval()(x), expected)
    torch.testing.assert_close(rf.fold_(model, keep=True).eval()(x), expected)


@pytest.mark.parametrize("convolutions", ["matrix", "tucker"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_state_in_factors_becomes_bases_again_without_the_optimizers(when, convolutions):
    """Bases that are not orthonormal would be cut along directions that mean nothing."""
    model, x = rf.dlrt_(network(), 8, convolutions=convolutions), data(8)[0]
    trained(model, ready(model), 20)
    fresh = rf.dlrt_(network(), 2, convolutions=convolutions)
    settings = {"lr": 1e-9, "window": 2, "tolerance": 0.0}
    optimizer = rf.Dlrt(fresh, torch.optim.Adam, **settings) if when == "after" else None
    fresh.load_state_dict(model.state_dict())
    if optimizer is None:
        optimizer = rf.Dlrt(fresh, torch.optim.Adam, **settings)
    expected = fresh.eval()(x)
    trained(fresh.train(), optimizer, 4)
    optimizer.settle()
    fresh[1].load_state_dict(model[1].state_dict())  # statistics of batches
    torch.testing.assert_close(fresh.eval()(x), expected, rtol=1e-4, atol=1e-5)
    for layer in optimizer.layers.values():
        for basis in (layer.left, layer.right.T):
            torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double())


def test_another_optimizer_goes_on_in_factors_or_says_what_to_do():
    model = rf.dlrt_(network(), 8)
    trained(model, ready(model), 9)
    with pytest.raises(ValueError, match="go on with factors=True, or call fold_ and dlrt_"):
        rf.Dlrt(model, torch.optim.Adam, lr=1e-3)
    before = model[4].left.detach().clone()
    trained(model, ready(model), 1)
    assert bool((model[4].left != before).any())


def test_an_update_that_was_zero_when_ranks_were_found_can_still_learn():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.both = nn.Linear(20, 16), nn.Linear(20, 16), False

        def forward(self, x):
            return self.a(x) + (self.b(x) if self.both else 0)

    torch.manual_seed(0)
    model = rf.geolora_(Branches(), 3)
    optimizer = rf.GeoLora(model, torch.optim.Adam, lr=1e-2, params=400, window=3, reach=2, factors=True)
    for step in range(40):
        model.both = step > 8
        optimizer.zero_grad()
        x = torch.randn(32, 20)
        (model(x) - x[:, :16]).square().mean().backward()
        optimizer.step()
    assert optimizer.freed
    assert float(model.b.update().detach().norm()) > 0.05


@pytest.mark.parametrize("freed", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_folding_after_biases_were_frozen_leaves_weights_that_train(freed, keep):
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("bias"))
    rf.dlrt_(model, 8)
    trained(model, ready(model, factors=freed), 9 if freed else 3)
    folded = rf.fold_(model, keep=keep)
    for name, parameter in folded.named_parameters():
        assert parameter.requires_grad is not name.endswith("bias"), name


def test_a_layer_that_is_thawed_later_goes_on_in_factors_too():
    model = rf.dlrt_(network(), 8)
    optimizer = ready(model)
    core = model[4].core
    core.requires_grad_(False)
    trained(model, optimizer, 9)
    assert (model[0].freed, model[4].freed) == (True, False)
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = rf.dlrt_(network(), 2)
    again = ready(other)
    other.load_state_dict(kept[0])
    again.load_state_dict(kept[1])
    assert (other[0].freed, other[4].freed) == (True, False)
    core.requires_grad_(True)
    before = model[4].weight.detach().clone()
    trained(model, optimizer, 2)
    assert model[4].freed
    assert bool((model[4].weight != before).any())


def test_groups_know_the_names_of_what_took_the_place_of_cores():
    model = rf.dlrt_(network(), 8)
    optimizer = ready(model, groups=[{"params": list(model.named_parameters())}])
    trained(model, optimizer, 9)
    (group,) = optimizer.param_groups
    known = {id(p): name for name, p in model.named_parameters()}
    assert group["param_names"] == [known[id(p)] for p in group["params"]]
    assert "0.left" in group["param_names"]


def test_copies_scalers_clips_and_frozen_layers():
    model = network()
    model[0].requires_grad_(False)
    rf.dlrt_(model, 8, "*")
    optimizer = ready(model, budget=0.6)
    frozen = [layer for layer in optimizer.layers.values() if not layer.trained[0].requires_grad]
    trained(model, optimizer, 9)
    assert optimizer.freed
    assert not any(layer.freed for layer in frozen)
    copies = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    expected = trained(model, optimizer, 3)
    assert [trained(*pair, 3) for pair in copies] == [expected] * 2
    optimizer.zero_grad()
    x, y = data(16)
    F.cross_entropy(model(x), y).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert float(optimizer.clip_grad_norm_(1e-3)) == pytest.approx(float(norm))
    clipped = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert float(clipped) == pytest.approx(1e-3)


def test_an_adapter_is_trained_on_in_factors():
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
    rf.geolora_(model, 4)
    optimizer = rf.GeoLora(model, torch.optim.Adam, lr=1e-2, params=150, window=3, reach=2, factors=True)
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(32, 20)).square().mean().backward()
        optimizer.step()
    assert optimizer.freed
    assert sum(rank * sum(optimizer.layers[name].shape) for name, rank in optimizer.ranks.items()) <= 150
    x = torch.randn(5, 20)
    expected = model(x)
    torch.testing.assert_close(rf.adapt.merge_(model)(x), expected)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"condition": rf.Condition(2.0)}, "where condition= cannot hold them"),
        ({"integrator": "fixed"}, "goes with the integrators window and parallel"),
    ],
)
def test_what_cannot_go_together_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        ready(rf.dlrt_(network(), 8), **settings)


def test_fit_goes_on_and_a_gradient_that_is_not_finite_names_its_layer(tmp_path):
    x, y = data(256, torch.float32)
    recipe = rf.Recipe(epochs=3, batch_size=32, optimizer="adam", learning_rate=0.01)
    model = rf.dlrt_(network(dtype=torch.float32), 8)
    rf.fit(model, (x, y), (x, y), recipe, optimizer=functools.partial(rf.Dlrt, **FOUND), directory=tmp_path)
    layers = [layer for layer in model.modules() if isinstance(layer, DynamicLowRank)]
    assert all(layer.freed for layer in layers)

    model = rf.dlrt_(network(), 8)
    optimizer = ready(model)
    trained(model, optimizer, 6)
    before = copy.deepcopy(model.state_dict())
    optimizer.layers["4"].left.grad = torch.full_like(optimizer.layers["4"].left, float("nan"))
    with pytest.raises(NonFiniteError, match="4: its gradient is not finite"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
