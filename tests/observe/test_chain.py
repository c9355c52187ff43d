"""Where a network can be cut, and that what is run from there on is what the whole network does."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from networks import NETWORKS, network
from torch import nn

from rankfold import zoo
from rankfold.batches import evaluating, forward, tensors_in
from rankfold.observe import AnotherWay, Replay, find_chain
from rankfold.sites import opened, sites
from rankfold.zoo.networks.vit import ViT


def chain_of(model, batch, **how):
    found = [site.name for site in sites(model).reducible]
    return find_chain(model, batch, found, **how), frozenset(found)


def replayed(model, batch, other=None, **how):
    """What ``model`` gives for ``other`` (or the same) when it is run span after span."""
    with evaluating(model), opened(model):
        chain, names = chain_of(model, batch, **how)
        replay, state = Replay(chain, model, names), {}
        for span in chain.spans:
            state, output = replay.run(span, 0, batch if other is None else other, state)
        return chain, list(tensors_in(output))


def whole(model, batch):
    with evaluating(model), opened(model):
        return list(tensors_in(forward(model, batch)))


@pytest.mark.parametrize("name", NETWORKS)
def test_span_after_span_is_the_whole_network(name):
    model, batch = network(name)
    chain, given = replayed(model, batch)
    assert len(chain.spans) > 1
    for a, b in zip(given, whole(model, batch), strict=True):
        assert torch.equal(a, b)
    groups = [site for span in chain.spans for group in span.groups for site in group]
    called = {call.name for call in chain.calls if call.site}
    assert len(groups) == len(set(groups)) == len(called)


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_a_residual_network_is_cut_behind_every_block(name):
    model = zoo.model(name).eval()
    blocks = [n for n, m in model.named_modules() if type(m).__name__ == "BasicBlock"]
    x = torch.randn(2, 3, 32, 32)
    chain, given = replayed(model, x[:1], x)
    assert torch.equal(given[0], whole(model, x)[0])
    assert len(chain.spans) == len(blocks) + 2  # and the stem, and the head
    assert all(1 <= len(span.groups) <= 3 for span in chain.spans)


def test_a_vision_transformer_is_cut_behind_every_block():
    model, x = ViT(3, 4, 10, width=32).eval(), torch.randn(3, 3, 32, 32)
    chain, given = replayed(model, x[:1], x)
    assert torch.equal(given[0], whole(model, x)[0])
    assert [len(span.groups) for span in chain.spans] == [1, 4, 4, 4, 1]
    assert chain.spans[1].groups[0] == tuple(f"blocks.0.attention.{part}" for part in ("query", "key", "value"))
    assert all(len(span.end.state) == 1 for span in chain.spans[:-1])


class Calls(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(width, width) for _ in range(4))
        self.mix = nn.Linear(2 * width, width)


class Bridge(Calls):
    """Like a UNet: what the first layers give is needed again by the last ones."""

    def forward(self, x):
        first = self.a(x)
        second = self.b(first.relu())
        third = self.c(second.relu())
        return self.mix(torch.cat([self.d(third.relu()) + second, first], -1))


class Twice(Calls):
    def forward(self, x):
        return self.c(self.a(self.b(self.a(x))))


class Remembers(Calls):
    """What one layer has given comes back where no module gives it."""

    def forward(self, x):
        hidden = self.a(x)
        gate = hidden.sigmoid()
        return self.d(self.c(self.b(hidden) * gate) * gate)


class Depends(Calls):
    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(x)) if x.shape[0] > 2 else self.c(x)


class InPlace(Calls):
    def forward(self, x):
        x = self.a(x)
        x.relu_()
        x = self.b(x)
        return self.c(torch.relu_(x))


def test_what_passes_over_a_border_is_kept_only_where_a_network_is_long():
    model, x = Bridge().eval(), torch.randn(4, 6)
    chain, given = replayed(model, x)
    assert len(chain.spans) == 2  # behind the first layer nothing but its output is needed
    assert torch.equal(given[0], model(x))
    chain, given = replayed(model, x, many=1)
    assert [len(span.end.state) for span in chain.spans[:-1]] == [1, 2, 3, 3]
    assert torch.equal(given[0], model(x))


def test_there_is_no_cut_between_two_calls_of_a_site():
    chain, given = replayed(model := Twice().eval(), x := torch.randn(4, 6))
    assert [span.groups for span in chain.spans] == [(("a",), ("b",)), (("c",),)]
    assert torch.equal(given[0], model(x))


def test_there_is_no_cut_where_something_else_crosses_that_no_module_gives():
    chain, given = replayed(model := Remembers().eval(), x := torch.randn(4, 6), many=1)
    # behind a there is only its output; the gate is made of that, and crosses what comes then
    assert [span.groups for span in chain.spans] == [(("a",),), (("b",), ("c",), ("d",))]
    assert torch.equal(given[0], model(x))


def test_what_is_changed_in_place_afterwards_is_kept_as_it_was():
    chain, given = replayed(model := InPlace().eval(), x := torch.randn(4, 6))
    assert len(chain.spans) == 3
    assert torch.equal(given[0], model(x))


def test_a_batch_that_takes_another_way_is_refused():
    with pytest.raises(AnotherWay, match="c is called where b was called for the first samples"):
        replayed(Depends().eval(), torch.randn(4, 6), torch.randn(2, 6))


def test_modules_are_called_as_ever_afterwards():
    before = nn.Module.__call__
    with pytest.raises(AnotherWay):
        replayed(Depends().eval(), torch.randn(4, 6), torch.randn(2, 6))
    assert nn.Module.__call__ is before


class Waiting(nullcontext):
    """Looks at a pass, and never sees enough."""

    def waits(self, args, kwargs):
        return True


def test_for_what_looks_a_pass_goes_on_by_a_few_calls_alone():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(8))).eval()
    names = frozenset(f"{number}.0" for number in range(8))
    x, chain, calls = torch.randn(2, 3), find_chain(model, torch.randn(2, 3), names), []
    for number, layer in enumerate(model):
        layer.register_forward_hook(lambda module, given, output, number=number: calls.append(number))
    replay, (first, *_) = Replay(chain, model, names), chain.spans
    state, _ = replay.run(first, 0, x, {})
    assert calls == [0]
    again, _ = replay.run(first, 0, x, {}, Waiting())
    assert calls[1:] == [0, 1, 2, 3, 4]
    assert [torch.equal(state[key], again[key]) for key in state] == [True]
