"""A pass that goes on where an earlier one was cut gives what a whole one gives, and computes nothing twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from networks import NETWORKS, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankfold.batches import evaluating, forward, tensors_in
from rankfold.layers import LowRankConv1D, LowRankLinear, PivotedLinear
from rankfold.observe import AnotherWay, Replay, Tape, Taping, find_chain
from rankfold.observe.chain import Chain, Span
from rankfold.sites import opened, sites


class Ways(nn.Module):
    """What Python can do with tensors between four layers: in place, through views, by a number that was read."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        y = self.one(x)
        left, right = y.chunk(2, -1)  # views of one memory
        left.mul_(2)  # seen through y, too
        scale = float(y.abs().amax()) if bool((y > 0).any()) else 1.0
        z = self.two(y / scale)
        kept = z.T.cos()
        torch.add(z, right.repeat(1, 2), out=z)
        z[:, :2] = 0.5
        z.relu_()
        for row in self.three(z).sum(0).split(4):
            z = z + row.mean()
        right += 1  # and so the last half of y
        return self.four(z) + y + kept.T.cumsum(0)


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def gone_on(model, batch, chain, names, changed):
    """What ``model`` gives when before each of the sites ``names`` it is cut, all its spans being one; ``changed`` is
    called with each site's layer, behind the cut. How often each operation was carried out, cuts and all."""
    groups = tuple((name,) for name in names)
    whole = Chain(chain.calls, (Span(None, None, groups),))
    replay, tape, values, counted = Replay(whole, model, frozenset(names)), Tape(), (), Counted()
    for name in names:
        taping = Taping(tape, values, frozenset([name]))
        with counted:
            replay.run(whole.spans[0], 0, batch, {}, taping=taping)
        assert taping.taken is not None, name
        tape, values = taping.taken
        changed(model.get_submodule(name))
    with counted:
        _, output = replay.run(whole.spans[0], 0, batch, {}, taping=Taping(tape, values))
    return list(tensors_in(output)), counted.seen


def halve(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.5)


def test_whatever_python_does_between_the_layers():
    torch.manual_seed(0)
    model, x = Ways().eval(), torch.randn(5, 8)
    names = ["one", "two", "three", "four"]
    chain = find_chain(model, x, names)
    assert chain.steady
    given, _ = gone_on(model, x, chain, names, halve)
    with torch.no_grad():
        assert torch.equal(given[0], model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_gives_what_it_gives_at_once(name):
    model, batch = network(name)
    with evaluating(model), opened(model):
        names = [site.name for site in sites(model).reducible]
        chain = find_chain(model, batch, names)
        called = [call.name for call in chain.calls if call.site]
        few = list(dict.fromkeys(called))[:: max(1, len(called) // 6)]
        given, _ = gone_on(model, batch, chain, few, halve)
        for a, b in zip(given, tensors_in(forward(model, batch)), strict=True):
            assert torch.equal(a, b)


def test_nothing_before_the_cut_is_computed_again():
    model = nn.Sequential(*(part for _ in range(6) for part in (nn.Linear(8, 8), nn.Softplus()))).eval()
    names = [str(2 * i) for i in range(6)]
    x = torch.randn(3, 8)

    _, counted = gone_on(model, x, find_chain(model, x, names), names, lambda layer: None)
    # behind the cut at layer i lie 6 - i layers; the pass that makes it goes on from the cut before, to the end
    assert counted["softplus"] == sum(6 - max(i - 1, 0) for i in range(7))


def hidden(x):
    """As code in another language would compute it."""
    with torch._C.DisableTorchFunction():
        return x.tanh()


class Behind(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first, self.second, self.way = nn.Linear(4, 4), nn.Linear(4, 4), way

    def forward(self, x):
        return self.second(self.way(self.first(x)))


@pytest.mark.parametrize(
    ("way", "steady"),
    [(torch.tanh, True), (torch.ops.aten.tanh, True), (hidden, False)],
)
def test_what_is_not_seen_being_computed_is_told(way, steady):
    chain = find_chain(Behind(way).eval(), torch.randn(2, 4), ["first", "second"])
    assert chain.steady is steady


def test_another_way_is_refused():
    model, x = Behind(torch.tanh).eval(), torch.randn(2, 4)
    chain = find_chain(model, x, ["first", "second"])
    whole = Chain(chain.calls, (Span(None, None, (("second",),)),))
    replay, taping = Replay(whole, model, frozenset(["first", "second"])), Taping(sites=frozenset(["second"]))
    replay.run(whole.spans[0], 0, x, {}, taping=taping)
    model.way = torch.sigmoid
    with pytest.raises(AnotherWay, match="other functions"):
        replay.run(whole.spans[0], 0, x, {}, taping=Taping(*taping.taken))


@pytest.mark.parametrize("kind", [LowRankLinear, LowRankConv1D, PivotedLinear])
def test_a_weight_that_the_network_reads_is_made_by_no_function_of_its_own(kind):
    torch.manual_seed(0)
    model, x = Behind(torch.tanh).eval(), torch.randn(2, 4)
    model.way = lambda y: y.to(model.second.weight.dtype)  # as T5 does
    chain = find_chain(model, x, ["first", "second"])
    whole = Chain(chain.calls, (Span(None, None, (("second",),)),))
    replay, taping = Replay(whole, model, frozenset(["first", "second"])), Taping(sites=frozenset(["second"]))
    replay.run(whole.spans[0], 0, x, {}, taping=taping)
    model.second = kind(4, 2, 4, bias=False).eval()
    if kind is PivotedLinear:
        model.second.up.order.copy_(torch.arange(4))
    replay.look()
    _, output = replay.run(whole.spans[0], 0, x, {}, taping=Taping(*taping.taken))
    torch.testing.assert_close(output, model(x))
