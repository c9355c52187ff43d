"""Carrying plans out: the compressed model is the multiplied-out dense model, and everything else stays as it was."""

import copy
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, Case
from dense import FACTORED, multiplied_out
from networks import NETWORKS, Encoder, network, tokens
from torch import Tensor, nn

import rankfold as rf
from rankfold.batches import forward
from rankfold.compress.applying.apply import apply_, shape_
from rankfold.compress.applying.check import ApplyError
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.planning.planner import plan
from rankfold.compress.ranks.budget import Ranks
from rankfold.compress.statistics import calibrate
from rankfold.costs import Cost
from rankfold.layers import LowRankLinear, SplitAttention
from rankfold.objectives import main_tensor
from rankfold.sites import Form, fingerprint, sites


def fixed(model: nn.Module, batch, method: str, form: Form | None = None, bias: bool | None = None) -> Plan:
    """A plan that factors every site that the method can factor, to about half of its rank."""
    here = sites(model)
    statistics = calibrate(model, [batch], here) if method == "project" else None
    entries = []
    for site in here:
        forms = {"tucker": Form.TUCKER, "cp": Form.CP}
        wanted = form or forms.get(method, Form.FACTORED)
        if wanted not in site.forms:
            entries.append(Entry(site.name, Form.KEEP, min(site.shape), site.shape, site.groups))
            continue
        rank = max(1, site.max_rank(wanted) // 2)
        known = None if statistics is None else statistics.sites.get(site.name)
        carries = site.layer.has_bias or (known is not None and known.absorber is None and site.layer.takes_bias)
        entries.append(Entry(site.name, wanted, rank, site.shape, site.groups, bias=carries))
    zero = Cost(0, 0, 0)
    return Plan(tuple(entries), (), method, "optimal", fingerprint(model), zero, zero, statistics=statistics)


def factored(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FACTORED)}


@pytest.mark.parametrize("method", ["truncate", "project"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_layer_kind_becomes_the_layer_of_its_factors(case: Case, method: str):
    model, x = case.model(), case.inputs()
    small = copy.deepcopy(model)
    assert apply_(small, fixed(model, x, method)) is small
    assert set(factored(small)) == set(case.names)
    if not (isinstance(model[0], nn.MultiheadAttention) and model[0].in_proj_bias is None):  # no place for a bias
        torch.testing.assert_close(small(x), multiplied_out(model, small)(x), rtol=1e-9, atol=1e-10)
    again = apply_(copy.deepcopy(model), fixed(model, x, method))
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))


OTHER_FORMS = [
    (name, form)
    for name in ("conv2d", "conv2d-reflect", "conv2d-2x4", "conv2d-one-channel", "conv1d", "conv3d")
    for form in (Form.SPATIAL, Form.TUCKER, Form.CP)
    if form in sites(next(c for c in CASES if c.name == name).model())[0].forms
]


@pytest.mark.parametrize(("name", "form"), OTHER_FORMS)
def test_other_forms_of_convolutions(name: str, form: Form):
    case = next(c for c in CASES if c.name == name)
    model, x = case.model(), case.inputs()
    method = {Form.SPATIAL: "truncate", Form.TUCKER: "tucker", Form.CP: "cp"}[form]
    small = apply_(copy.deepcopy(model), fixed(model, x, method, form))
    torch.testing.assert_close(small(x), multiplied_out(model, small)(x), rtol=1e-8, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of the dense encoder
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["truncate", "project"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_what_their_multiplied_out_twins_compute(name: str, method: str, dtype: torch.dtype):
    model, batch = network(name, dtype)
    small = apply_(copy.deepcopy(model), fixed(model, batch, method))
    layers = factored(small)
    assert layers
    called = {}
    for path, layer in layers.items():
        for stage, child in layer.named_children():
            child.register_forward_hook(lambda *_, key=(path, stage): called.update({key: called.get(key, 0) + 1}))
    with torch.no_grad():
        found = main_tensor(forward(small, batch))
        expected = main_tensor(forward(multiplied_out(model, small), batch))
        dense = main_tensor(forward(model, batch))
    # the factors are used, not multiplied out behind their back by a fused kernel
    assert set(called) == {(path, stage) for path, layer in layers.items() for stage, _ in layer.named_children()}
    scale = float(dense.float().norm())
    exact = 1e-4 if dtype == torch.float32 else 0.15
    assert float((found - expected).float().norm()) <= exact * scale
    assert float((found - dense).float().norm()) > 1e-3 * scale  # half the ranks do lose something
    assert {p.dtype for p in small.parameters()} == {dtype}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_transformer_encoder_in_both_modes(training: bool, padded: bool, norm_first: bool):
    """Fast path or not, padding mask or not, dropout with the same seed: same output as the dense twin."""
    torch.manual_seed(0)
    model = Encoder(norm_first=norm_first, activation="gelu").double().eval()
    ids, mask = tokens()
    batch = ((ids, mask == 0) if padded else (ids,), None)
    small = apply_(copy.deepcopy(model), fixed(model, ((ids,), None), "truncate")).train(training)
    dense = multiplied_out(model, small).train(training)
    torch.manual_seed(1)
    found = forward(small, batch)
    torch.manual_seed(1)
    torch.testing.assert_close(found, forward(dense, batch), rtol=1e-8, atol=1e-10)
    with torch.no_grad():  # where torch would take its fused kernels
        torch.manual_seed(1)
        torch.testing.assert_close(forward(small, batch), found)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_plan_for_one_encoder_layer_leaves_the_others_on_their_fast_path():
    torch.manual_seed(0)
    model = Encoder(layers=3).double().eval()
    ids, mask = tokens()
    batch = ((ids, mask == 0), None)
    made = fixed(model, batch, "truncate")
    only = tuple(
        e if e.site.startswith("encoder.layers.1.linear") else replace(e, form=Form.KEEP) for e in made.entries
    )
    small = apply_(copy.deepcopy(model), made.with_entries(only))
    assert set(factored(small)) == {"encoder.layers.1.linear1", "encoder.layers.1.linear2"}
    assert isinstance(small.encoder.layers[1].self_attn, nn.MultiheadAttention)
    called = []
    small.encoder.layers[1].linear1.up.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        torch.testing.assert_close(forward(small, batch), forward(multiplied_out(model, small), batch))
    assert called


# ---- left as found ---------------------------------------------------------------------------------------------------


def test_hooks_are_carried_over_and_their_handles_still_remove_them():
    model, batch = network("encoder")
    model.train()
    layer, attention = model.encoder.layers[0].linear1, model.encoder.layers[0].self_attn
    seen = []
    handles = [
        layer.register_forward_hook(lambda module, args, out: seen.append(("forward", type(module).__name__))),
        layer.register_forward_pre_hook(lambda module, args: seen.append(("pre", type(module).__name__))),
        layer.register_forward_hook(
            lambda module, args, kwargs, out: seen.append(("kwargs", type(module).__name__)), with_kwargs=True
        ),
        layer.register_full_backward_hook(lambda module, gin, gout: seen.append(("backward", len(gin)))),
        layer.register_full_backward_pre_hook(lambda module, gout: seen.append(("backward pre", len(gout)))),
        attention.register_forward_hook(lambda module, args, out: seen.append(("attention", type(module).__name__))),
    ]
    apply_(model, fixed(model, batch, "truncate"))
    forward(model, batch).sum().backward()
    assert seen == [
        ("attention", "SplitAttention"),
        ("pre", "LowRankLinear"),
        ("forward", "LowRankLinear"),
        ("kwargs", "LowRankLinear"),
        ("backward pre", 1),
        ("backward", 1),
    ]
    seen.clear()
    for handle in handles:
        handle.remove()
    forward(model, batch).sum().backward()
    assert seen == []


def test_mode_dtype_and_gradient_flags_are_carried_over():
    model, batch = network("conv_net", torch.float64)
    model.train()
    model.head.eval()
    model.head.weight.requires_grad_(False)
    model.stem.requires_grad_(False)
    model.shortcut.bias.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    made = fixed(model, batch, "truncate")
    assert {name: module.training for name, module in model.named_modules()} == modes
    apply_(model, made)
    for name, module in model.named_modules():
        owner = next((path for path in factored(model) if name.startswith(f"{path}.")), name)
        assert module.training == modes[owner]
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not flags["head.up.weight"]
    assert not flags["head.down.weight"]
    assert flags["head.up.bias"]
    assert flags["shortcut.up.weight"]
    assert not flags["shortcut.up.bias"]
    assert not flags["stem.down.weight"]
    assert flags["block.3.down.weight"]
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", ["conv_net", "encoder"])
def test_planning_and_calibrating_leave_the_model_as_found(name: str):
    model, batch = network(name)
    model.train()
    first = next(model.parameters()).requires_grad_(False)
    model.head.eval()
    calls = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(path, id(module), module.training) for path, module in model.named_modules()]
    hooks = {path: [len(t) for t in (m._forward_hooks, m._forward_pre_hooks)] for path, m in model.named_modules()}
    grads = [p.requires_grad for p in model.parameters()]
    fast, threads = torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()
    chance = torch.get_rng_state()
    for method in ("project", "truncate"):
        plan(model, "params=0.7", method, [batch])
    assert [(path, id(module), module.training) for path, module in model.named_modules()] == modules
    assert {
        path: [len(t) for t in (m._forward_hooks, m._forward_pre_hooks)] for path, m in model.named_modules()
    } == hooks
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert not first.requires_grad
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), chance)
    handle.remove()


def test_a_shared_layer_is_replaced_under_every_name():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    small = apply_(copy.deepcopy(model), fixed(model, torch.randn(5, 8), "truncate"))
    assert small[0] is small[2]
    assert isinstance(small[0], LowRankLinear)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: nn.DataParallel(nn.DataParallel(model))])
def test_wrapped_models_are_planned_and_changed_inside(wrap):
    model, batch = network("conv_net")
    made = plan(wrap(model), "params=0.6", "truncate", [batch])
    wrapped = wrap(copy.deepcopy(model))
    assert apply_(wrapped, made) is wrapped
    plain = apply_(copy.deepcopy(model), made)
    assert plain.state_dict().keys() == {key.replace("module.", "") for key in wrapped.state_dict()}


@pytest.mark.parametrize("method", ["truncate", "project"])
@pytest.mark.parametrize("name", ["conv2d-groups", "transpose2d-groups", "conv1d", "linear-tall"])
def test_what_was_compressed_can_be_compressed_again(name: str, method: str):
    """Factors are layers like others: their own factors stand for them, in the output and in ``weight``."""
    case = next(c for c in CASES if c.name == name)
    model, x = case.model(), case.inputs()
    small = apply_(copy.deepcopy(model), fixed(model, x, method))
    again = apply_(copy.deepcopy(small), fixed(small, x, method))
    assert any(isinstance(module, FACTORED) for module in again[0].children())
    dense = copy.deepcopy(model)
    dense[0].weight.data = again[0].weight.detach()
    bias = again[0].bias
    dense[0].bias = None if bias is None else nn.Parameter(bias.detach())
    # a bias between the factors reaches the border in another way where the kernel sees padding
    inner = again[0].down.bias is not None
    if not inner:
        torch.testing.assert_close(again(x), dense(x), rtol=1e-9, atol=1e-10)
    assert again(x).shape == model(x).shape


def test_training_goes_on_after_applying():
    model, batch = network("encoder")
    apply_(model, fixed(model, batch, "project"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    nn.functional.cross_entropy(forward(model.train(), batch), batch[1]).backward()
    optimizer.step()
    # softmax does not see the bias of the keys: its gradient is nothing but rounding
    trained = {name: p for name, p in model.named_parameters() if "k_proj.up.bias" not in name}
    assert all(p.grad is not None and not torch.equal(p, before[name]) for name, p in trained.items())


# ---- a bias that BatchNorm takes in ---------------------------------------------------------------------------------


class Chain(nn.Module):
    """A convolution without bias, something in between, and BatchNorm."""

    def __init__(self, between: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.between, self.norm = nn.Conv2d(3, 6, 3, bias=False), between, nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 1, bias=False)
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.between(self.conv(x)))
        return self.norm(self.second(x)) if self.twice else self.second(x)


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (2 * torch.relu(x)) + 1


class Past(nn.Module):
    """A layer and a BatchNorm, and something else that reads the layer's output or not."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.reader, self.a, self.bn = reader, nn.Linear(12, 12, bias=False), nn.BatchNorm1d(12)
        self.c, self.d = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        z = torch.relu(self.bn(y))
        if self.reader == "a sum":
            return self.c(z + y)
        if self.reader == "another layer":
            return self.c(z) + self.d(y)
        if self.reader == "an output":
            return self.c(z), y
        if self.reader == "joined channels":
            return self.c(z) + torch.cat([z, y], 1).sum(1, keepdim=True)
        return self.c(z) + y.shape[1] if self.reader == "its shape" else self.c(z)


@pytest.mark.parametrize("reader", ["nothing", "its shape", "a sum", "another layer", "an output", "joined channels"])
def test_a_batch_norm_takes_the_bias_only_where_nothing_else_reads_the_output(reader):
    torch.manual_seed(0)
    model, x = Past(reader), torch.randn(256, 12) + 3 * torch.randn(12)
    for _ in range(30):
        model(x)
    statistics = calibrate(model.eval(), [x], sites(model))
    alone = reader in ("nothing", "its shape")
    assert statistics.sites["a"].absorber == ("bn" if alone else None)
    made = plan(model, Ranks({"a": 4}), "project", x, objective="teacher")
    small = apply_(copy.deepcopy(model), made)
    biased = copy.deepcopy(model)  # the same function
    biased.a.bias = nn.Parameter(torch.zeros(12))
    twin = apply_(biased, plan(biased, Ranks({"a": 4}), "project", x, objective="teacher"))
    with torch.no_grad():
        torch.testing.assert_close(small(x), twin(x), rtol=1e-3, atol=1e-3)


class Answered:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Hidden:
    """An object that nobody can look into."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values


class Beside(nn.Module):
    """A connection past the BatchNorm, of some weight, beside a large constant; the answer is wrapped."""

    def __init__(self, weight: float, constant: float, wrapped) -> None:
        super().__init__()
        self.weight, self.constant, self.wrapped = weight, constant, wrapped
        self.a, self.bn = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.head, self.other = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        y = self.a(x)
        past = self.weight * self.other(y.mean((2, 3)))
        return self.wrapped(self.head(self.bn(y).relu().mean((2, 3))) + past + self.constant)


@pytest.mark.parametrize("weight", [0.0, 0.2])
@pytest.mark.parametrize(
    ("dtype", "constant", "wrapped"),
    [
        (torch.float32, 0.0, Answered),
        (torch.float32, 1e3, Tensor.clone),
        (torch.bfloat16, 0.0, Tensor.clone),
        (torch.float16, 0.0, Answered),
    ],
)
def test_a_connection_past_the_batch_norm_is_seen_in_every_output(weight, dtype, constant, wrapped):
    """In objects with logits, in half precision, and beside numbers that are much larger."""
    torch.manual_seed(0)
    model, x = Beside(weight, constant, wrapped), torch.randn(64, 3, 8, 8) + 1
    for _ in range(30):
        model(x)
    model = model.eval().to(dtype)
    known = calibrate(model, [x.to(dtype)], sites(model), metric_samples=0).sites["a"]
    assert known.absorber == (None if weight else "bn")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype, torch.int64}


def test_where_no_output_can_be_looked_into_no_batch_norm_takes_a_bias():
    model, x = Beside(0.0, 0.0, Hidden).eval(), torch.randn(16, 3, 8, 8)
    assert calibrate(model, [x], sites(model), metric_samples=0).sites["a"].absorber is None


@pytest.mark.parametrize(
    ("between", "twice", "expected"),
    [
        (nn.Identity(), False, "norm"),
        (nn.ReLU(), False, None),
        (nn.ReLU(inplace=True), False, None),
        (Scale(), False, None),
        (nn.Identity(), True, None),
    ],
    ids=["right behind", "after relu", "after relu in place", "after new tensors", "a norm of two layers"],
)
def test_only_a_batch_norm_right_behind_takes_the_bias(between, twice, expected, generator):
    model = Chain(between, twice).double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean):
            tensor.normal_(0, 0.5, generator=generator)
    x = torch.randn(8, 3, 6, 6, generator=generator, dtype=torch.float64)
    statistics = calibrate(model, [x], sites(model))
    assert statistics.sites["conv"].absorber == expected
    made = fixed(model, x, "project")
    small = apply_(copy.deepcopy(model), made)
    assert (small.conv.bias is None) == (expected is not None)
    # with the bias written out, the twin has one either way
    twin = copy.deepcopy(model)
    site = sites(model)["conv"]
    entry = made["conv"]
    factors_ = _factors(model, made, "conv")
    twin.conv = nn.Conv2d(3, 6, 3).double()
    left, right = factors_.parts[1], factors_.parts[0]
    twin.conv.weight.data = site.layer.geometry(entry.form).put(model.conv.weight, left @ right)
    twin.conv.bias.data = factors_.shift
    changed = replace(made, entries=tuple(e if e.site == "conv" else replace(e, form=Form.KEEP) for e in made.entries))
    only = apply_(copy.deepcopy(model), changed)
    torch.testing.assert_close(only(x), twin(x), rtol=1e-9, atol=1e-10)


def _factors(model, made, name):
    from rankfold.compress.methods import method_named

    site, entry = sites(model)[name], made[name]
    known = made.statistics.sites[name]
    weight, bias = site.weight(model), site.bias(model)
    return method_named(made.method).decompose(site, entry.form, weight, known, bias).factors(entry.rank)


# ---- refusals -------------------------------------------------------------------------------------------------------


def edit(made: Plan, name: str, **changes) -> Plan:
    return made.with_entries(tuple(replace(e, **changes) if e.site == name else e for e in made.entries))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "missing"}, r"names 'missing', which this model does not have"),
        ({"rank": 0}, r"head .*rank 0 was asked for, and ranks from 1 to 5 are possible in the form factored"),
        ({"rank": 6}, r"head .*rank 6 was asked"),
        (
            {"form": Form.TUCKER},
            r"head .*the form tucker; possible forms are dense, factored, keep, pivoted",
        ),
        ({"shape": (5, 13)}, r"head .*made for a layer of 5×13"),
        ({"groups": 2}, r"head .*2 groups"),
        ({"bias": False}, r"head .*bias"),
        ({"site": "stem"}, r"stem .*(two entries|made for)"),
    ],
)
def test_impossible_entries_are_refused_before_anything_changes(changes, message):
    model, batch = network("conv_net")
    made = edit(fixed(model, batch, "truncate"), "head", **changes)
    if changes == {"site": "stem"}:
        made = edit(made, "stem", shape=sites(model)["stem"].shape)
    modules, state = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ApplyError, match=message):
        apply_(model, made)
    with pytest.raises(ApplyError, match=message):
        shape_(model, made)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("method", "form"),
    [("truncate", Form.TUCKER), ("project", Form.CP), ("project", Form.DENSE), ("cp", Form.FACTORED)],
)
def test_a_form_that_the_method_does_not_know_is_refused_before_anything_changes(method, form):
    model, batch = network("conv_net")
    made = edit(fixed(model, batch, method), "block.0", form=form, rank=2, bias=True)
    modules = dict(model.named_modules())
    with pytest.raises(ApplyError, match=rf"block.0 .*method '{method}' does not make the form {form}"):
        apply_(model, made)
    assert dict(model.named_modules()) == modules


def test_dense_truncation_keeps_the_architecture():
    model, batch = network("conv_net")
    made = fixed(model, batch, "truncate", Form.DENSE)
    small = apply_(copy.deepcopy(model), edit(made, "head", rank=2))
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert int(torch.linalg.matrix_rank(small.head.weight, rtol=1e-5)) == 2


def test_other_weights_and_other_architectures_are_told_apart():
    model, batch = network("conv_net")
    made = fixed(model, batch, "truncate")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias[0] += 1e-3
    with pytest.raises(ValueError, match="other weights of the same architecture"):
        apply_(other, made)
    shifted = copy.deepcopy(model)
    shifted.norm.running_mean[0] += 1
    with pytest.raises(ValueError, match="other weights"):
        apply_(shifted, made)
    different, _ = network("encoder")
    with pytest.raises(ValueError, match="another architecture"):
        apply_(different, made)
    with pytest.raises(ValueError, match="the same network in float32"):
        apply_(copy.deepcopy(model).double(), made)
    with pytest.raises(ValueError, match="made for"):
        apply_(apply_(copy.deepcopy(model), made), made)  # not twice


def test_second_moments_are_asked_for_where_the_method_needs_them():
    model, batch = network("conv_net")
    made = replace(fixed(model, batch, "project"), statistics=None)
    with pytest.raises(ApplyError, match=r"statistics.safetensors beside the plan"):
        apply_(model, made)


def test_factors_of_a_plan_that_are_no_matrices_are_refused():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8)), torch.randn(128, 12)
    made = rf.plan(model, "params=0.6", "sequential", x)
    name, fitted = next(iter(made.factors.items()))
    flat = replace(fitted, factors=replace(fitted.factors, parts=tuple(p.flatten() for p in fitted.factors.parts)))
    with pytest.raises(ApplyError, match=rf"{name} .*make the plan again"):
        apply_(model, replace(made, factors={**made.factors, name: flat}))


def test_factors_that_overflow_half_precision_are_reported():
    model = nn.Sequential(nn.Conv2d(16, 16, 3)).half()
    with torch.no_grad():
        model[0].weight.fill_(6e4)
    made = fixed(model, torch.zeros(1, 16, 5, 5), "tucker")
    with pytest.raises(ApplyError, match=r"0 \(Conv2d .*overflow torch.float16.*bfloat16"):
        apply_(model, made)


def test_factors_that_overflow_late_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)).half()
    with torch.no_grad():
        model[2].weight.fill_(6e4)
    made = fixed(model, torch.zeros(1, 16, 7, 7), "tucker")
    assert [entry.site for entry in made.changed] == ["0", "2"]
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ApplyError, match="overflow"):
        apply_(model, made)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_shape_gives_the_layers_without_looking_at_weights():
    model, batch = network("encoder")
    made = fixed(model, batch, "truncate")
    small = apply_(copy.deepcopy(model), made)
    ghost = shape_(copy.deepcopy(model).to("meta"), made)
    assert {k: v.shape for k, v in ghost.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}
    assert all(p.is_meta for p in ghost.parameters())
    assert isinstance(ghost.encoder.layers[0].self_attn, SplitAttention)


def test_progress_is_told_layer_by_layer():
    model, batch = network("conv_net")
    told = []
    apply_(model, fixed(model, batch, "truncate"), progress=lambda *step: told.append(step))
    assert told == [(name, i + 1, 5) for i, name in enumerate(("stem", "block.0", "block.3", "shortcut", "head"))]


def test_ranks_given_by_hand_are_what_is_applied():
    model, batch = network("conv_net")
    made = plan(model, Ranks({"head": 2, "block.0": 3}), "project", [batch])
    assert {e.site: e.rank for e in made.changed} == {"head": 2, "block.0": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = apply_(copy.deepcopy(model), made)
    assert small.head.rank == 2


def test_an_optimizer_that_holds_what_leaves_the_model_is_warned_of():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    made = plan(model, Ranks({"2": 4}), "truncate", example=torch.randn(2, 16))
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"built earlier \(SGD\) holds 2.weight, .*factors.* after apply_"):
        apply_(model, made)
    before = [p.detach().clone() for p in model[2].parameters()]
    model(torch.randn(8, 16)).square().mean().backward()
    early.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model[2].parameters(), strict=True))


def test_an_optimizer_of_what_is_sliced_is_warned_of():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval(), torch.randn(64, 16)
    made = plan(model, "params=0.6", data=x)
    small = apply_(model, made)
    stored = rf.Stored(small, made, {}, rf.bottlenecks(small, x))
    early = torch.optim.SGD(small.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"built earlier \(SGD\) holds .* after slice_"):
        rf.slice_(stored, "params=0.4")
    assert early.param_groups


def test_an_optimizer_of_what_stays_is_not_warned_of():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    made = plan(model, Ranks({"2": 4}), "truncate", example=torch.randn(2, 16))
    kept = torch.optim.SGD(model[0].parameters(), lr=0.1)
    apply_(model, made)  # warnings are errors here
    apply_(copy.deepcopy(model), plan(model, Ranks({"0": 4}), "truncate", example=torch.randn(2, 16)))
    assert kept.param_groups


def test_a_copy_in_another_precision_is_told_from_another_network():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(40, 8)
    known = rf.profile(net, x)
    plan = known.plan("params=0.8")
    with pytest.raises(ValueError, match=r"the same network in float32: apply it there, and convert the result"):
        rf.apply_(copy.deepcopy(net).half(), plan, known)
    assert rf.apply_(net, plan, known).half()(x.half()).dtype == torch.float16
    with pytest.raises(ValueError, match="another architecture"):
        rf.apply_(nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 2)), plan, known)
