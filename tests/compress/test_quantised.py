"""Forms in whole numbers: int8 factors, and low rank over an int4 base; their bytes, errors, and who reads them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rankfold as rf
from rankfold.batches.place import place_of
from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods import method_named
from rankfold.compress.methods.rounding import decomposed
from rankfold.export import to_onnx, to_torch_export
from rankfold.forms import Form
from rankfold.forms.residual import Residual
from rankfold.layers import FactoredWriteError, ResidualLinear, is_whole, numbers_of
from rankfold.linalg import Moments
from rankfold.linalg.rounding import balanced_largest, grouped, packed, rounded, spread, unpacked
from rankfold.sites import Factors, sites
from rankfold.testing import check_form


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- rounding ---------------------------------------------------------------------------------------------------


@given(m=st.integers(1, 9), n=st.integers(1, 9), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_two_numbers_to_a_byte_come_back(m, n, seed):
    codes = torch.randint(-8, 8, (m, n), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    stored = packed(codes)
    assert (stored.dtype, tuple(stored.shape)) == (torch.uint8, (m, (n + 1) // 2))
    assert torch.equal(unpacked(stored, n), codes)


@pytest.mark.parametrize("seed", range(3))
def test_a_direction_that_is_rescaled_is_stored_alike(seed):
    right, left = drawn(5, 40, seed=seed), drawn(30, 5, seed=seed + 10)
    by = torch.tensor([1e-6, 0.3, 1.0, 7.0, 1e5], dtype=torch.float64)
    pairs = [balanced_largest(right, left), balanced_largest(right * by.unsqueeze(1), left / by)]
    found = [(*rounded(r, 0, torch.float32), *rounded(l, 1, torch.float32)) for r, l in pairs]
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)
    assert torch.equal(found[0][1], found[0][3])  # one scale serves both factors
    codes, one = rounded((right * by.unsqueeze(1)).flatten(), 0, torch.float32)[0], right * by.unsqueeze(1)
    alone = torch.round(one / one.abs().max() * 127)  # a scale for the whole factor loses whole directions
    assert not alone[0].any()
    assert codes.numel() == right.numel()


def test_codes_are_rounded_to_the_scale_as_it_is_stored():
    matrix = drawn(6, 500)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        codes, scale = rounded(matrix, 0, dtype)
        off = (codes.double() * scale.double().unsqueeze(1) - matrix).abs().amax(1) / scale.double()
        assert (codes.dtype, scale.dtype) == (torch.int8, dtype)
        assert off.max() <= 0.76  # half a step, and at the largest entry what the scale was rounded by


@pytest.mark.parametrize("columns", [8, 21, 64, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_groups_are_never_worse_than_rounding_to_nearest(columns, dtype):
    matrix, group = drawn(11, columns), 8
    matrix[0] = 0
    codes, scale = grouped(matrix, group, dtype)
    assert tuple(scale.shape) == (11, -(-columns // group))
    assert codes.min() >= -8
    assert codes.max() <= 7
    wrong = (spread(codes, scale.double(), group) - matrix).square()
    for part, ours in zip(matrix.split(group, 1), wrong.split(group, 1), strict=True):
        step = (part.abs().amax(1, keepdim=True) / 7).to(dtype).double().clamp_min(1e-300)
        nearest = ((part / step).round().clamp(-8, 7) * step - part).square().sum(1)
        assert (ours.sum(1) <= nearest + 1e-6).all()
    assert wrong.sum() < 0.9 * sum(
        ((p / (s := p.abs().amax(1, keepdim=True).clamp_min(1e-300) / 7)).round() * s - p).square().sum()
        for p in matrix.split(group, 1)
    ) or columns == 3  # fmt: skip


def test_columns_that_count_more_are_hurt_less():
    matrix, weights = drawn(40, 64), torch.ones(64)
    weights[:8] = 1000.0
    plain, weighed = (
        (spread(*grouped(matrix, 32, torch.float64, w), 32) - matrix).square() for w in (None, weights)
    )  # fmt: skip
    assert weighed[:, :8].sum() < 0.8 * plain[:, :8].sum()
    assert (weighed * weights).sum() < (plain * weights).sum()


# ---- laws of the forms ------------------------------------------------------------------------------------------

LAYERS = {
    "linear": (lambda: nn.Linear(21, 10), (3, 21)),
    "tall": (lambda: nn.Linear(10, 22, bias=False), (2, 4, 10)),
    "convolution": (lambda: nn.Conv2d(6, 9, 3, stride=2, padding=1), (2, 6, 8, 8)),
    "line": (lambda: nn.Conv1d(6, 9, 3, bias=False), (2, 6, 8)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_laws_of_int8(name, dtype):
    made, shape = LAYERS[name]
    check_form(Form.INT8, made().to(dtype), drawn(*shape, dtype=dtype))


def test_laws_of_an_int8_table():
    check_form(Form.INT8, nn.Embedding(30, 12, padding_idx=3), torch.tensor([[1, 3, 29], [0, 7, 7]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("group", [64, 8, 5])
@pytest.mark.parametrize("name", ["linear", "tall"])
def test_laws_of_residual(name, group, dtype):
    made, shape = LAYERS[name]
    check_form(Residual("of the test", group=group), made().to(dtype), drawn(*shape, dtype=dtype))


def test_laws_of_layers_that_store_their_weight_transposed():
    utils = pytest.importorskip("transformers.pytorch_utils")
    for form in (Form.INT8, Form.RESIDUAL):
        check_form(form, utils.Conv1D(10, 21), drawn(3, 21, dtype=torch.float32))


def test_a_group_must_be_a_number_and_the_form_keeps_its_own():
    for group in (0, 2.5, True):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            Residual("wrong", group=group)
    assert Form("residual").group == 64
    assert (copy.deepcopy(Form.RESIDUAL), Form("int8")) == (Form.RESIDUAL, Form.INT8)


@pytest.mark.parametrize("module", [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 6, 3), nn.EmbeddingBag(9, 4)])
def test_where_neither_is_possible_they_are_not_offered(module):
    (site,) = sites(nn.Sequential(module))
    assert not site.takes(Form.INT8)
    assert not site.takes(Form.RESIDUAL)


# ---- errors -----------------------------------------------------------------------------------------------------


def observed(m, n, side="input", seed=0):
    """A layer, and statistics of its inputs with a metric of its outputs."""
    layer = nn.Linear(n, m, bias=False).double()
    x, g = drawn(400, n, seed=seed) @ drawn(n, n, seed=seed + 1), drawn(300, m, seed=seed + 2) @ drawn(m, m, seed=9)
    metric = g.mT @ g / len(g)
    moments = Moments(n if side == "input" else m)
    moments.update(x if side == "input" else x @ layer.weight.detach().mT)
    (site,) = sites(nn.Sequential(layer))
    return site, layer.weight.detach(), SiteStatistics(moments, metric=metric, free=False, side=side)


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12)])
def test_the_pair_over_a_base_is_the_optimum_in_both_metrics(m, n):
    site, weight, known = observed(m, n)
    made = decomposed(method_named("project"), site, Form.RESIDUAL, weight, known, None)
    metric, gram = made.made.metric, known.covariance
    outer, inner = torch.linalg.cholesky(metric), torch.linalg.cholesky(gram)
    base = Form.RESIDUAL.based(made.base)
    values = torch.linalg.svdvals(outer.mT @ (weight - base) @ inner)
    for rank in (0, 1, 5, min(m, n)):
        right, left, *_ = made.factors(rank).parts
        lost = weight - base - left @ right
        found = float(((metric @ lost) * (lost @ gram)).sum()) ** 0.5
        assert found == pytest.approx(float(values[rank:].square().sum() ** 0.5), rel=1e-6, abs=1e-7)
        assert float(made.errors[rank]) == pytest.approx(found, rel=1e-6, abs=1e-7)
        of_outputs = float(((lost @ gram) * lost).sum() / ((weight @ gram) * weight).sum()) ** 0.5
        assert made.relative_error(rank) == pytest.approx(of_outputs, rel=1e-6, abs=1e-7)
    assert made.ranks[:2] == (0, 1)
    whole = float(((metric @ weight) * (weight @ gram)).sum()) ** 0.5
    assert made.share == pytest.approx(float(made.errors[0]) / whole, rel=1e-9)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(("m", "n"), [(40, 60), (60, 40)])
def test_what_int8_is_said_to_cost_is_what_it_costs(m, n, side):
    site, weight, known = observed(m, n, side)
    made = decomposed(method_named("project"), site, Form.INT8, weight, known, None)
    full = min(m, n)
    assert float(made.made.errors[full]) == pytest.approx(0, abs=1e-5)
    new = Form.INT8.skeleton(site.layer, nn.Linear(n, m, bias=False).double(), full, False).to_empty(device="cpu")
    Form.INT8.write_(site.layer, new, made.factors(full))
    x = drawn(400, n) @ drawn(n, n, seed=1)
    lost = weight - new.weight.clone()
    cost = float(((made.made.metric @ lost) * (lost @ (x.mT @ x / 400))).sum())
    told = float(made.errors[full]) ** 2
    assert cost / told == pytest.approx(1, abs=0.25 if side == "input" else 0.6)
    assert told < 1e-3 * float(made.errors[0]) ** 2


# ---- plans, bytes, files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 70), nn.Tanh(), nn.Linear(70, 60), nn.Tanh(), nn.Linear(60, 20)).eval()
    model.bfloat16()
    data = torch.randn(256, 40).bfloat16()
    return model, data, rf.profile(model, data, forms="all")


def stored_bytes(model):
    return sum(x.numel() * x.element_size() for x in model.state_dict().values())


@pytest.mark.parametrize("keep", [0.7, 0.45, 0.31])
def test_a_budget_in_bytes_chooses_among_all_and_is_what_is_stored(measured, keep, tmp_path):
    model, data, known = measured
    plan = known.plan(f"bytes={keep}")
    small = rf.apply_(copy.deepcopy(model), plan, known)
    assert stored_bytes(small) == plan.after.bytes <= keep * stored_bytes(model)
    assert rf.model_cost(small, data[:1]) == plan.after
    assert numbers_of(small) == plan.after.params
    assert {entry.form for entry in plan.entries} & {Form.INT8, Form.RESIDUAL}
    plan.save(tmp_path / "plan.json")
    again = rf.apply_(copy.deepcopy(model), rf.Plan.load(tmp_path / "plan.json"))
    assert torch.equal(again(data), small(data))
    rf.save(small, plan, tmp_path / "small")
    assert torch.equal(rf.load(tmp_path / "small", copy.deepcopy(model)).model(data), small(data))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", ["int8", "residual"])
def test_torchscript_traces_whole_numbers_and_says_so_where_it_is_to_compile_them(form):
    model, data = (
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 24)).eval(),
        drawn(4, 3, 6, 6).float(),
    )
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, "bytes=0.6", "truncate", example=data, forms=form))
    assert is_whole(small)
    with pytest.raises(NotImplementedError, match=r"are whole numbers: use torch.jit.trace\(model, example\)"):
        torch.jit.script(small)
    assert torch.equal(torch.jit.trace(small, data)(data), small(data))


def test_whole_numbers_cannot_be_asked_to_train():
    model, data = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)), drawn(4, 16).float()
    small = rf.apply_(model, rf.plan(model, "bytes=0.4", "truncate", example=data, forms="int8"))
    assert not small[0].weight.requires_grad_(False).requires_grad
    with pytest.raises(FactoredWriteError, match="whole numbers, which no training moves: compress in other"):
        small[0].weight.requires_grad_(True)


def test_a_profile_from_a_file_makes_the_same_plans(measured, tmp_path):
    model, data, known = measured
    known.save(tmp_path / "known")
    again = rf.Profile.load(tmp_path / "known", model, data)
    plan = again.plan("bytes=0.4")
    assert plan == known.plan("bytes=0.4")
    one, other = (rf.apply_(copy.deepcopy(model), plan, each) for each in (again, known))
    assert torch.equal(one(data), other(data))


def predicted(plan):
    return sum(entry.predicted_loss or 0.0 for entry in plan.entries)


def test_fewer_bytes_cost_more_and_each_form_helps(measured):
    model, data, known = measured
    losses = [predicted(known.plan(f"bytes={keep}")) for keep in (0.7, 0.5, 0.4, 0.31)]
    assert losses == sorted(losses)
    plain = rf.profile(model, data).plan("bytes=0.5")
    assert predicted(known.plan("bytes=0.5")) < 0.5 * predicted(plain)


def test_where_parameters_or_flops_are_counted_nothing_is_won_by_whole_numbers(measured):
    _, _, known = measured
    for budget in ("params=0.6", "flops=0.6"):
        assert not {entry.form for entry in known.plan(budget).entries} & {Form.INT8, Form.RESIDUAL}


def test_they_are_taken_only_where_they_are_asked_for(measured):
    model, data, _ = measured
    assert {e.form for e in rf.plan(model, "bytes=0.5", data=data).entries} <= {Form.KEEP, Form.FACTORED, Form.PIVOTED}
    asked = rf.plan(model, "bytes=0.5", data=data, forms=["int8"])
    assert {e.form for e in asked.entries} == {Form.INT8}
    alone = rf.plan(model, ["bytes=0.5", rf.Multiples(8)], data=data, forms="residual,int8")
    assert {e.form for e in alone.changed} == {Form.RESIDUAL}
    assert all(e.rank % 8 == 0 for e in alone.changed)
    for wrong, why in (
        ("int7", "no form named 'int7'"),
        ([], "names no form beside 'keep'"),
        ("spatial", "any of the forms"),
    ):
        with pytest.raises(ValueError, match=why):
            rf.plan(model, "bytes=0.5", data=data, forms=wrong)
    with pytest.raises(
        ValueError, match="fits one layer after another, does not make the form 'residual': use method='project'"
    ):
        rf.plan(model, "bytes=0.5", "sequential", data, forms="residual")
    fitted = rf.plan(copy.deepcopy(model).float(), "bytes=0.46", "sequential", data.float(), forms="int8")
    assert {e.form for e in fitted.entries} == {Form.INT8}


def turned(plan, form):
    changed = [rf.Entry(**(vars(e) | {"form": form})) if e.form is not Form.KEEP else e for e in plan.entries]
    return plan.with_entries(tuple(changed))


def test_a_plan_is_edited_to_int8_and_refuses_residual_without_its_moments(measured):
    model, data, _ = measured
    known = rf.profile(model, data, forms="factored")
    plan = known.plan("params=0.8")
    eight = turned(plan, Form.INT8)
    one, other = rf.apply_(copy.deepcopy(model), eight, known), rf.apply_(copy.deepcopy(model), eight)
    assert torch.equal(one(data), other(data))
    assert all(is_whole(one.get_submodule(entry.site)) for entry in eight.changed)
    far = (one(data) - rf.apply_(copy.deepcopy(model), plan, known)(data)).norm() / one(data).norm()
    assert 0 < far < 0.03
    with pytest.raises(ValueError, match=r"moments of the layer's inputs.*name the form when the data are measured"):
        rf.apply_(copy.deepcopy(model), turned(plan, Form.RESIDUAL))


def test_without_data_what_the_base_leaves_is_truncated():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 30)).eval()
    plan = rf.plan(model, "bytes=0.2", "truncate", example=torch.zeros(1, 30), forms="all")
    small = rf.apply_(copy.deepcopy(model), plan)
    assert stored_bytes(small) == plan.after.bytes
    for entry in plan.changed:
        there, here = (each.get_submodule(entry.site).weight.detach().clone() for each in (model, small))
        assert entry.form is Form.RESIDUAL
        assert float((there - here).norm() / there.norm()) == pytest.approx(entry.predicted_error, rel=1e-3)


# ---- what others do with them -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture(measured):
    """One layer of either form, in float32."""
    model, data, _ = measured
    model, data = copy.deepcopy(model).float(), data.float()
    plan = rf.plan(model, rf.Ranks({"0": 12, "2": 6}), data=data, forms="int8,residual")
    forms = {"0": Form.INT8, "2": Form.RESIDUAL}
    entries = [rf.Entry(**(vars(e) | {"form": forms[e.site]})) if e.site in forms else e for e in plan.entries]
    plan = plan.with_entries(tuple(entries))
    return model, data, rf.apply_(copy.deepcopy(model), plan)


def test_a_compressed_model_says_what_it_holds(mixture):
    _, _, small = mixture
    found = sites(small)
    reasons = dict(found.left_out)
    assert all(reasons[name].startswith("quantized") for name in ("0.down", "0.up.bias", "2.base"))
    assert {"2.down", "2.up", "4"} <= {site.name for site in found}


def test_casts_leave_whole_numbers_and_outputs_nearly_alone(mixture):
    _, data, small = mixture
    there = small(data)
    for cast in (lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float64)):
        other = cast(copy.deepcopy(small))
        assert torch.equal(other[2].base.codes, small[2].base.codes)
        assert torch.equal(other[0].up.codes, small[0].up.codes)
        dtype = other[2].base.scale.dtype
        assert other[0].weight.dtype == other[2].weight.dtype == dtype
        assert (other(data.to(dtype)).float() - there).norm() <= 0.02 * there.norm()


def test_the_pair_over_a_base_is_trained_and_nothing_else_of_it(mixture):
    model, data, small = mixture
    small = copy.deepcopy(small)
    kept = {name: x.clone() for name, x in small.named_buffers()}
    before = small[2].down.weight.detach().clone()
    (told,) = rf.tune_(small, model, data, objective=rf.Regression(), steps=8, learning_rate=1e-2, batch_size=64)
    assert told.after < told.before
    assert not torch.equal(small[2].down.weight, before)
    assert all(torch.equal(x, kept[name]) for name, x in small.named_buffers())
    assert {name for name, _ in small[0].named_parameters()} == {"up.bias"}


def test_factors_in_int8_refuse_to_be_tuned_and_weights_to_be_written(mixture):
    model, data, small = mixture
    alone = nn.Sequential(*(copy.deepcopy(small)[i] for i in (0, 1)))
    with pytest.raises(ValueError, match=r"whole numbers \(int8\), which cannot be trained: compress in other forms"):
        rf.tune_(alone, copy.deepcopy(model[:2]), data, steps=1)
    for layer in (small[0].down, small[2].base):
        with pytest.raises(FactoredWriteError, match=r"stored as whole numbers.*compress in other forms"):
            layer.weight = nn.Parameter(torch.zeros(2, 2))
    for layer in (small[0], small[0].down, small[2], small[2].base):
        with pytest.raises(FactoredWriteError):
            layer.weight.add_(1.0)


def test_exported_and_compiled(mixture, tmp_path):
    _, data, small = mixture
    assert to_torch_export(small, data[:2], tmp_path / "small.pt2") <= 1e-5
    assert to_onnx(small, data[:2], tmp_path / "small.onnx") <= 1e-4
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(data), small(data), atol=1e-6)


def test_inputs_fit_networks_whose_weights_are_all_whole_numbers(tmp_path):
    """They have no parameter that tells in what they compute."""
    model, x = nn.Sequential(nn.Linear(8, 12, bias=False), nn.Linear(12, 6, bias=False)).double(), torch.randn(4, 8)
    small = rf.apply_(model, rf.plan(model, rf.Ranks({"0": 4, "1": 3}), "truncate", example=x, forms=["int8"]))
    assert not list(small.parameters())
    assert rf.latencies({"a": small}, x, rounds=3, seconds=0.01)["a"] > 0
    assert rf.model_cost(small, x).flops > 0
    assert to_torch_export(small, x, tmp_path / "small.pt2") <= 1e-9
    assert to_onnx(small, x, tmp_path / "small.onnx") <= 1e-9
    teacher = copy.deepcopy(model)
    told = rf.evaluate(small, [(x, torch.zeros(4, dtype=torch.int64))], objective="classification")
    assert told.loss > 0
    assert rf.evaluate(small, [x], objective="teacher", teacher=teacher)["change"] < 1
    assert rf.profile(small, [x], method="truncate").data is not None


def test_a_network_without_whole_numbers_or_parameters_is_placed_by_its_buffers():
    buffered = nn.Module()
    assert place_of(buffered.modules()) is None
    buffered.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
    buffered.register_buffer("table", torch.zeros(3, dtype=torch.float64))
    assert place_of(buffered.modules()) is buffered.table
    half = rf.apply_(
        whole := nn.Sequential(nn.Linear(8, 12, bias=False)).half(),
        rf.plan(whole, rf.Ranks({"0": 2}), "truncate", example=torch.randn(1, 8), forms=["int8"]),
    )
    assert place_of(nn.Sequential(buffered, half).modules()).dtype == torch.float16


def test_a_read_of_the_weight_costs_no_product(mixture):
    _, data, small = mixture
    x = data.new_ones(3, 70)
    layer = small[2]
    for found, wanted in (
        (nn.functional.linear(x, layer.weight, layer.bias), layer(x)),
        (x @ layer.weight.mT + layer.bias, layer(x)),
        (layer.weight.clone(), layer.base.weight + layer.up.weight @ layer.down.weight),
    ):
        assert torch.allclose(found, wanted, atol=1e-5)
    assert type(layer.weight).__name__ == "FactoredWeight"


def test_embeddings_in_int8_by_the_bytes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 24), nn.Linear(24, 8)).eval()
    data = torch.randint(0, 300, (64, 5))
    plan = rf.plan(model, "bytes=0.3", data=data, forms="int8,factored")
    small = rf.apply_(copy.deepcopy(model), plan)
    assert plan.entries[0].form is Form.INT8
    assert stored_bytes(small) == plan.after.bytes
    assert rf.model_cost(small, data[:1]) == plan.after


# ---- models of transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_folder_of_transformers_and_its_way_back(name, tmp_path):
    pytest.importorskip("transformers")
    from networks import network

    model, batch = network(name)
    given = {key: value for key, value in batch.items() if key != "labels"}
    names = [site.name for site in rf.sites(model).reducible if site.takes(Form.RESIDUAL)]
    ranks = dict.fromkeys(names, 3)
    plan = rf.plan(model, rf.Ranks(ranks), "truncate", example=given, forms="int8,residual")
    forms = {each: Form.INT8 if index % 2 else Form.RESIDUAL for index, each in enumerate(names)}
    entries = [rf.Entry(**(vars(e) | {"form": forms[e.site]})) if e.site in forms else e for e in plan.entries]
    plan = plan.with_entries(tuple(entries))
    small = rf.apply_(copy.deepcopy(model), plan)
    with torch.no_grad():
        wanted = small(**given).logits
        rf.save(small, plan, tmp_path / "small")
        again = rf.load(tmp_path / "small").model
        assert torch.equal(again(**given).logits, wanted)
        half = type(model).from_pretrained(tmp_path / "small", dtype=torch.bfloat16)
        for (key, x), (_, y) in zip(small.named_buffers(), half.named_buffers(), strict=True):
            assert x.is_floating_point() or torch.equal(x, y), key
        assert (half(**given).logits.float() - wanted).norm() <= 0.05 * wanted.norm()
        dense = rf.hub.to_dense(again)
        assert torch.allclose(dense(**given).logits, wanted, atol=1e-4)
        assert not is_whole(dense)


def test_adapters_beside_and_refused_when_they_are_to_be_merged(mixture):
    peft = pytest.importorskip("peft")
    from rankfold import hub

    _, data, small = mixture
    small = nn.Sequential()
    small.add_module("first", copy.deepcopy(mixture[2][0]))
    small.add_module("second", copy.deepcopy(mixture[2][2]))
    assert isinstance(small.second, ResidualLinear)
    config = hub.adapters(peft.LoraConfig(r=2, target_modules=["first", "second"]))
    adapted = peft.get_peft_model(small, config)
    adapted(data).square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in adapted.parameters())
    with pytest.raises(hub.HubError, match="without forming its product"):
        adapted.merge_and_unload()


def test_factors_are_written_whatever_their_order_of_size():
    """Directions far apart in size are stored with scales of their own, in half precision too."""
    right, left = drawn(3, 20) * torch.tensor([[1e3], [1.0], [1e-3]]), drawn(16, 3)
    (site,) = sites(nn.Sequential(nn.Linear(20, 16).half()))
    new = Form.INT8.skeleton(site.layer, nn.Linear(20, 16).half(), 3, False).to_empty(device="cpu")
    site.layer.write_(new, Form.INT8, Factors((right, left)))
    assert torch.equal(new.up.scale, new.down.scale)  # however the factors were scaled
    for i in range(3):
        one = left[:, i : i + 1] @ right[i : i + 1]
        made = new.up.dense()[:, i : i + 1].double() @ new.down.dense()[i : i + 1].double()
        assert (made - one).norm() <= 0.02 * one.norm()


def test_handed_to_torchao(mixture):
    pytest.importorskip("torchao.quantization")
    _, data, small = mixture
    with torch.no_grad():
        handed = rf.export.to_torchao(small)
        assert type(handed[0].up.weight).__name__ == "Int8Tensor"
        assert torch.equal(handed[0].down.weight.qdata, small[0].down.codes)
        assert torch.allclose(handed(data), small(data), atol=1e-5)


def test_torchao_is_named_where_it_is_missing_or_has_nothing_to_do(mixture, monkeypatch):
    import sys

    _, _, small = mixture
    if "torchao" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torchao", None)
        with pytest.raises(rf.export.ExportError, match="pip install torchao"):
            rf.export.to_torchao(small)
