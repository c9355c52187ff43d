"""What ``sites`` finds, what it leaves out, and that it says why."""

import copy

import pytest
import torch
from networks import HUGGING_FACE, NETWORKS, network
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import rankfold as rf
from rankfold.sites import Form, Names, fingerprint, opened, replace_, sites, unwrap


def reasons(model: nn.Module) -> dict[str, str]:
    return dict(sites(model).left_out)


def every_name(model: nn.Module) -> dict[str, Tensor]:
    with opened(model):
        return dict(model.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_covered_or_left_out_with_a_reason(name):
    model, _ = network(name)
    found = sites(model)
    names = every_name(model)
    covered = {p for site in found for path in (site.name, *site.aliases) for p in (f"{path}.weight", f"{path}.bias")}
    left = [parameter for parameter, _ in found.left_out]
    assert len(left) == len(set(left))
    assert not covered & set(left)
    assert all(why for _, why in found.left_out)
    accounted = {id(names[p]) for p in covered | set(left) if p in names}
    assert accounted == {id(p) for p in names.values()}
    assert set(left) <= names.keys()
    if name == "conv_net":
        assert {site.kind for site in found} == {"Conv2d", "Linear"}
    if name in HUGGING_FACE:
        assert len(found.reducible) > 5


def test_sites_changes_nothing_and_works_without_values():
    model, _ = network("encoder")
    before = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    found = sites(model)
    assert dict(model.named_modules()) == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    assert sites(copy.deepcopy(model).to("meta")) == found


def test_several_patterns_in_a_list_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"where=\['0', '2'\] is neither a pattern nor .* as rankfold.sites.Names"):
        sites(nn.Sequential(nn.Linear(4, 4)), ["0", "2"])


def test_where_narrows_by_glob_or_predicate():
    model, _ = network("conv_net")
    assert [s.name for s in sites(model, "block.*")] == ["block.0", "block.3"]
    assert [s.name for s in sites(model, lambda name, module: isinstance(module, nn.Linear))] == ["head"]
    assert dict(sites(model, "head").left_out)["stem.weight"] == "not selected"
    with pytest.raises(KeyError, match=r"no site named 'nothing'.*stem"):
        sites(model)["nothing"]
    with pytest.raises(KeyError, match=r"'stem' is no site: not selected"):
        sites(model, "head")["stem"]


# ---- sharing -------------------------------------------------------------------------------------------------------


def test_a_shared_module_is_one_site_with_aliases():
    layer = nn.Linear(8, 8)
    model = nn.ModuleDict({"first": layer, "second": layer, "inside": nn.Sequential(layer)})
    found = sites(model)
    assert [site.name for site in found] == ["first"]
    assert found["first"].aliases == ("second", "inside.0")
    assert found["second"] is found["first"]
    assert Form.FACTORED in found["first"].forms
    new = nn.Linear(8, 8)
    replace_(model, {layer: new})
    assert model["first"] is model["second"] is model["inside"][0] is new


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)))


class Listed(nn.Module):
    """Its forward goes through plain lists, as ``MaskFormer`` of transformers does, beside the registered layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)]
        for index, layer in enumerate(self.layers):
            self.add_module(str(index), layer)
        self.pairs = ((self.layers[0], 1.0), {"last": [self.layers[2]]})
        self.__dict__["hidden"] = self.layers[2]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x + self.pairs[0][0](x) + self.pairs[1]["last"][0](x) + self.hidden(x)


def test_a_layer_is_replaced_in_plain_lists_too():
    model = Listed().eval()
    x, same = torch.randn(3, 6), copy.deepcopy(model)
    for name in ("0", "2"):
        new = nn.Linear(6, 6)
        replace_(model, {model.get_submodule(name): new})
        same.get_submodule(name).load_state_dict(new.state_dict())
    assert torch.equal(model(x), same(x))
    assert model.layers[0] is model.get_submodule("0")


def test_tied_embedding_and_head_are_kept():
    found = sites(TiedLanguageModel())
    assert found["head"].forms == found["embed"].forms == {Form.KEEP}
    assert found["head"].tied_to == ("embed.weight",)
    assert found["embed"].tied_to == ("head.weight",)
    assert "tied to embed.weight" in found["head"].note
    assert [site.name for site in found.reducible] == ["body"]
    assert found.left_out == ()


def test_a_weight_tied_to_a_bare_parameter_is_kept():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.prototypes = self.layer.weight

    found = sites(Model())
    assert found["layer"].tied_to == ("prototypes",)
    assert found["layer"].forms == {Form.KEEP}


class TwoAttentions(nn.Module):
    """What ``how`` names of the second is that of the first; ``layer``: of another layer beside them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))
        self.layer, self.wide, self.wider = nn.Linear(16, 16), nn.Linear(16, 48), nn.Linear(48, 64)
        if "in" in how:
            self.b.in_proj_weight = self.a.in_proj_weight
        if "out" in how:
            self.b.out_proj.weight = self.a.out_proj.weight
        if "layer" in how:
            self.layer.weight = self.a.out_proj.weight
        if "whole" in how:
            self.wide.weight = self.a.in_proj_weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.b(self.a(x, x, x)[0], x, x)[0])
        return self.wider(self.wide(x))


IN = ("a.q_proj", "a.k_proj", "a.v_proj", "b.q_proj", "b.k_proj", "b.v_proj")


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ("in", IN),
        ("out", ("a.out_proj", "b.out_proj")),
        ("in, out", (*IN, "a.out_proj", "b.out_proj")),
        ("layer", ("a.out_proj", "layer")),
        ("whole", ("wide",)),
    ],
)
def test_weights_that_attention_shares_are_tied_and_the_plan_says_what_becomes_of_it(how, kept, tmp_path):
    torch.manual_seed(0)
    model, x = TwoAttentions(how).eval(), torch.randn(2, 5, 16)
    found = sites(model)
    assert {site.name for site in found if site.tied_to} == set(kept)
    assert all(found[name].forms == {Form.KEEP} and found[name].note.startswith("tied to ") for name in kept)
    if how == "whole":
        assert dict(found.left_out)["a.in_proj_weight"].startswith("its in_proj is tied to a layer")
    plan = rf.plan(model, "params=0.8", "truncate", example=x)
    small = rf.apply_(copy.deepcopy(model), plan)
    assert sum(p.numel() for p in small.parameters()) == plan.after.params
    rf.save(small, plan, tmp_path / "small")
    again = rf.load(tmp_path / "small", copy.deepcopy(model)).model
    assert torch.equal(again(x), small(x))
    assert sum(p.numel() for p in again.parameters()) == plan.after.params
    assert len(sites(rf.untie_(model)).reducible) == 11


def test_a_bias_shared_by_two_layers_is_covered_once():
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.bias = a.bias
    found = sites(nn.Sequential(a, b))
    assert [site.name for site in found] == ["0", "1"]
    assert found.left_out == ()


# ---- wrappers ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_wrappers_are_looked_through():
    model, _ = network("conv_net")
    expected = sites(model)
    wrapped = nn.DataParallel(model)
    assert unwrap(wrapped) is model
    assert sites(wrapped) == expected
    compiled = torch.compile(model)
    assert unwrap(compiled) is model
    assert sites(compiled) == expected
    assert sites(torch.compile(nn.DataParallel(model))) == expected
    distributed = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(distributed)
    distributed.module = model
    assert sites(distributed) == expected


# ---- what is no site -----------------------------------------------------------------------------------------------


class Overrides(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_subclass_with_its_own_forward_is_left_out():
    assert "Overrides overrides the forward of Linear" in reasons(nn.Sequential(Overrides(4, 4)))["0.weight"]
    assert "Standardised" in reasons(nn.Sequential(Standardised(4, 4, 3)))["0.weight"]
    found = dict(sites(nn.ModuleDict({"a": OwnAttention(8, 2)})).left_out)
    assert "OwnAttention overrides" in found["a.in_proj_weight"]
    assert "attention" in found["a.out_proj.weight"]


def test_a_subclass_without_its_own_forward_is_a_site():
    class Named(nn.Linear):
        pass

    assert [site.kind for site in sites(nn.Sequential(Named(4, 4)))] == ["Linear"]


def test_a_layer_whose_forward_was_replaced_from_outside_is_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inner = model[0].forward
    model[0].forward = lambda x: inner(x).tanh()
    found = sites(model)
    assert [site.name for site in found] == ["1"]
    assert "forward" in dict(found.left_out)["0.weight"]


def test_attention_that_cannot_be_taken_apart_says_why():
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, add_bias_kv=True), "b": nn.MultiheadAttention(8, 2)})
    found = sites(model)
    assert [site.name for site in found] == [f"b.{part}_proj" for part in ("q", "k", "v", "out")]
    left = dict(found.left_out)
    assert "add_bias_kv" in left["a.in_proj_weight"]
    assert "which does not call it" in left["a.out_proj.weight"]
    zero = reasons(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, add_zero_attn=True)}))
    assert "add_zero_attn" in zero["a.in_proj_weight"]


def test_parametrized_and_normalised_layers_ask_to_be_folded():
    parametrized = reasons(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))))
    assert all("remove that first" in parametrized[f"0.{own}"] for own in ("bias", "parametrizations.weight.original1"))
    assert set(parametrized) >= {
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    }
    assert "0.bias" in reasons(nn.Sequential(parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))))
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(4, 4))
    assert "remove it first" in reasons(nn.Sequential(old))["0.weight_g"]
    spectral = nn.utils.spectral_norm(nn.Linear(4, 4))
    assert "remove it first" in reasons(nn.Sequential(spectral))["0.weight_orig"]
    pruned = nn.Linear(4, 4)
    prune.l1_unstructured(pruned, "weight", 0.5)
    assert "0.weight_orig" in reasons(nn.Sequential(pruned))
    attention = nn.MultiheadAttention(8, 2)
    parametrizations.orthogonal(attention.out_proj)
    assert not sites(nn.ModuleDict({"a": attention}))


def test_folding_makes_it_a_site():
    layer = parametrizations.weight_norm(nn.Linear(4, 4))
    parametrize.remove_parametrizations(layer, "weight")
    assert [site.name for site in sites(nn.Sequential(layer))] == ["0"]


def test_lazy_layers_ask_for_one_forward():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(3, 2))
    found = sites(model)
    assert not found
    assert "run the model once" in dict(found.left_out)["0.weight"]
    assert "run the model once" in dict(found.left_out)["1.bias"]
    model[0](torch.randn(2, 5))
    assert [site.name for site in sites(model)] == ["0"]


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantized.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantized.*:UserWarning")
def test_quantized_layers_are_refused_by_name():
    engines = [e for e in torch.backends.quantized.supported_engines if e != "none"]
    if not engines:
        pytest.skip("this torch has no quantized engine")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engines[-1]
    try:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        model = torch.ao.quantization.quantize_dynamic(model, {"2": torch.ao.quantization.default_dynamic_qconfig})
        found = sites(model)
        assert [site.name for site in found] == ["0"]
        assert "quantized" in dict(found.left_out)["2"]
    finally:
        torch.backends.quantized.engine = before


def test_other_weights_that_cannot_be_factored():
    integers = nn.Linear(4, 4)
    integers.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    assert "torch.int8" in reasons(nn.Sequential(integers))["0.weight"]
    complex_layer = nn.Linear(4, 4, dtype=torch.complex64)
    assert "torch.complex64" in reasons(nn.Sequential(complex_layer))["0.weight"]
    with pytest.warns(UserWarning, match="zero-element"):
        empty = nn.Sequential(nn.Linear(0, 4), nn.Linear(4, 4))
    assert "zero-size" in reasons(empty)["0.weight"]
    depthwise = reasons(nn.Sequential(nn.Conv2d(6, 6, 3, groups=6)))
    assert "depthwise" in depthwise["0.weight"]
    assert depthwise["0.bias"] == "a vector: nothing to factor"  # and not the reason of the matrix beside it
    assert "rank 1 already" in reasons(nn.Sequential(nn.Linear(7, 1)))["0.weight"]
    assert "rank 1 already" in reasons(nn.Sequential(nn.Linear(1, 7)))["0.weight"]
    chosen = dict(sites(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "0").left_out)
    assert chosen == {"1.weight": "not selected", "1.bias": "not selected"}


def test_strange_recurrent_layers_bilinear_and_bare_parameters_are_listed():
    class Own(nn.LSTM):
        def forward(self, x):
            return super().forward(2 * x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.cell = Own(6, 6), nn.utils.parametrizations.weight_norm(nn.GRUCell(6, 6), "weight_hh")
            self.bilinear, self.bag = nn.Bilinear(4, 4, 4), nn.EmbeddingBag(9, 4, mode="max")
            self.scale, self.token = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1, 2, 3))

    left = reasons(Model())
    assert "Own: overrides the forward" in left["lstm.weight_hh_l0"]
    assert "remove that first" in left["cell.weight_ih"]
    assert "used by Bilinear" in left["bilinear.weight"]
    assert "used by EmbeddingBag" in left["bag.weight"]
    assert "a vector" in left["scale"]
    assert "used by Model" in left["token"]


def test_a_model_that_is_one_layer_asks_for_a_wrapper():
    assert "wrap it" in reasons(nn.Linear(4, 4))["weight"]
    assert "wrap it" in reasons(nn.Conv2d(4, 4, 3))["bias"]


def test_titles_name_kind_and_shape():
    model, _ = network("conv_net")
    assert sites(model)["block.3"].title == "block.3 (Conv2d 6×54, 2 groups)"
    assert sites(model)["head"].title == "head (Linear 5×12)"


def test_matrix_and_weight_of_a_site():
    model, _ = network("encoder")
    with opened(model):
        site = sites(model)["encoder.layers.0.self_attn.k_proj"]
        expected = model.encoder.layers[0].self_attn.k_proj
        assert torch.equal(site.matrix(model), expected.weight)
        assert torch.equal(site.bias(model), expected.bias)
    attention = model.encoder.layers[0].self_attn
    assert torch.equal(expected.weight, attention.in_proj_weight[16:32])


class Reused(nn.Module):
    """A block that hangs in two places, a depthwise convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
        self.again = self.first
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 4)


def test_a_layer_is_chosen_by_any_of_its_names():
    for where in ("again", "again.0", Names(only="again.?"), Names(exclude=["head"])):
        assert [site.name for site in sites(Reused(), where)] == ["first.0"]
    assert [site.name for site in sites(Reused(), Names(exclude="again"))] == ["head"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("zzz", r"^where='zzz': no layer of this model matches; its layers are first\.0, again\.0, head$"),
        (Names(("head", "zzz")), r"^where: only='zzz': no layer of this model matches"),
        (Names(exclude=("zzz",)), r"^where: exclude='zzz': no layer of this model matches"),
        ("head.weight", r"no layer of this model matches; its layers are head, …$"),
        ("head,first.0", r"give each pattern by itself$"),
        ("depthwise", r"no layer that can be factored matches; depthwise\.weight is left out anyway: depthwise: every"),
        ("first.1", r"first\.1\.weight is left out anyway: a vector"),
    ],
)
def test_a_pattern_that_fits_no_layer_is_refused_wherever_layers_are_chosen(where, said):
    with pytest.raises(ValueError, match=said):
        sites(Reused(), where)


def test_the_reason_that_holds_anyway_goes_before_the_wish():
    left = dict(sites(Reused(), "head").left_out)
    assert left["first.0.weight"] == "not selected"
    assert left["depthwise.weight"].startswith("depthwise")


@pytest.mark.parametrize("how", ["buffer", "plain"])
def test_a_weight_that_is_no_parameter_is_left_out_as_no_plan_counts_it(how):
    model, x = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 24)), torch.randn(64, 16)
    weight = model[0].weight.detach().clone()
    del model[0].weight
    if how == "buffer":
        model[0].register_buffer("weight", weight)
    else:
        model[0].weight = weight
    assert [site.name for site in sites(model)] == ["2"]
    assert "buffer or a plain tensor" in dict(sites(model).left_out)["0.bias"]
    plan = rf.plan(model, "params=0.8", "truncate", data=x)
    small = rf.apply_(copy.deepcopy(model), plan)
    assert plan.after.params == sum(p.numel() for p in small.parameters())


def test_rows_that_a_look_up_shortens_make_no_other_model():
    """``max_norm`` writes into the table while the data pass; the plan is of the same weights before and after."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16, max_norm=1.0), nn.Linear(16, 40), nn.Linear(40, 8))
    table, known = model[0].weight.detach().clone(), fingerprint(model)
    plan = rf.plan(model, "params=0.9", data=torch.randint(0, 30, (64, 5)))
    assert not torch.equal(table, model[0].weight)
    assert fingerprint(model) == known
    assert rf.apply_(model, plan)
    with torch.no_grad():
        model[0].weight[0] *= 0.5
    assert fingerprint(model) != known
