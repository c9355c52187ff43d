"""Layers whose weight is read instead of called, adapters, odd settings: the plan says what the result costs."""

import copy
import warnings
import weakref
from collections import deque
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rankfold import costs
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.planner import plan
from rankfold.compress.ranks.budget import Ranks
from rankfold.costs import check, measure, model_cost
from rankfold.layers import FactoredWriteError, LowRankConv1D, LowRankLinear
from rankfold.sites import Form, opened, setting_of, sites

X = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))


class Reads(nn.Module):
    """``a`` and ``c`` are used by ``read``; ``b`` is called."""

    def __init__(self, read) -> None:
        super().__init__()
        self.a, self.b, self.c, self.read = nn.Linear(32, 32), nn.Linear(32, 32), nn.Conv2d(8, 16, 3, padding=1), read

    def forward(self, x):
        return self.read(self, self.b(x))


def as_map(x):
    return x.reshape(1, 8, 4, 5)


THIN = {  # site, rank, how
    "linear": ("a", lambda s, x: F.linear(x, s.a.weight, s.a.bias)),
    "@ T": ("a", lambda s, x: x @ s.a.weight.T + s.a.bias),
    "@": ("a", lambda s, x: x @ s.a.weight),
    "from the left": ("a", lambda s, x: s.a.weight @ x[0].T),
    "batch from the left": ("a", lambda s, x: s.a.weight @ x.mT),  # Mamba's steps of time
    "addmm": ("a", lambda s, x: torch.addmm(s.a.bias, x[0], s.a.weight.t())),
    "cast": ("a", lambda s, x: F.linear(x, s.a.weight.to(x.dtype))),
    "type": ("a", lambda s, x: F.linear(x, s.a.weight.type(torch.float32))),  # routers of experts
    "forward": ("a", lambda s, x: s.a.forward(x)),
    "called and read": ("a", lambda s, x: F.linear(s.a(x), s.a.weight)),
    "dtype": ("a", lambda s, x: s.a(x.to(s.a.weight.dtype).to(s.a.weight.device).type_as(s.a.weight))),
    "values decide": ("a", lambda s, x: F.linear(x, s.a.weight) if x.sum().item() < 1e9 else x),
    "conv": ("c", lambda s, x: F.conv2d(as_map(x), s.c.weight, s.c.bias, s.c.stride, s.c.padding)),
    "conv otherwise": ("c", lambda s, x: F.conv2d(as_map(x), weight=s.c.weight, stride=2, dilation=(1, 2))),
    "conv same": ("c", lambda s, x: F.conv2d(as_map(x), s.c.weight, padding="same")),
}
OTHERS = {
    "einsum": lambda s, x: torch.einsum("bti,oi->bto", x, s.a.weight),
    "norm": lambda s, x: s.a(x) / s.a.weight.norm(),
    "rows": lambda s, x: F.linear(x, s.a.weight[:16]),
    "gram": lambda s, x: x @ (s.a.weight @ s.a.weight.T),
    "embedding": lambda s, x: x + F.embedding(torch.zeros(5, dtype=torch.long, device=x.device), s.a.weight),
    "data": lambda s, x: F.linear(x, s.a.weight.data),
    "written": lambda s, x: (s.a.weight.data.clamp_(-1, 1), s.a(x))[1],
}


@pytest.mark.parametrize("read", THIN)
@pytest.mark.parametrize("form", ["factored", "spatial", "tucker", "cp"])
def test_a_weight_that_is_read_thin_costs_what_the_plan_says(read: str, form: str):
    name, run = THIN[read]
    model = Reads(run).eval()
    site = sites(model)[name]
    if Form(form) not in site.forms:
        return
    method = form if form in ("tucker", "cp") else "truncate"
    made = plan(model, Ranks({name: 2}), method, example=X)
    assert made.before == model_cost(model, X)
    small = apply_(copy.deepcopy(model), made)
    assert made[name].form is not Form.KEEP
    assert check(made.after, small, X) == ""
    assert made.after.flops < made.before.flops
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small(X)
    assert counter.get_total_flops() == made.after.flops
    with torch.no_grad():  # the same read, of the product
        dense = copy.deepcopy(small)
        whole = copy.deepcopy(getattr(model, name))
        whole.weight.copy_(getattr(small, name).weight)
        whole.bias.copy_(getattr(small, name).bias)
        setattr(dense, name, whole)
        torch.testing.assert_close(small(X), dense(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("read", OTHERS)
def test_a_weight_that_is_read_otherwise_is_kept_with_the_reason(read: str):
    model = Reads(OTHERS[read]).eval()
    made = plan(model, "params=0.8", "truncate", example=X)
    assert made["a"].form is Form.KEEP
    assert "outside of the layer's own call" in made["a"].note
    assert check(made.after, apply_(copy.deepcopy(model), made), X) == ""


class ReadsInside(nn.Module):
    """``read`` looks at attributes of the modules that hide their matrices."""

    def __init__(self, read) -> None:
        super().__init__()
        self.a = nn.MultiheadAttention(16, 2, batch_first=True)
        self.r = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.g, self.c = nn.RNN(32, 16, batch_first=True), nn.LSTMCell(16, 16)
        self.l, self.read = nn.Linear(16, 64), read

    def forward(self, x):
        x = self.read(self, x)
        x = self.g(self.r(self.a(x, x, x)[0])[0])[0]
        return self.l(x + self.c(x[:, -1])[0][:, None])


def _attention(s, x):
    y, a = x.transpose(0, 1), s.a
    given = (a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0, a.out_proj.weight, a.out_proj.bias)
    return F.multi_head_attention_forward(y, y, y, 16, 2, *given)[0].transpose(0, 1)


QKV = ("a.q_proj", "a.k_proj", "a.v_proj")
INSIDE = {  # what is read, the sites that are kept for it
    "weight_ih_l0": (lambda s, x: x.to(s.r.weight_ih_l0.dtype).to(s.r.weight_hh_l0_reverse.device), ()),
    "bias": (lambda s, x: x if s.r.bias and s.c.bias and s.g.bias_ih_l0 is not None else -x, ()),
    "all_weights": (lambda s, x: x * len(s.r.all_weights[0]), ()),
    "values of all_weights": (lambda s, x: x * sum(w.sum() for w in s.g.all_weights[0]), ("g.ih_l0", "g.hh_l0")),
    "a product with it": (lambda s, x: F.linear(x, s.g.weight_hh_l0), ()),
    "_flat_weights": (lambda s, x: x.to(s.r._flat_weights[0].dtype), ()),
    "nonlinearity": (lambda s, x: x if s.g.nonlinearity == "tanh" else -x, ()),
    "weight_hh": (lambda s, x: x[..., : s.c.weight_hh.shape[1] + 0 * len(s.c.bias_ih)], ()),
    "in_proj_weight": (lambda s, x: x.to(s.a.in_proj_weight.dtype)[..., : s.a.in_proj_weight.shape[1]], ()),
    "in_proj_bias": (lambda s, x: x.to(s.a.in_proj_bias.dtype), ()),
    "q_proj_weight": (
        lambda s, x: x.to((s.a.in_proj_weight if s.a._qkv_same_embed_dim else s.a.q_proj_weight).dtype),
        (),
    ),
    "a product with in_proj": (lambda s, x: F.linear(x, s.a.in_proj_weight, s.a.in_proj_bias)[..., :16], ()),
    "a part of in_proj": (lambda s, x: F.linear(x, s.a.in_proj_weight[:16]), QKV),
    "attention by itself": (_attention, (*QKV, "a.out_proj")),
}


@pytest.mark.parametrize("read", INSIDE)
def test_a_model_that_looks_into_its_recurrent_layers_and_attention_is_counted_and_planned(read: str):
    how, kept = INSIDE[read]
    torch.manual_seed(0)
    model, x = ReadsInside(how).eval(), torch.randn(2, 5, 16)
    expected = model(x)
    made = plan(model, "params=0.6", "truncate", example=x)
    assert {name for name in (*QKV, "a.out_proj", "g.ih_l0", "g.hh_l0") if made[name].note} == set(kept)
    assert all("outside of the layer's own call" in made[name].note for name in kept)
    small = apply_(copy.deepcopy(model), made)
    assert small(x).shape == expected.shape
    assert check(made.after, small, x) == ""
    with opened(model):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_what_is_joined_to_be_read_hands_gradients_on_and_refuses_to_be_written_to():
    whole, x = nn.ModuleList([nn.MultiheadAttention(16, 2)]), torch.randn(3, 16)
    F.linear(x, whole[0].in_proj_weight).square().sum().backward()
    wanted = whole[0].in_proj_weight.grad
    with opened(whole):
        attention = whole[0]
        assert attention.in_proj_weight.requires_grad
        (attention.in_proj_weight @ x.T).square().sum().backward()
        found = torch.cat([attention.get_submodule(name.removeprefix("a.")).weight.grad for name in QKV])
        torch.testing.assert_close(found, wanted)
        for joined in (attention.in_proj_weight, attention.in_proj_bias):
            with pytest.raises(FactoredWriteError):
                joined.data.clamp_(-1, 1)


WRITING = {  # what a hook of the layer's own does with its weight
    "data": lambda layer: layer.weight.data.clamp_(-0.3, 0.3),
    "in place": lambda layer: torch.no_grad()(layer.weight.div_)(2),
    "set": lambda layer: setattr(layer.weight, "data", layer.weight.data.renorm(2, 0, 1.0)),
    "row": lambda layer: layer.weight.detach().__setitem__(0, 0.0),
    "out": lambda layer: torch.no_grad()(torch.clamp)(layer.weight, -1, 1, out=layer.weight.data),
    "drawn": lambda layer: nn.init.normal_(layer.weight),
}


@pytest.mark.filterwarnings("ignore:Sequential writes into its own weights")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", WRITING)
def test_a_layer_whose_own_hook_writes_into_its_weight_is_kept(how: str, when: str):
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval()
    register = model[0].register_forward_pre_hook if when == "before" else model[0].register_forward_hook
    register(lambda layer, *_: (WRITING[how](layer), None)[1])
    made = plan(model, "params=0.8", "truncate", example=X)
    assert made["0"].form is Form.KEEP
    assert made["0"].note.startswith("its weight is written by ")
    if how in ("data", "set", "out"):  # where a second call writes what is there
        assert check(made.after, apply_(model, made), X) == ""


def test_hooks_that_widen_a_layer_or_only_look_at_it_are_no_writing():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval()
    model[0].register_forward_pre_hook(lambda layer, args: (layer.double(), (args[0].double(),))[1])
    model[0].register_forward_hook(lambda layer, args, output: (layer.float(), output.float())[1])
    model[1].register_forward_pre_hook(lambda layer, args: layer.weight.norm().clamp_(min=1) and None)
    assert all(not entry.note for entry in plan(model, "params=0.8", "truncate", example=X).entries)


HELD = {  # attribute, whether its layer can be replaced there
    "a list of bound methods": (lambda a: [a.forward], True),
    "a bound method": (lambda a: a.forward, True),
    "a partial": (lambda a: partial(a), True),
    "a partial of a method": (lambda a: {"run": partial(a.forward)}, True),
    "a deque": (lambda a: deque([a]), True),
    "an object": (lambda a: SimpleNamespace(run=a), True),
    "keys": (lambda a: {a: 1.0}, True),
    "tuples as keys": (lambda a: {(0, a): 1.0}, True),
    "a set": (lambda a: {a}, False),
    "weak keys": (lambda a: weakref.WeakKeyDictionary({a: 1.0}), False),
    "an object as key": (lambda a: {Frozen(a): 1.0}, False),
    "weights as keys": (lambda a: {a.weight: 1.0}, False),
    "a weak reference": (weakref.ref, False),
    "a closure": (lambda a: lambda x: a(x), False),
    "weights in a list": (lambda a: [a.weight, a.bias], False),
}


@dataclass(frozen=True, eq=False)
class Frozen:
    run: nn.Module


class Held(nn.Module):
    def __init__(self, hold) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(20, 25), nn.Linear(25, 20)
        self.held = hold(self.a)

    def forward(self, x):
        held = self.held() if isinstance(self.held, weakref.ref) else getattr(self.held, "run", self.held)
        if isinstance(held, weakref.WeakKeyDictionary) or (isinstance(held, dict) and 1.0 in held.values()):
            (held,) = held
            held = held[1] if isinstance(held, tuple) else getattr(held, "run", held)
            held = partial(F.linear, weight=held, bias=self.a.bias) if isinstance(held, nn.Parameter) else held
        if not callable(held):
            held = tuple(held.values() if isinstance(held, dict) else held)
            return self.b(torch.relu(held[0](x) if len(held) == 1 else F.linear(x, *held)))
        return self.b(torch.relu(held(x)))


@pytest.mark.parametrize("how", HELD)
def test_a_layer_that_the_model_holds_by_other_means_is_replaced_there_or_kept_by_name(how: str):
    torch.manual_seed(0)
    hold, exchanged = HELD[how]
    model, x = Held(hold).eval(), torch.randn(64, 20)
    made = plan(model, "flops=0.6", data=x)
    entry = made.entries[0]
    if not exchanged:
        assert entry.form is Form.KEEP
        assert entry.note == "held holds it for itself, and would go on with the dense layer"
    small = apply_(model, made)
    assert not check(made.after, small, x[:1])
    assert (type(small.a) is nn.Linear) is not exchanged


class Scaled(nn.Module):
    """Two layers, each with a factor that is looked up by the layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(20, 20), nn.Linear(20, 20)
        self.scale = {"first": 3.0, self.a: 1.0, (self.b, 0): 2.0, "last": 4.0}
        self.seen = self.scale

    def forward(self, x):
        return self.b(self.a(x) * self.scale[self.a]) * self.scale[(self.b, 0)]


def test_a_layer_by_which_something_is_looked_up_is_exchanged_there_in_its_place():
    torch.manual_seed(0)
    model, x = Scaled().eval(), torch.randn(64, 20)
    held = model.scale
    made = plan(model, "params=0.6", data=x)
    small = apply_(model, made)
    assert small.scale is small.seen is held
    assert list(held.items()) == [("first", 3.0), (small.a, 1.0), ((small.b, 0), 2.0), ("last", 4.0)]
    assert type(small.a) is not nn.Linear or type(small.b) is not nn.Linear
    assert small(x).isfinite().all()


def test_the_check_names_every_number_that_differs():
    model = nn.Sequential(nn.Linear(8, 4))
    said = model_cost(model, torch.randn(1, 8))
    assert check(said, model, torch.randn(1, 8)) == ""
    told = check(costs.Cost(said.params + 1, said.flops, said.bytes * 2), model, torch.randn(1, 8))
    assert (
        told
        == "the compressed model takes 36 parameters instead of the planned 37 and 144 bytes instead of the planned 288"
    )


def test_a_second_compression_of_what_is_read_costs_what_it_says():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = LowRankLinear(32, 20, 32)

        def forward(self, x):
            return F.linear(x, self.layer.weight, self.layer.bias)

    model = Reader()
    made = plan(model, Ranks({"layer.down": 4}), "truncate", example=X)
    assert check(made.after, apply_(copy.deepcopy(model), made), X) == ""
    assert made.after.flops < made.before.flops


def test_hugging_face_conv1d_shows_its_weight_as_it_was_stored():
    from transformers.pytorch_utils import Conv1D

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Conv1D(24, 32)

        def forward(self, x):
            return x @ self.layer.weight + self.layer.bias[: self.layer.nf]

    model = Reader()
    made = plan(model, Ranks({"layer": 5}), "truncate", example=X)
    small = apply_(copy.deepcopy(model), made)
    assert isinstance(small.layer, LowRankConv1D)
    assert small.layer.weight.shape == model.layer.weight.shape == (32, 24)
    assert check(made.after, small, X) == ""
    torch.testing.assert_close(small(X), small.layer(X))


# ---- what torch's counter does not see -------------------------------------------------------------------------------


class Real(nn.Module):
    """A module, in a model that needs values where ``real``."""

    def __init__(self, inner: nn.Module, real: bool) -> None:
        super().__init__()
        self.inner, self.real = inner, real

    def forward(self, *args):
        if self.real:
            args[0].sum().item()
        return self.inner(*args)


class Attend(nn.Module):
    def forward(self, query, key):
        return F.scaled_dot_product_attention(query, key, key, enable_gqa=query.shape[1] != key.shape[1])


SEEN = {
    "lstm": (nn.LSTM(10, 20), [(7, 1, 10)], 2 * 7 * 80 * 30),
    "lstm both ways": (nn.LSTM(10, 20, bidirectional=True), [(7, 1, 10)], 2 * 2 * 7 * 80 * 30),
    "lstm of two": (nn.LSTM(10, 20, num_layers=2), [(7, 1, 10)], 2 * 7 * 80 * 30 + 2 * 7 * 80 * 40),
    "gru": (nn.GRU(10, 20), [(7, 1, 10)], 2 * 7 * 60 * 30),
    "bilinear": (nn.Bilinear(3, 4, 5), [(1, 3), (1, 4)], 2 * 5 * 4 * (3 + 1)),
    "attention": (Attend(), [(1, 4, 6, 8), (1, 4, 9, 8)], 2 * 4 * 6 * 9 * 16),
    "grouped queries": (Attend(), [(1, 4, 6, 8), (1, 2, 9, 8)], 2 * 4 * 6 * 9 * 16),
    "bias for keys": (
        nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True), [(1, 5, 8)] * 3,
        4 * 2 * 5 * 64 + 4 * 5 * 6 * 8,
    ),
}  # fmt: skip


def _thin(size: int) -> torch.Tensor:
    matrix = torch.zeros(size, size)
    matrix[0, 1] = matrix[2, 3] = matrix[3, 3] = 1.0
    return matrix


class Does(nn.Module):
    def __init__(self, what) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(4, 4), what

    def forward(self, x):
        self.what(x[0])
        return x


PRODUCTS = {  # of x (4, 4)
    "addmm_": (lambda x: x.clone().addmm_(x, x), 2 * 64),
    "baddbmm_": (lambda x: x.expand(3, 4, 4).clone().baddbmm_(x.expand(3, 4, 4), x.expand(3, 4, 4)), 3 * 2 * 64),
    "addmv_": (lambda x: x[0].clone().addmv_(x, x[0]), 2 * 16),
    "addbmm": (lambda x: torch.addbmm(x, x.expand(3, 4, 4), x.expand(3, 4, 4)), 3 * 2 * 64),
    "addbmm_": (lambda x: x.clone().addbmm_(x.expand(3, 4, 4), x.expand(3, 4, 4)), 3 * 2 * 64),
    "addr": (lambda x: torch.addr(x, x[0], x[0]), 2 * 16),
    "addr_": (lambda x: x.clone().addr_(x[0], x[0]), 2 * 16),
    "conv_tbc": (lambda x: torch.conv_tbc(x.repeat(7, 1, 1), x.repeat(3, 1, 1), x[0]), 2 * 5 * 4 * 4 * 3 * 4),
    "csr": (lambda x: _thin(4).to_sparse_csr() @ x, 2 * 3 * 4),
    "coo": (lambda x: _thin(4).to_sparse() @ x, 2 * 3 * 4),
    "csr from the right": (lambda x: x @ _thin(4).to_sparse_csr(), 2 * 3 * 4),
    "csr and a vector": (lambda x: _thin(4).to_sparse_csr() @ x[0], 2 * 3),
}
UNCOUNTED = {
    "two sparse matrices": lambda x: _thin(4).to_sparse() @ _thin(4).to_sparse(),
    "sparse.mm": lambda x: torch.sparse.mm(_thin(4).to_sparse(), x),
    "sampled": lambda x: torch.sparse.sampled_addmm(_thin(4).to_sparse_csr(), x, x),
    "pdist": torch.pdist,
    "nested": lambda x: F.linear(torch.nested.nested_tensor([x, x[:2]]), x),
}


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_of_torch_is_counted(name: str):
    what, expected = PRODUCTS[name]
    assert model_cost(Does(what), torch.ones(1, 4, 4)).flops == expected


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", UNCOUNTED)
def test_a_product_that_cannot_be_counted_is_named(name: str):
    with pytest.warns(costs.UncountedWarning, match="no formula is known"):
        assert model_cost(Does(UNCOUNTED[name]), torch.ones(1, 4, 4)).flops == 0


class Jagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)

    def forward(self, x):
        rows = torch.nested.nested_tensor([x[0, :3], x[0, :4]], layout=torch.jagged)
        return self.c(torch.nested.to_padded_tensor(self.b(self.a(rows).relu()), 0.0))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_inside_of_a_model_are_counted_and_what_they_enter_is_kept():
    model, x = Jagged().eval(), torch.randn(1, 5, 16)
    assert model_cost(model, x).flops == 2 * (7 * 2 * 16 * 32 + 8 * 16 * 16)
    made = plan(model, "params=0.9", "truncate", example=x)
    assert {entry.site for entry in made.entries if "nested tensors" in entry.note} == {"a", "b"}
    assert made["c"].form is not Form.KEEP
    assert check(made.after, apply_(model, made), x) == ""


@pytest.mark.parametrize("real", [False, True], ids=["by shapes", "for real"])
@pytest.mark.parametrize("name", SEEN)
def test_what_torch_counts_as_nothing_is_counted(name: str, real: bool):
    inner, shapes, expected = SEEN[name]
    inputs = tuple(torch.randn(shape) for shape in shapes)
    example = costs.Example(inputs, {}, 1)
    assert model_cost(Real(inner, real), example).flops == expected


def test_attention_by_a_kernel_of_the_models_own_choice_is_counted():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    class Own(Attend):
        def forward(self, query, key):
            query.sum().item()
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return super().forward(query, key)

    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 4, 9, 8)
    assert model_cost(Own(), (q, k)).flops == 2 * 4 * 6 * 9 * 16
    with FlopCounterMode(display=False) as counter:
        Own()(q, k)
    assert counter.get_total_flops() == 0  # which is why


def test_packed_sequences_count_their_own_length():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(10, 20, batch_first=True)

        def forward(self, x, lengths):
            return self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1][
                0
            ]

    assert model_cost(Packed(), (torch.randn(2, 7, 10), torch.tensor([7, 3]))).flops == 2 * 10 * 80 * 30 // 2


def test_a_view_of_a_parameter_may_enter_a_module():
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.layer = nn.Parameter(torch.randn(1, 3, 16)), nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(self.query.expand(len(x), -1, -1)) + x[:, :3]

    assert model_cost(Pool(), torch.randn(2, 5, 16)).flops == 2 * 3 * 16 * 16


@torch.library.custom_op("rankfold_tests::product", mutates_args=())
def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@product.register_fake
def _(a, b):
    return a.new_empty(a.shape[0], b.shape[1])


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return product(torch.linalg.inv(self.layer(x)), x)


class Cosine(Foreign):
    def forward(self, x):
        return F.normalize(self.layer(x), dim=-1)


def test_what_nobody_can_count_is_named():
    with pytest.warns(costs.UncountedWarning, match=r"linalg_inv.*rankfold_tests.product.*count 0"):
        found = model_cost(Foreign(), torch.randn(8, 8))
    assert found.flops == 2 * 8 * 8
    assert measure(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Softmax(-1)), X[..., :8]).unknown == ()
    assert measure(Cosine(), X[..., :8]).unknown == ()  # norms, as sums
    made = plan(Foreign(), Ranks({"layer": 2}), "truncate", example=torch.randn(8, 8))
    assert any("rankfold_tests.product" in note for note in made.notes)


# ---- adapters --------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_adapters_on_factors_merge():
    import peft

    torch.manual_seed(0)
    model = Two().eval()
    small = apply_(model, plan(model, Ranks({"a": 12, "b": 12}), "truncate", example=X))
    config = peft.LoraConfig(r=4, target_modules=r".*\.(up|down)", init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(small), config).eval()
    before = adapted(X).detach()
    assert not torch.allclose(before, small(X), rtol=0.1)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(X), before, rtol=1e-5, atol=1e-5)
    assert isinstance(merged.a, LowRankLinear)


def test_layers_inside_adapters_are_kept_until_they_are_merged():
    import peft

    torch.manual_seed(0)
    adapted = peft.get_peft_model(Two(), peft.LoraConfig(r=4, target_modules=["a"], init_lora_weights=False)).eval()
    inside = [site for site in sites(adapted) if ".a." in site.name]
    assert [site.name.removeprefix("base_model.model.a.") for site in inside] == [
        "base_layer", "lora_A.default", "lora_B.default"
    ]  # fmt: skip
    assert all(site.forms == {Form.KEEP} and "merge first" in site.note for site in inside)
    with pytest.raises(ValueError, match=r"base_model\.model\.a\.base_layer.*merge_and_unload"):
        plan(adapted, Ranks({"base_model.model.a.base_layer": 12}), "truncate", example=X)
    small = apply_(copy.deepcopy(adapted), plan(adapted, "params=0.8", "truncate", example=X))
    before = small(X).detach()
    torch.testing.assert_close(small.merge_and_unload()(X), before, rtol=1e-5, atol=1e-5)


def test_a_layer_that_an_adapter_keeps_two_copies_of_is_kept():
    """Merging throws one of them away; the other one would no longer be what the adapter saves."""
    import peft

    config = peft.LoraConfig(r=4, target_modules=["a"], modules_to_save=["b"])
    adapted = peft.get_peft_model(Two(), config).eval()
    copies = [site for site in sites(adapted) if ".b." in site.name]
    assert [site.name.rpartition("b.")[2] for site in copies] == ["original_module", "modules_to_save.default"]
    assert all(site.forms == {Form.KEEP} and "merge first" in site.note for site in copies)


# ---- settings of convolutions ----------------------------------------------------------------------------------------

GIVEN = [
    {"padding": [1]}, {"padding": (2,)}, {"stride": [2]}, {"dilation": (2,)}, {"stride": [2], "padding": [1]},
    {"padding": "same", "dilation": [2]},
    {"padding": 1, "stride": (1, 2)}, {"padding": "valid", "stride": [3]},
    {"padding": "same", "padding_mode": "replicate"}, {"padding": (1, 2), "padding_mode": "reflect"},
]  # fmt: skip


@pytest.mark.parametrize("given", GIVEN, ids=str)
@pytest.mark.parametrize("method", ["truncate", "project", "tucker", "cp", "sequential"])
def test_settings_given_in_any_way_are_those_of_the_layer(given: dict, method: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, **given)).double().eval()
    x = torch.randn(16, 6, 9, 10, dtype=torch.float64)
    rank = 8 if method != "cp" else 3
    made = plan(model, Ranks({"0": rank}), method, x, example=x[:1])
    small = apply_(copy.deepcopy(model), made)
    with torch.no_grad():
        assert small(x).shape == model(x).shape
        if method in ("truncate", "project", "sequential"):
            torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
        else:  # whatever the error, it is the function of its weight
            whole = copy.deepcopy(model)
            whole[0].weight.copy_(small[0].weight)
            whole[0].bias.copy_(small[0].bias)
            torch.testing.assert_close(small(x), whole(x), rtol=1e-8, atol=1e-9)
    assert made.after == model_cost(small, x[:1])


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_padding_is_what_the_layer_pads(given: dict):
    """Read as ``F.pad`` takes it, before a convolution without padding, it gives what the layer gives."""
    layer = nn.Conv2d(2, 3, 3, **given).double()
    x = torch.randn(2, 2, 9, 10, dtype=torch.float64)
    setting = setting_of(layer)
    mode = "constant" if setting.padding_mode == "zeros" else setting.padding_mode
    padded = F.pad(x, setting.pads, mode=mode)
    found = F.conv2d(padded, layer.weight, layer.bias, setting.stride, 0, setting.dilation)
    torch.testing.assert_close(found, layer(x))


@st.composite
def settings_of_a_convolution(draw) -> tuple[dict, int]:
    """Every way in which torch takes a setting: a number, one for each axis, a sequence of one number, a word."""
    dims = draw(st.sampled_from([1, 2, 3]))

    def given_as(value: int):
        return draw(st.sampled_from([value, (value,) * dims, [value] * dims, [value], (value,)]))

    given = {"dilation": given_as(draw(st.sampled_from([1, 2])))}
    word = draw(st.sampled_from([None, None, "same", "valid"]))
    given["padding"] = word or given_as(draw(st.integers(0, 2)))
    if word != "same":
        given["stride"] = given_as(draw(st.sampled_from([1, 2, 3])))
    mode = draw(st.sampled_from(["zeros", "zeros", "replicate", "circular", "reflect"]))
    if word is not None or isinstance(given["padding"], int):  # of a sequence torch pads some axes alone; see above
        given["padding_mode"] = mode
    return given, dims


@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn=settings_of_a_convolution(), groups=st.sampled_from([1, 2]), bias=st.booleans())
def test_full_rank_is_the_layer_whatever_its_setting(drawn, groups, bias):
    given, dims = drawn
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(kind(4, 6, 3, groups=groups, bias=bias, **given)).double().eval()
    x = torch.randn(3, 4, *(9, 8, 7)[:dims], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch, about even kernels with padding "same"
        expected = model(x)
        for method in ("truncate", "project"):
            data = None if method == "truncate" else x
            made = plan(model, Ranks({"0": min(sites(model)["0"].shape)}), method, data, example=x[:1])
            small = apply_(copy.deepcopy(model), made)
            torch.testing.assert_close(small(x), expected, rtol=1e-8, atol=1e-9)
            assert made.after == model_cost(small, x[:1])
