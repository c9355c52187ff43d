"""A budget that cannot be met names the parts of the network that are in the way, with their share."""

import re
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.compress.planning import profiling
from rankfold.sites import Names


class Memory(nn.LSTM):
    """One with a forward of its own, so that nobody knows how it reads its weights."""

    def forward(self, x):
        return super().forward(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.memory, self.head = (
            nn.Embedding(10, 16),
            Memory(16, 64, 2, batch_first=True),
            nn.Linear(64, 4),
        )

    def forward(self, ids):
        return self.head(self.memory(self.words(ids))[0][:, -1])


TOKENS = torch.arange(64 * 7).reshape(64, 7) % 10


def refused(model: nn.Module, budget, data, **more) -> str:
    with pytest.raises(rf.BudgetError) as caught:
        rf.plan(model.eval(), budget, data=data, **more)
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("rule", ["optimal", "local", "global"])
@pytest.mark.parametrize("kind", ["params", "bytes"])
def test_an_lstm_is_named_with_its_share(kind, rule):
    model = Recurrent()
    share = sum(p.numel() for p in model.memory.parameters()) / sum(p.numel() for p in model.parameters())
    said = refused(model, f"{kind}=0.2", TOKENS, rule=rule)
    unit = {"params": "parameters"}.get(kind, kind)
    assert (
        f"{100 * share:.3g} % of the {unit} are in a Memory (memory): overrides the forward of a recurrent layer"
        in said
    )
    (smallest,) = re.findall(rf"{kind}=(\S+) is the smallest", said)
    reached = rf.plan(model, f"{kind}={smallest}", data=TOKENS, rule=rule)
    assert getattr(reached.after, kind) <= float(smallest) * getattr(reached.before, kind)


def test_operations_that_no_layer_owns_are_named_by_the_module_around_them_and_why():
    outside = "of the FLOPs are outside of the layers that can be factored, such as"
    assert f"{outside} memory (Memory: overrides the forward of a recurrent layer" in refused(
        Recurrent(), "flops=0.1", TOKENS
    )
    assert f"{outside} mixed (parameter: used by Mixing in code of its own" in refused(
        Mixing(), "flops=0.1", torch.randn(32, 16)
    )


class Mixing(nn.Module):
    """A matrix of its own, beside a layer."""

    def __init__(self):
        super().__init__()
        self.mixed, self.head = nn.Parameter(torch.randn(16, 16)), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(x @ self.mixed)


@pytest.mark.parametrize("kind", ["params", "bytes"])
def test_a_parameter_of_the_model_itself_is_named(kind):
    said = refused(Mixing(), f"{kind}=0.5", torch.randn(32, 16))
    assert "are in a parameter of the model itself (mixed): used by Mixing in code of its own" in said
    alone = refused(nn.GRU(16, 8, batch_first=True), f"{kind}=0.5", torch.randn(8, 3, 16))
    assert "are in 4 parameters of the model itself (weight_ih_l0, …): the model is this one layer" in alone


@pytest.mark.parametrize("kind", ["params", "bytes"])
@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="torch without fbgemm")
def test_quantised_layers_are_named_with_their_share(kind):
    model = nn.Sequential(nn.GRU(16, 32, batch_first=True), Last(), nn.Linear(32, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that this way of its own is old
        model = torch.ao.quantization.quantize_dynamic(model, {nn.GRU})
        fast = torch.ao.quantization.quantize_dynamic(layers(16, 64, 4), {nn.Linear})
    gates = 3 * 32 * (16 + 32) + 6 * 32
    share = gates / (gates + 33 * 4)
    said = refused(model, f"{kind}=0.2", torch.randn(8, 5, 16))
    assert "are in a GRU (0): quantized: compress first, quantize afterwards" in said
    assert kind == "bytes" or said.partition(" are in ")[0].endswith(f"{100 * share:.3g} % of the parameters")
    said = refused(fast, "flops=0.2", torch.randn(8, 16))
    assert "outside of the layers that can be factored, such as 0 (Linear: quantized: compress first" in said


class Last(nn.Module):
    def forward(self, found):
        return found[0][:, -1]


def layers(*sizes: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def test_layers_that_nobody_selected_are_named_and_may_be_let_in():
    said = refused(layers(16, 64, 32, 4), "params=0.3", torch.randn(128, 16), where=Names(exclude=("0", "1")))
    assert "are in 2 × Linear (1, …): not selected" in said
    assert said.endswith("or let more layers be factored")


def test_a_tied_weight_is_named():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50, bias=False))
    model[2].weight = model[0].weight
    ids = torch.arange(64).reshape(16, 4) % 50
    for where in (None, "0", "2", "1"):
        said = refused(model, "params=0.2", ids, where=where)
        assert said.count("74.6 % of the parameters") == 1, said
    assert "(0): tied to" in refused(model, "params=0.2", ids)


def test_where_nothing_is_in_the_way_the_smallest_ranks_are():
    model, data = layers(16, 64, 32, 4), torch.randn(128, 16)
    said = refused(model, "params=0.01", data)
    assert "the layers that can be factored take" in said
    assert "even at the smallest ranks that are allowed" in said
    assert "more layers" not in said
    with_energy = refused(model, ["params=0.3", "energy=0.99999"], data)
    assert "Linear (0, …)" in with_energy


@pytest.mark.parametrize("kind", ["params", "bytes", "flops"])
def test_given_ranks_are_in_the_way_and_so_are_layers_without_one(kind):
    torch.manual_seed(0)
    model, data = layers(24, 24, 24, 24), torch.randn(64, 24)
    said = refused(model, [rf.Ranks({"0": 3}), f"{kind}=0.4"], data, method="truncate")
    assert "66.7 % of the " in said
    assert " are in 2 × Linear (1, …): kept, as no rank was given; " in said
    assert re.search(r"; (9\.33|8\.33) % of the \w+ are in a Linear \(0\): its rank was given; ", said)
    assert "outside" not in said
    assert "smaller rank" not in said
    (advice,) = re.findall(rf"{kind}=0\.\d+", said)
    reached = rf.plan(model, [rf.Ranks({"0": 3}), advice], "truncate", data)
    assert getattr(reached.after, kind) <= float(advice.split("=")[1]) * getattr(reached.before, kind)


@pytest.mark.parametrize("method", ["project", "truncate", "tucker", "sequential"])
@pytest.mark.parametrize("budget", ["params=0.01", "flops=0.005", "bytes=0.01", ["params=0.01", "flops=0.9"]])
def test_it_is_refused_before_anything_is_measured_with_advice_that_holds(method, budget, monkeypatch):
    """What layers cost at their smallest is known from shapes, the biases that a method may add among it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 32, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 16, 40, bias=False), nn.ReLU(), nn.Linear(40, 4),
    ).eval()  # fmt: skip
    data, measured = torch.randn(64, 3, 8, 8), []
    monkeypatch.setattr(profiling, "_measured", _counting(profiling._measured, measured))
    said = refused(model, budget, data, method=method)
    assert not measured
    (advice,) = re.findall(r"(\w+=0\.\d+) is the smallest", said)
    kind, share = advice.split("=")
    reached = rf.plan(model, advice, method, data)
    assert getattr(reached.after, kind) <= float(share) * getattr(reached.before, kind)
    assert len(measured) == 1


def _counting(function, calls: list):
    def counted(*args, **more):
        calls.append(function)
        return function(*args, **more)

    return counted


def test_energy_and_size_together_are_refused_after_decomposing(monkeypatch):
    """How much energy small ranks keep is not known before, and advice without it would lead to the next error."""
    torch.manual_seed(0)
    model, measured = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)).eval(), []
    monkeypatch.setattr(profiling, "_measured", _counting(profiling._measured, measured))
    refused(model, ["energy=0.999", "params=0.3"], torch.randn(64, 32))
    assert len(measured) == 1
