"""Recurrent layers: taken apart they compute what torch's compute, and each matrix of theirs can be factored."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rankfold as rf
from rankfold import costs
from rankfold.batches.misfit import InputError
from rankfold.compress.statistics import calibrate
from rankfold.export import to_onnx, to_torch_export
from rankfold.layers import SplitCell, SplitRecurrent
from rankfold.observe import after
from rankfold.sites import Form, opened, sites
from rankfold.testing import check_site

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


class Net(nn.Module):
    """A recurrent layer, a cell that is called step by step, and a linear layer."""

    def __init__(self, kind: str = "lstm", **settings):
        super().__init__()
        settings = {"batch_first": True} | settings
        self.memory = KINDS[kind](6, 12, **settings)
        width = (settings.get("proj_size") or 12) * (1 + settings.get("bidirectional", False))
        self.cell, self.head = CELLS[kind](width, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.memory(x)[0], None
        for step in y.unbind(1 if self.memory.batch_first else 0):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def leaves(value) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]


def by_hand(layer: nn.LSTM, x: Tensor) -> Tensor:
    """One LSTM layer over (T, n), as its formula is printed: i, f, g, o, and the state of each step from the last."""
    h, c, outputs = torch.zeros(layer.hidden_size).to(x), torch.zeros(layer.hidden_size).to(x), []
    for step in x:
        gates = layer.weight_ih_l0 @ step + layer.bias_ih_l0 + layer.weight_hh_l0 @ h + layer.bias_hh_l0
        i, f, g, o = gates.split(layer.hidden_size)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs)


def test_one_layer_is_its_formula():
    model = nn.ModuleDict({"r": nn.LSTM(5, 7)}).double()
    x = torch.randn(6, 5, dtype=torch.float64)
    with opened(model), torch.no_grad():
        assert isinstance(model["r"], SplitRecurrent)
        torch.testing.assert_close(model["r"](x)[0], by_hand(_closed(model["r"]), x), rtol=1e-12, atol=1e-12)


def _closed(split: SplitRecurrent) -> nn.LSTM:
    made = nn.LSTM(split.input_size, split.hidden_size).double()
    for side in ("ih", "hh"):
        layer = split.get_submodule(f"{side}_l0")
        made.get_parameter(f"weight_{side}_l0").data, made.get_parameter(f"bias_{side}_l0").data = (
            layer.weight.data, layer.bias.data,
        )  # fmt: skip
    return made


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    layers=st.integers(1, 3),
    both=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    projected=st.booleans(),
    shape=st.sampled_from(["batch", "single", "packed", "packed and sorted"]),
    stated=st.booleans(),
    gradients=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_taken_apart_a_layer_computes_the_same(
    kind, layers, both, batch_first, bias, projected, shape, stated, gradients, seed
):
    torch.manual_seed(seed)
    more = {"proj_size": 3} if projected and kind == "lstm" else {}
    more |= {"nonlinearity": "relu"} if projected and kind == "rnn" else {}
    layer = KINDS[kind](5, 7, layers, bidirectional=both, batch_first=batch_first, bias=bias, **more)
    model = nn.ModuleDict({"r": layer}).double()
    lengths = torch.tensor([6, 4, 4, 1] if shape == "packed and sorted" else [4, 1, 6, 4])
    x = torch.randn((4, 6, 5) if batch_first else (6, 4, 5), dtype=torch.float64)
    widths = [more.get("proj_size", 7), 7][: 2 if kind == "lstm" else 1]
    state = tuple(torch.randn(layers * (1 + both), 4, width, dtype=torch.float64) for width in widths)
    if shape == "single":
        x, state = x[0] if batch_first else x[:, 0], tuple(part[:, 0] for part in state)
    elif shape != "batch":
        x = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=shape != "packed")
    given_ = (x, state if kind == "lstm" else state[0]) if stated else (x,)
    expected = layer(*given_)
    with opened(model), torch.set_grad_enabled(gradients):
        found = model["r"](*given_)
    assert model["r"] is layer
    if isinstance(x, PackedSequence):
        padded = [pad_packed_sequence(y[0], batch_first) for y in (expected, found)]
        expected, found = ((y, z[1]) for y, z in zip(padded, (expected, found), strict=True))
    torch.testing.assert_close(leaves(found), leaves(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("kind", [*CELLS, "relu"])
def test_taken_apart_a_cell_computes_the_same(kind, stated):
    cell = nn.RNNCell(5, 7, nonlinearity="relu") if kind == "relu" else CELLS[kind](5, 7, bias=not stated)
    model = nn.ModuleDict({"c": cell}).double()
    for x in (torch.randn(4, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)):
        state = torch.randn(*x.shape[:-1], 7, dtype=torch.float64)
        more = ((state, state.sin()) if kind == "lstm" else state,) if stated else ()
        expected = cell(x, *more)
        with opened(model):
            assert isinstance(model["c"], SplitCell)
            torch.testing.assert_close(leaves(model["c"](x, *more)), leaves(expected), rtol=1e-12, atol=1e-12)


def test_the_input_side_is_one_product_and_the_recurrent_side_one_for_each_step():
    model, x, calls = Net().eval(), torch.randn(3, 7, 6), Counter()
    with opened(model), torch.no_grad():
        names = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        with after(None, {m: lambda module, *_: calls.update([module]) for m in names.values()}):
            model(x)
        assert {name: calls[m] for name, m in names.items()} == {
            "memory.ih_l0": 1, "memory.hh_l0": 7, "cell.ih": 7, "cell.hh": 7, "head": 1,
        }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_sites_are_named_after_the_weights(kind):
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind]
    found = sites(nn.ModuleDict({"r": KINDS[kind](5, 7, 2, bidirectional=True), "c": CELLS[kind](5, 7)}))
    assert {site.name: site.shape for site in found if not site.name.startswith("r.ih_l1")} == {
        "r.ih_l0": (7 * gates, 5), "r.hh_l0": (7 * gates, 7), "r.ih_l0_reverse": (7 * gates, 5),
        "r.hh_l0_reverse": (7 * gates, 7), "r.hh_l1": (7 * gates, 7), "r.hh_l1_reverse": (7 * gates, 7),
        "c.ih": (7 * gates, 5), "c.hh": (7 * gates, 7),
    }  # fmt: skip
    assert found["r.ih_l1"].shape == found["r.ih_l1_reverse"].shape == (7 * gates, 14)
    assert not found.left_out


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_every_matrix_obeys_the_laws(kind):
    model = Net(kind, bidirectional=True).double().eval()
    for site in sites(model):
        check_site(site, model, torch.randn(3, 4, 6, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_reproduces_the_original(kind):
    more = {"proj_size": 5} if kind == "lstm" else {}
    model = Net(kind, num_layers=2, bidirectional=True, **more).double().eval()
    data = torch.randn(8, 5, 6, dtype=torch.float64)
    ranks = {site.name: min(site.shape) for site in sites(model)}
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks(ranks), "truncate", data))
    assert isinstance(small.memory, SplitRecurrent)
    assert isinstance(small.cell, SplitCell)
    assert all(not isinstance(small.get_submodule(name), nn.Linear) for name in ranks)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(small(data), model(data), rtol=1e-12, atol=1e-12)


def test_costs_are_those_of_every_step():
    model, data, steps = Net(num_layers=2).eval(), torch.randn(64, 9, 6), 9
    macs = 48 * (6 + 12 + 12 + 12) + 40 * (12 + 10)  # for one step
    assert costs.model_cost(model, data[:1]).flops == 2 * (steps * macs + 10 * 3)
    plan = rf.plan(model, rf.Ranks({"memory.ih_l1": 5, "memory.hh_l0": 3, "cell.hh": 2}), data=data)
    small = rf.apply_(copy.deepcopy(model), plan)
    assert costs.check(plan.after, small, data[:1]) == ""
    lost = 0
    for entry in plan.changed:
        (m, n), r = entry.shape, entry.rank
        lost += m * n - (r * (m + n) if entry.form is Form.FACTORED else r * (m + n - r))
    assert plan.after.flops == plan.before.flops - 2 * steps * lost
    assert plan.after.params == plan.before.params - lost == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_products(kind):
    """With gradients torch's kernel runs on the multiplied-out weights; a hook keeps the products."""
    model = Net(kind, num_layers=2, bidirectional=True, dropout=0.0).double()
    data = torch.randn(8, 5, 6, dtype=torch.float64)
    small = rf.apply_(model, rf.plan(model, "params=0.6", "truncate", data)).train()
    found, calls = [], Counter()
    for watched in (False, True):
        small.zero_grad()
        watching = after(small, {"memory.hh_l1": lambda *_: calls.update(["seen"])}) if watched else nullcontext()
        with watching:
            small(data).square().sum().backward()
        found.append([p.grad.clone() for p in small.parameters()])
    assert calls["seen"] == 5
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    assert all(bool(grad.any()) for grad in found[0])


def test_dropout_falls_where_it_falls_in_torch():
    model = nn.ModuleDict({"r": nn.LSTM(5, 7, 3, dropout=0.4)}).double().train()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    torch.manual_seed(3)
    expected = model["r"](x)[0]
    with opened(model), torch.no_grad():
        torch.manual_seed(3)
        torch.testing.assert_close(model["r"](x)[0], expected)


def test_parameters_stay_the_objects_that_they_are():
    model = Net().eval()
    before = dict(model.named_parameters())
    with opened(model):
        assert model.memory.hh_l0.weight is before["memory.weight_hh_l0"]
    small = rf.apply_(model, rf.plan(model, rf.Ranks({"memory.hh_l0": 3}), data=torch.randn(64, 5, 6)))
    assert small.memory.ih_l0.weight is before["memory.weight_ih_l0"]  # so that an optimizer goes on with it
    assert isinstance(small.cell, nn.LSTMCell)  # where nothing changes, torch's own stays


class Planted(nn.Module):
    """Weights of full rank, of whose inputs and states few directions matter."""

    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(20, 16, batch_first=True)
        with torch.no_grad():
            self.memory.weight_hh_l0.mul_(2)

    def forward(self, x):
        return self.memory(x)[0][:, -1]


def test_what_the_data_say_counts_and_not_the_weights():
    torch.manual_seed(0)
    model = Planted().double().eval()
    data = torch.randn(256, 6, 3, dtype=torch.float64) @ torch.randn(3, 20, dtype=torch.float64)
    asked = rf.Ranks({"memory.ih_l0": 3})
    with torch.no_grad():
        expected = model(data)
        error = {}
        for method in ("project", "truncate"):
            small = rf.apply_(copy.deepcopy(model), rf.plan(model, asked, method, data))
            error[method] = float((small(data) - expected).norm() / expected.norm())
    assert error["project"] < 1e-6
    assert error["truncate"] > 0.1


def test_samples_that_are_held_back_are_whole_sequences():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(4, 6, batch_first=True)).eval()
    data = torch.randn(512, 5, 4)
    parts = calibrate(model, [data], sites(model), metric_samples=0).sites["0.ih_l0"].parts
    fitted, held = (part.gram / part.count for part in parts)
    back = data[7::8].reshape(-1, 4).double()  # one sample in eight
    torch.testing.assert_close(held, back.mT @ back / len(back))
    others = data[[i for i in range(512) if i % 8 != 7]].reshape(-1, 4).double()
    torch.testing.assert_close(fitted, others.mT @ others / len(others))


def test_a_budget_is_met_saved_loaded_and_exported(tmp_path):
    torch.manual_seed(0)
    model, data = Net(num_layers=3, bidirectional=True).eval(), torch.randn(64, 5, 6)
    plan = rf.plan(model, "params=0.5", data=data)
    assert plan.after.params <= 0.5 * plan.before.params
    small = rf.apply_(copy.deepcopy(model), plan)
    rf.save(small, plan, tmp_path / "small")
    again = rf.load(tmp_path / "small", copy.deepcopy(model)).model
    with torch.no_grad():
        expected = small(data)
        assert torch.equal(again(data), expected)
    assert to_torch_export(small, data[:2], tmp_path / "small.pt2") < 1e-5
    assert to_onnx(small, data[:2], tmp_path / "small.onnx") < 1e-5


def test_padded_sequences_are_packed_and_their_own_steps_count():
    class Packing(Net):
        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.head(self.memory(packed)[1][0][0][:, :10])

    torch.manual_seed(0)
    model = Packing().eval()
    lengths = torch.randint(1, 6, (64,))
    data = [((torch.randn(64, 5, 6), lengths),)]
    plan = rf.plan(model, rf.Ranks({"memory.hh_l0": 4, "memory.ih_l0": 3}), data=data)
    small = rf.apply_(copy.deepcopy(model), plan)
    dense = copy.deepcopy(model)
    for side in ("ih", "hh"):
        product = small.memory.get_submodule(f"{side}_l0").weight.clone().detach()
        dense.memory.get_parameter(f"weight_{side}_l0").data = product
        dense.memory.get_parameter(f"bias_{side}_l0").data = small.memory.get_submodule(f"{side}_l0").bias.detach()
    with torch.no_grad():
        torch.testing.assert_close(small(*data[0][0]), dense(*data[0][0]), rtol=1e-4, atol=1e-5)


def test_other_layers_in_the_places_of_factors_are_called():
    """What torch's kernel cannot know, an adapter for instance, is never left out."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = Net().train()
    rf.apply_(model, rf.plan(model.eval(), rf.Ranks({"memory.hh_l0": 3}), data=torch.randn(64, 5, 6)))
    x = torch.randn(2, 5, 6)
    before = model(x)
    swapped = Doubled(12, 48)
    swapped.load_state_dict({"weight": model.memory.hh_l0.weight.clone() / 2, "bias": model.memory.hh_l0.bias / 2})
    model.memory.hh_l0 = swapped
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("wrong", ["no step", "width", "dimensions"])
def test_an_input_that_does_not_fit_is_named_with_what_is_taken(wrong):
    model = Net().eval()
    x = {"no step": torch.randn(3, 0, 6), "width": torch.randn(3, 4, 5), "dimensions": torch.randn(1, 3, 4, 6)}[wrong]
    takes = "sequences of at least one step" if wrong == "no step" else "6 values in the last axis"
    with pytest.raises(InputError, match=rf"memory \(\w+\) takes {takes}"):
        rf.profile(model, x)


def test_a_state_of_another_size_is_refused_and_not_spread_over_the_samples():
    model = nn.ModuleDict({"r": nn.GRU(5, 7), "c": nn.GRUCell(5, 7)})
    with opened(model):
        with pytest.raises(ValueError, match="takes a state of shape 1×3×7 here, and was given 1×1×7"):
            model["r"](torch.randn(4, 3, 5), torch.zeros(1, 1, 7))
        with pytest.raises(ValueError, match="takes a state of shape 3×7 here, and was given 1×7"):
            model["c"](torch.randn(3, 5), torch.zeros(1, 7))


def test_a_model_that_is_one_recurrent_layer_asks_for_a_wrapper():
    found = sites(nn.LSTM(5, 7))
    assert not len(found)
    assert "wrap it" in dict(found.left_out)["weight_hh_l0"]


def test_training_goes_on_with_factors():
    torch.manual_seed(0)
    model, data = Net().train(), torch.randn(64, 5, 6)
    target = data.mean((1, 2)).unsqueeze(1).expand(-1, 3)
    small = rf.apply_(model, rf.plan(model.eval(), "params=0.6", data=data)).train()
    optimizer, losses = torch.optim.Adam(small.parameters(), 0.01), []
    for _ in range(60):
        loss = (small(data) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
