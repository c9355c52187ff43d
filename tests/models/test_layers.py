"""Factored layers, for every layer kind: the laws of ``rankfold.testing.check_site``, full rank, single samples."""

import copy
import dataclasses

import pytest
import torch
from cases import CASES, DTYPES, PLAIN, Case
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import rankfold as rf
from rankfold.forms.geometry import ChannelFolding, Plain
from rankfold.layers import LowRankConv, LowRankLinear, SplitAttention
from rankfold.sites import Call, Factors, Form, Site, opened, sites
from rankfold.sites.kinds.convolution import ConvLayer
from rankfold.sites.kinds.linear import LinearLayer
from rankfold.testing import check_site


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_form_of_every_layer_kind_computes_what_its_factors_say(case: Case, dtype: torch.dtype):
    model = case.model(dtype)
    found = sites(model)
    assert tuple(site.name for site in found) == case.names
    for site in found:
        check_site(site, model, case.inputs(dtype))


def exact_factors(site: Site, form: Form, weight: torch.Tensor) -> Factors:
    """Factors at full rank straight from torch, without any method."""
    if form is Form.TUCKER:
        unfolded = (weight.flatten(1), weight.transpose(0, 1).flatten(1))
        up, down = (torch.linalg.svd(matrix, full_matrices=False).U for matrix in unfolded)
        return Factors((down.T, torch.einsum("op,oc...,cq->pq...", up, weight, down), up))
    matrix = site.layer.geometry(form).matrix(weight)
    if form is Form.DENSE:
        return Factors((matrix,))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return Factors((vh, u * s.unsqueeze(-2)))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_full_rank_is_the_dense_layer(case: Case):
    model, x = case.model(), case.inputs()
    dense = model(x)
    for site in sites(model):
        below = {Form.PIVOTED} if site.max_rank(Form.PIVOTED) < min(site.shape) else set()
        for form in site.forms - {Form.KEEP, Form.CP} - below:
            with opened(model):
                old = model.get_submodule(site.name)
                new = site.layer.skeleton(old, form, site.max_rank(form), site.layer.has_bias)
                site.layer.write_(new, form, exact_factors(site, form, site.weight(model)))
                if site.layer.has_bias:
                    new.bias.data.copy_(old.bias)
                parent, _, child = site.name.rpartition(".")
                setattr(model.get_submodule(parent), child, new)
                torch.testing.assert_close(model(x), dense, rtol=1e-9, atol=1e-11)
                if new.weight.dim() > 2:
                    torch.testing.assert_close(new.weight, old.weight, rtol=1e-9, atol=1e-11)
                setattr(model.get_submodule(parent), child, old)


@pytest.mark.parametrize("case", PLAIN, ids=repr)
def test_a_single_sample_without_batch_axis(case: Case):
    model, x = case.model(), case.inputs()
    site = sites(model)[0]
    for form in site.forms - {Form.KEEP}:
        new = site.layer.skeleton(model[0], form, 2, site.layer.has_bias)
        new.load_state_dict({key: torch.randn_like(value) for key, value in new.named_parameters()}, strict=False)
        alone = new(x[0])
        torch.testing.assert_close(alone, new(x)[0], rtol=1e-9, atol=1e-11)
        with FlopCounterMode(display=False) as counter:
            new.to("meta")(x[0].to("meta"))
        call = Call(tuple(x[0].shape), tuple(alone.shape))
        assert site.layer.flops(form, 2, [call]) == counter.get_total_flops()


@pytest.mark.parametrize("case", PLAIN, ids=repr)
def test_factored_layers_show_bias_and_setting(case: Case):
    model = case.model()
    site = sites(model)[0]
    for form in site.forms - {Form.KEEP, Form.DENSE}:
        new = site.layer.skeleton(model[0], form, 2, bias=False)
        assert new.bias is None
        new = site.layer.skeleton(model[0], form, 2, bias=True)
        assert new.bias.shape == (site.shape[0] * site.groups,)
        with pytest.raises(AttributeError):
            new.weight = torch.zeros(1)


# ---- the laws reject wrong implementations ----------------------------------------------------------------------


class SwappedFactors(LinearLayer):
    def write_(self, layer, form, factors):
        if form is Form.FACTORED:
            right, left = factors.parts
            factors = Factors((right.flip(0), left))
        super().write_(layer, form, factors)


class ForgetsBiasInCount(LinearLayer):
    def params(self, form, rank, bias):
        return super().params(form, rank, bias=False)


class CountsDenseFlops(LinearLayer):
    def flops(self, form, rank, calls):
        return super().flops(Form.KEEP, rank, calls)


class SharedPut(Plain):
    def put(self, weight, matrix):
        return matrix


class TransposedPut(Plain):
    def put(self, weight, matrix):
        return matrix.T.reshape(weight.shape).clone()


class PutsTheParameterItself(LinearLayer):
    def geometry(self, form):
        return SharedPut()


class PutsTransposed(LinearLayer):
    def geometry(self, form):
        return TransposedPut()


class WrongWeight(LowRankLinear):
    @property
    def weight(self):
        return (self.up.weight @ self.down.weight) * 1.001


class NoGradient(LowRankLinear):
    def forward(self, x):
        return self.up(self.down(x).detach())


class ExtraState(LowRankLinear):
    def forward(self, x):
        return self.up(self.down(x)) + getattr(self, "drift", 0.0)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drift = torch.randn(())


def rebuilt(kind):
    class Rebuilt(LinearLayer):
        def skeleton(self, like, form, rank, bias):
            good = super().skeleton(like, form, rank, bias)
            if form is not Form.FACTORED:
                return good
            return kind(good.in_features, rank, good.out_features, bias, device=like.weight.device, dtype=torch.float64)

    return Rebuilt


class HalfPrecision(LinearLayer):
    def skeleton(self, like, form, rank, bias):
        return super().skeleton(like, form, rank, bias).float().double().to(torch.float32)


WRONG_LINEAR = {
    "swapped factors": (SwappedFactors, "not the product"),
    "bias not counted": (ForgetsBiasInCount, "parameters counted"),
    "dense flops": (CountsDenseFlops, "FLOPs counted"),
    "put shares memory": (PutsTheParameterItself, "the parameter itself"),
    "put transposes": (PutsTransposed, "is not w"),
    "weight of something else": (rebuilt(WrongWeight), "not the product"),
    "gradient cut": (rebuilt(NoGradient), "no gradient"),
    "state outside the state dict": (rebuilt(ExtraState), "not that of|does not restore"),
    "another dtype": (HalfPrecision, "another dtype"),
}


@pytest.mark.parametrize(("layer", "message"), WRONG_LINEAR.values(), ids=WRONG_LINEAR)
def test_wrong_linear_layers_are_rejected(layer, message):
    case = next(c for c in CASES if c.name == "linear-square-no-bias")
    model = case.model()
    site = sites(model)[0]
    check_site(site, model, case.inputs())
    wrong = layer(site.layer.kind, site.layer.shape, site.layer.has_bias)
    with pytest.raises(AssertionError, match=message):
        check_site(dataclasses.replace(site, layer=wrong), model, case.inputs())


class FoldsKernelFirst(ChannelFolding):
    """Reads the kernel with the window before the channels: its own inverse, and no convolution's matrix."""

    def matrix(self, weight):
        return super().matrix(weight.flip(2).contiguous())

    def put(self, weight, matrix):
        return super().put(weight, matrix).flip(2).contiguous()


class WrongFolding(ConvLayer):
    def geometry(self, form):
        return FoldsKernelFirst(self.groups, self.transposed)


class LosesStride(ConvLayer):
    def skeleton(self, like, form, rank, bias):
        if form is not Form.FACTORED:
            return super().skeleton(like, form, rank, bias)
        down = nn.Conv2d(
            self.setting.channels_in, rank, self.kernel, padding=like.padding, bias=False, dtype=like.weight.dtype
        )
        return LowRankConv(
            {"down": down, "up": nn.Conv2d(rank, self.setting.channels_out, 1, bias=bias, dtype=down.weight.dtype)}
        )


class PadsOtherwise(ConvLayer):
    """The right shapes, and other values at the border."""

    def skeleton(self, like, form, rank, bias):
        new = super().skeleton(like, form, rank, bias)
        if form is Form.FACTORED:
            new.down.padding_mode = "circular"
            new.down._reversed_padding_repeated_twice = [1, 1, 0, 0]
        return new


@pytest.mark.parametrize(
    ("layer", "name", "message"),
    [
        (WrongFolding, "conv2d", "not the product|not that of"),
        (LosesStride, "conv2d-no-bias-stride", r"output \(|FLOPs"),
        (PadsOtherwise, "conv2d", "not that of|output"),
    ],
)
def test_wrong_convolutions_are_rejected(layer, name, message):
    case = next(c for c in CASES if c.name == name)
    model = case.model()
    site = sites(model)[0]
    wrong = layer(**{f.name: getattr(site.layer, f.name) for f in dataclasses.fields(site.layer)})
    with pytest.raises(AssertionError, match=message):
        check_site(dataclasses.replace(site, layer=wrong), model, case.inputs())


def test_a_site_that_the_example_never_reaches_is_rejected():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = Skips()
    check_site(sites(model)["used"], model.double(), torch.randn(3, 4, dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"unused.*never called"):
        check_site(sites(model)["unused"], model, torch.randn(3, 4, dtype=torch.float64))


# ---- attention taken apart ----------------------------------------------------------------------------------------


def masks(kind: str, targets: int, sources: int, batch: int, heads: int, generator: torch.Generator):
    if kind == "none":
        return None
    if kind == "bool":
        mask = torch.rand(targets, sources, generator=generator) < 0.3
        mask[:, 0] = False
        return mask
    if kind == "float":
        return torch.randn(targets, sources, generator=generator, dtype=torch.float64)
    return torch.randn(batch * heads, targets, sources, generator=generator, dtype=torch.float64)


@given(
    seed=st.integers(0, 2**31),
    batch_first=st.booleans(),
    bias=st.booleans(),
    narrow=st.booleans(),
    batched=st.booleans(),
    attn_mask=st.sampled_from(["none", "bool", "float", "per head"]),
    padding=st.sampled_from(["none", "bool", "float"]),
    need_weights=st.booleans(),
    average=st.booleans(),
)
def test_split_attention_is_multihead_attention(
    seed, batch_first, bias, narrow, batched, attn_mask, padding, need_weights, average
):
    generator = torch.Generator().manual_seed(seed)
    batch, targets, sources, heads = 3 if batched else 1, 4, 5, 2
    attention = nn.MultiheadAttention(
        8, heads, bias=bias, batch_first=batch_first, kdim=6 if narrow else 8, vdim=4 if narrow else 8
    ).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    model = nn.ModuleDict({"attention": attention})

    def draw(length, width):
        shape = (batch, length, width) if batch_first else (length, batch, width)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x if batched else x.squeeze(0 if batch_first else 1)

    q, k, v = draw(targets, 8), draw(sources, attention.kdim), draw(sources, attention.vdim)
    pad = None
    if padding != "none":
        pad = torch.zeros(batch, sources, dtype=torch.bool)
        pad[:, -1] = True
        pad = pad if batched else pad[0]
        pad = pad if padding == "bool" else torch.zeros(pad.shape, dtype=torch.float64).masked_fill(pad, -torch.inf)
    mask = masks(attn_mask, targets, sources, batch, heads, generator)
    if mask is not None and pad is not None and mask.dtype != pad.dtype:
        return  # torch warns that it will not support such a mixture
    arguments = {
        "key_padding_mask": pad,
        "need_weights": need_weights,
        "attn_mask": mask,
        "average_attn_weights": average,
    }
    expected, expected_weights = attention(q, k, v, **arguments)
    with opened(model):
        assert isinstance(model["attention"], SplitAttention)
        found, found_weights = model["attention"](q, k, v, **arguments)
        assert (model["attention"].kdim, model["attention"].vdim) == (attention.kdim, attention.vdim)
    assert model["attention"] is attention
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert (found_weights is None) == (expected_weights is None)
    if found_weights is not None:
        torch.testing.assert_close(found_weights, expected_weights, rtol=1e-9, atol=1e-11)


def test_split_attention_is_causal_as_torch_is():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    model = nn.ModuleDict({"attention": attention})
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    for need_weights in (True, False):
        expected = attention(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)[0]
        with opened(model):
            found = model["attention"](x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)[0]
            with pytest.raises(ValueError, match="is_causal"):
                model["attention"](x, x, x, is_causal=True)
        torch.testing.assert_close(found, expected)


def test_split_attention_drops_out_as_torch_does():
    attention = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True).double().train()
    model = nn.ModuleDict({"attention": attention})
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.manual_seed(3)
    expected = attention(x, x, x)[0]
    with opened(model):
        torch.manual_seed(3)
        found = model["attention"](x, x, x)[0]
        assert not torch.equal(found, model["attention"](x, x, x)[0])
        model.eval()
        assert torch.equal(model["attention"](x, x, x)[0], model["attention"](x, x, x)[0])
        model.train()
    torch.testing.assert_close(found, expected)


class Padded(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16) if norm else None)

    def forward(self, x, padding):
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_padded_places_behind_an_encoder_are_what_torch_gives_there(norm, kind):
    torch.manual_seed(0)
    model, x = Padded(norm).eval(), torch.randn(3, 6, 16)
    if norm:
        nn.init.normal_(model.encoder.norm.bias)
    places = torch.arange(6) >= torch.tensor([[6], [4], [3]])
    mask = places if kind is torch.bool else torch.zeros(3, 6).masked_fill(places, float("-inf"))
    scattered = torch.arange(6) < torch.tensor([[0], [2], [3]])  # of which torch makes no nested tensors
    ranks = rf.Ranks({"encoder.layers.0.linear1": 15, "encoder.layers.1.self_attn.q_proj": 15})
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, ranks, "truncate", example=(x, mask)))
    with torch.no_grad():
        expected = model(x, mask)
        assert (expected[places] == (model.encoder.norm.bias if norm else 0)).all()
        for network in (small, copy.deepcopy(small)):
            assert torch.equal(network(x, mask)[places], expected[places])
            assert not torch.equal(network(x, scattered)[scattered], torch.zeros_like(x)[scattered])
    assert not torch.equal(small(x, mask)[places], expected[places])  # where gradients are wanted


def test_split_attention_shares_parameters_and_puts_everything_back():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    attention, before = model.self_attn, dict(model.named_parameters())
    fast = torch.backends.mha.get_fastpath_enabled()

    def interrupted():
        with opened(model):
            assert not torch.backends.mha.get_fastpath_enabled()
            with torch.no_grad():
                model.self_attn.q_proj.weight.fill_(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert model.self_attn is attention
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(p is before[name] for name, p in model.named_parameters())
    assert bool((attention.in_proj_weight[:8] == 7).all())
    assert not bool((attention.in_proj_weight[8:] == 7).any())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("layer", [
    nn.LSTM(8, 8), nn.GRUCell(8, 8), nn.MultiheadAttention(8, 2), nn.TransformerEncoderLayer(8, 2, 8),
], ids=lambda layer: type(layer).__name__)  # fmt: skip
def test_what_is_taken_apart_is_not_compiled_by_torchscript_and_says_so(layer):
    torch.jit.script(layer)
    with (
        opened(nn.Sequential(layer)) as model,
        pytest.raises(NotImplementedError, match="cannot compile a Split") as told,
    ):
        torch.jit.script(model)
    assert "use torch.jit.trace(model, example), or compress without the layer (--exclude PATTERN" in str(told.value)


def test_weight_of_a_factored_layer_is_differentiable(generator):
    layer = LowRankLinear(5, 2, 4, dtype=torch.float64)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    by_weight = torch.autograd.grad(nn.functional.linear(x, layer.weight, layer.bias).sum(), list(layer.parameters()))
    by_call = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    for a, b in zip(by_weight, by_call, strict=True):
        torch.testing.assert_close(a, b)


def test_the_full_rank_oracle_rejects_the_wrong_side():
    """``exact_factors`` with left and right exchanged is not the layer: the comparison above can fail."""
    layer = nn.Linear(6, 6, dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(layer.weight.detach())
    wrong = functional_call(layer, {"weight": vh.T @ torch.diag(s) @ u.T}, (x,))
    assert not torch.allclose(wrong, layer(x))
