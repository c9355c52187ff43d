"""Loops that nobody here wrote: the optimizers around torch's are taken by scalers, clips, copies and odd groups."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankfold as rf
from rankfold.induce.ways import way_named
from rankfold.layers import DynamicLowRank


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 4))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 20, generator=generator), torch.randint(0, 4, (64,), generator=generator)


WAYS = ("dlrt", "geolora", "debora", "frobenius", "maestro", "pufferfish")


def prepared(name: str, kind=torch.optim.AdamW, model: nn.Module | None = None, groups=None, **settings):
    """``groups``: made of the model once it is prepared."""
    model = model or network()
    drawn, settings = torch.Generator().manual_seed(0), {"lr": 1e-2} | settings
    if name == "dlrt":
        rf.dlrt_(model, 6)
        make = functools.partial(rf.Dlrt, window=3)
    elif name == "geolora":
        rf.geolora_(model, 3, generator=drawn)
        make = functools.partial(rf.GeoLora, window=3)
    elif name == "debora":
        rf.debora_(model, 3, 4.0, generator=drawn)
        make = rf.Debora
    else:
        way = way_named(name, every=3)
        way.prepare_(model)
        make = way.optimizer
    return model, make(model, kind, groups=groups and groups(model), **settings)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", WAYS)
def test_hooks_run_and_a_copy_with_its_model_trains_on_as_the_original(name):
    model, optimizer = prepared(name)
    torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)  # which counts steps by a step of its own
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: seen.append("state"))
    trained(model, optimizer, 2)
    optimizer.state_dict()
    assert seen == ["before", "after"] * 2 + ["state"]
    copies = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    expected = trained(model, optimizer, 7)
    assert [trained(*pair, 7) for pair in copies] == [expected] * 2
    assert len(seen) == 5 + 14


CASES = {
    "window": (network, {"window": 3}),
    "parallel": (network, {"integrator": "parallel"}),
    "tucker": (
        lambda: nn.Sequential(nn.Unflatten(1, (5, 4)), nn.Conv1d(5, 18, 3), nn.Flatten(), nn.Linear(36, 4)),
        {"integrator": "parallel"},
    ),
    "debora": (network, {}),
}


@pytest.mark.parametrize("clip", ["none", "own", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_a_gradient_scaler_and_clipping_change_nothing_but_the_scale(name, clip):
    """Those of the bases, and of gains, are seen by neither, or by both."""
    make, settings = CASES[name]
    x, y = data()

    def run(scale: float) -> list[float]:
        torch.manual_seed(0)
        model = make().double()
        if name == "debora":
            optimizer = prepared(name, torch.optim.SGD, model, lr=0.1)[1]
        else:
            rf.dlrt_(model, 4, where="*", convolutions="tucker")
            optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1, tolerance=0.0, **settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        losses = []
        for _ in range(7):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.double()), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            if clip == "torch" or (clip == "own" and name == "debora"):
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            elif clip == "own":
                optimizer.clip_grad_norm_(0.05)
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss.detach()))
        return losses

    assert run(2.0**12) == pytest.approx(run(1.0), rel=1e-9)


GROUPS = {
    "generators": lambda m: [{"params": (p for p in m[0].parameters())}, {"params": m[2:].parameters(), "lr": 2e-2}],
    "tensors": lambda m: [{"params": parameter} for parameter in m.parameters()],
    "names": lambda m: m.named_parameters(),
    "groups of names": lambda m: [{"params": list(m.named_parameters())}],
}


@pytest.mark.parametrize("given", GROUPS)
@pytest.mark.parametrize("name", WAYS)
def test_groups_may_be_whatever_torch_takes(name, given):
    def run(groups) -> list[torch.Tensor]:
        model, optimizer = prepared(name, torch.optim.SGD, groups=groups, lr=2e-2, weight_decay=0.1)
        trained(model, optimizer, 4)
        return [p.detach() for p in model.parameters()]

    def same_rates(model):  # of the generators' groups the second has the rate that all others have
        groups = GROUPS[given](model)
        return [{**group, "lr": 2e-2} for group in groups] if given != "names" else groups

    plain = run(lambda model: [p for p in model.parameters() if p.requires_grad])
    for found, expected in zip(run(same_rates), plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_all_parameters_are_one_group_or_two_where_the_way_has_its_own_decay():
    for name, count in (("maestro", 1), ("frobenius", 2)):
        assert len(prepared(name)[1].param_groups) == count


@pytest.mark.parametrize("name", ["dlrt", "debora", "maestro"])
def test_an_optimizer_that_asks_for_the_loss_itself_is_refused(name):
    with pytest.raises(ValueError, match="LBFGS evaluates the loss as often as it likes within a step"):
        prepared(name, torch.optim.LBFGS, lr=1.0)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("dlrt", torch.optim.RMSprop, {"centered": True, "alpha": 0.5, "lr": 1e-4}),
        ("dlrt", torch.optim.Adafactor, {}),
        ("maestro", torch.optim.Adafactor, {}),
        ("pufferfish", torch.optim.RMSprop, {"momentum": 0.9, "lr": 1e-4}),
    ],
)
def test_moments_of_every_kind_go_along_when_ranks_change(name, kind, settings):
    """Squares that are below the square of their mean, and means over rows, would end training."""
    model, optimizer = prepared(name, kind, **settings)
    trained(model, optimizer, 40)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_layer_that_is_frozen_or_not_reached_keeps_its_weight():
    model = rf.dlrt_(network(), 8)
    optimizer = rf.Dlrt(model, torch.optim.AdamW, lr=1e-2, weight_decay=1.0, window=3, tolerance=0.4,
                        condition=rf.Condition(3.0))  # fmt: skip
    trained(model, optimizer, 3)  # it has moments then
    model[2].requires_grad_(False)
    frozen, moving = model[2].weight.detach() + 0, model[0].weight.detach() + 0
    trained(model, optimizer, 7)
    assert torch.equal(model[2].weight.detach() + 0, frozen)
    assert not torch.allclose(model[0].weight.detach() + 0, moving)

    branches = rf.dlrt_(nn.ModuleList([nn.Linear(20, 24), nn.Linear(20, 24)]), 4)
    optimizer = rf.Dlrt(branches, torch.optim.AdamW, lr=1e-2, weight_decay=1.0, window=20)
    x, _ = data()
    for taken in ((0, 1), (0,), (0,)):
        before = branches[1].weight.detach() + 0
        optimizer.zero_grad()
        sum(branches[index](x).square().mean() for index in taken).backward()
        optimizer.step()
    assert torch.equal(branches[1].weight.detach() + 0, before)


def test_layers_frozen_before_the_optimizer_take_part_in_the_budget_alone():
    model = rf.dlrt_(network(), 8)
    dense = sum(parameter.numel() for parameter in network().parameters())
    model[0].requires_grad_(False)
    before = model[0].weight.detach() + 0
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1, window=2, budget=0.5, reach=2)
    trained(model, optimizer, 8)
    assert optimizer.met
    assert torch.equal(model[0].weight.detach() + 0, before)
    assert isinstance(model[0], DynamicLowRank)
    small = rf.fold_(model, keep=True)
    assert sum(parameter.numel() for parameter in small.parameters()) <= 0.5 * dense
