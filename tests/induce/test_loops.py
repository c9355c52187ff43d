"""Loops that nobody here wrote: the optimizers around torch's are taken by scalers, clips, copies and odd groups."""

import copy
import functools
import itertools
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import rankfold as rf
from rankfold.induce.ways import WAYS as ALL_WAYS
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


# --- the layers that stand in the place of others


class Reading(nn.Module):
    """Its forward reads settings of its layers, and one has hooks of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 20, 3, stride=2, padding=1), nn.Linear(20 * 16, 24)
        self.fc.times = 3.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).unflatten(1, (self.conv.out_channels, -1)).flatten(1)
        assert (self.conv.in_channels, self.conv.kernel_size, self.conv.stride) == (3, (3, 3), (2, 2))
        return self.fc(x.reshape(-1, self.fc.in_features)).reshape(-1, self.fc.out_features)


PREPARED = {
    "dlrt": rf.dlrt_,
    "tucker": functools.partial(rf.dlrt_, convolutions="tucker"),
    **{name: way_named(name).prepare_ for name in ALL_WAYS},
}


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", PREPARED)
def test_layers_have_the_settings_and_the_hooks_of_those_they_stand_for(name, keep):
    torch.manual_seed(0)
    model, seen, x = Reading(), [], torch.randn(2, 3, 8, 8)
    model.fc.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    early = model.fc.register_forward_hook(lambda module, args, output: output * 100)
    model.fc.register_full_backward_hook(lambda *_: seen.append("backward"))
    PREPARED[name](model)
    assert model.fc.times == 3.0
    late = model.fc.register_forward_hook(lambda module, args, kwargs, output: seen.append("late"), with_kwargs=True)
    for stage in (lambda: model, lambda: copy.deepcopy(model), lambda: rf.fold_(model, keep=keep)):
        network = stage().eval()
        seen.clear()
        output = network(x)
        output.sum().backward()
        assert seen == ["late", "backward"]
        flat = F.conv2d(x, network.conv.weight, network.conv.bias, 2, 1).flatten(1) + 1
        expected = 100 * F.linear(flat, network.fc.weight, network.fc.bias)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    early.remove(), late.remove()
    assert not model.fc._forward_hooks
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = model.fc.nothing


def test_an_optimizer_does_not_take_what_another_way_has_prepared():
    named = {"dlrt": (rf.dlrt_, rf.Dlrt)} | {
        name: (way_named(name).prepare_, way_named(name).optimizer) for name in ALL_WAYS
    }
    for (one, (prepare_, _)), (other, (_, optimizer)) in itertools.permutations(named.items(), 2):
        caller = "dlrt_" if one == "dlrt" else f"{ALL_WAYS[one].__name__}.prepare_"
        with pytest.raises(ValueError, match=rf"^0: {caller} has prepared this layer, and .*fold") as raised:
            optimizer(prepare_(network()), torch.optim.SGD, lr=0.1)
        assert ("dlrt_" if other == "dlrt" else ALL_WAYS[other].__name__) in str(raised.value)


@pytest.fixture
def alone():
    """One process that thinks it is several."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", [name for name in WAYS if name != "debora"])  # whose parameters stay
def test_a_part_that_is_prepared_says_what_a_wrapper_around_more_waits_for(name, alone):
    """Whose parameters others take the place of: the next forward pass ended in torch's words."""
    part = network()
    whole = nn.Sequential(part, nn.Linear(4, 4))
    optimizer = prepared(name, torch.optim.SGD, part)[1]
    wrapped = nn.parallel.DistributedDataParallel(whole)
    wrapped(data()[0]).sum().backward()
    with pytest.raises(ValueError, match=r"^0.*: DistributedDataParallel waits .* prepare the whole model before"):
        optimizer.step()
    whole = nn.Sequential(network(), nn.Linear(4, 4))
    if name == "geolora":  # which freezes all else: nothing else is waited for
        rf.geolora_(whole, 3)
        optimizer = rf.GeoLora(whole, torch.optim.SGD, lr=0.1, window=3)
    else:
        optimizer = prepared(name, torch.optim.SGD, whole)[1]
    assert trained(nn.parallel.DistributedDataParallel(whole), optimizer, 7) < 10
