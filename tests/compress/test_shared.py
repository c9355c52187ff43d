"""Factors that layers of one input share: which layers, the optimum, the choice of the allocator, and how they run."""

import copy
import gc
import io
import itertools
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import rankfold as rf
from rankfold import export
from rankfold.compress.methods import METHODS
from rankfold.compress.methods.project import Project
from rankfold.compress.ranks.groups import optimal_of_groups
from rankfold.compress.ranks.options import BudgetError, Option
from rankfold.compress.shared import shares, statistics_of
from rankfold.costs import measure
from rankfold.layers.shared import SharedNext
from rankfold.sites import Form, opened, with_joint

FORMS = ["factored", "pivoted", "shared"]


class Heads(nn.Module):
    """Layers of one input, which ``given`` hands to each of them."""

    def __init__(self, n, sizes, given=lambda x, number: x, bias=False):
        super().__init__()
        self.made = nn.ModuleList(nn.Linear(n, m, bias=bias) for m in sizes)
        self.given = given

    def forward(self, x):
        parts = [layer(self.given(x, number)) for number, layer in enumerate(self.made)]
        return torch.tanh(torch.cat([part.reshape(*x.shape[:-1], -1) for part in parts], -1))


def network(n=12, sizes=(12, 6, 6), bias=False):
    """Two groups between layers, of which the first has matrices with a common row space."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, n), Heads(n, sizes, bias=bias), nn.Linear(sum(sizes), n), nn.Tanh(), Heads(n, sizes, bias=bias),
        nn.Linear(sum(sizes), 3),
    ).eval()  # fmt: skip
    basis = torch.randn(4, n) / n**0.5
    with torch.no_grad():
        for layer in model[1].made:
            layer.weight.copy_(torch.randn(len(layer.weight), 4) @ basis + 0.02 * torch.randn_like(layer.weight))
    return model


@pytest.fixture(scope="module")
def data():
    return torch.randn(256, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def known(model, data):
    return rf.profile(model, data, forms=FORMS)


@pytest.fixture(scope="module")
def plan(known):
    made = known.plan("params=0.7")
    assert any(entry.members for entry in made.entries)
    return made


@pytest.fixture(scope="module")
def small(model, plan, known):
    return rf.apply_(copy.deepcopy(model), plan, known)


def groups(model, example):
    found = rf.sites(model)
    traced = measure(model, example, found)
    with opened(model):
        made, notes = with_joint(model, found, traced.read)
    return [each.names for each in made.joint], notes


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (lambda x, number: x, [("made.0", "made.1", "made.2")]),
        (lambda x, number: x.view(x.shape), [("made.0", "made.1", "made.2")]),  # a view of the same numbers
        (lambda x, number: x.clone(), []),  # equal numbers elsewhere
        (lambda x, number: x if number else x.unsqueeze(0), [("made.1", "made.2")]),  # in another shape
        (lambda x, number: x.flip(-1) if number == 1 else x, [("made.0", "made.2")]),
        (lambda x, number: x.add_(1) if number == 1 else x, [("made.1", "made.2")]),  # changed in between
    ],
)
def test_a_group_is_what_reads_one_tensor_whatever_it_is_called(given, joined):
    assert groups(Heads(4, (4, 3, 2), given), torch.randn(2, 4))[0] == joined


def test_what_cannot_share_is_left_out_with_the_reason():
    twice = Heads(4, (4, 3, 2))
    twice.made.append(twice.made[0])
    found, notes = groups(twice, torch.randn(2, 4))
    assert found == [("made.1", "made.2")]
    assert notes == ("made.0: no factor is shared with other layers: it is called 2 times",)
    mixed = Heads(4, (4, 3, 2))
    mixed.made[1].bias = nn.Parameter(torch.zeros(3))
    assert groups(mixed, torch.randn(2, 4))[0] == [("made.0", "made.2")]


@pytest.mark.parametrize("sizes", [(6, 4, 5), (3, 2)])  # more outputs than inputs, and fewer
def test_the_shared_pair_is_the_best_of_its_rank(sizes):
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(8, 8), Heads(8, sizes), nn.Linear(sum(sizes), 4)).double().eval()
    x = torch.randn(300, 8, dtype=torch.float64)
    made = rf.profile(net, x, method=Project(damping=1e-12), forms=FORMS)
    (group,) = made.sites.joint
    statistics = statistics_of(made.statistics, group, lambda: group.weight(net))
    matrix = group.weight(net)
    inputs = net[0](x).detach()
    moment = inputs.T.cov(correction=0)  # about the mean: biases are free
    metrics = [made.statistics.sites[name].metric for name in group.names]
    root = torch.linalg.cholesky(moment)
    blocks = torch.block_diag(*(torch.linalg.cholesky(m + 1e-13 * torch.eye(len(m))) for m in metrics)).double()
    best = torch.linalg.svdvals(blocks.T @ matrix @ root)
    found = made.candidate(group.name, Form.SHARED).decomposition
    for rank in (1, 2, 4):
        pair = found.factors(rank)
        change = matrix - pair.parts[1] @ pair.parts[0]
        paid = (blocks.T @ change @ root).square().sum()
        torch.testing.assert_close(paid, best[rank:].square().sum(), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(found.errors[rank].square(), best[rank:].square().sum(), rtol=1e-4, atol=1e-9)
    assert statistics.side == "input"


def test_equal_matrices_share_all_of_it():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 10), Heads(10, (8, 8)), nn.Linear(16, 4)).eval()
    net[1].made[1].weight.data.copy_(net[1].made[0].weight)
    x = torch.randn(200, 6)
    made = rf.profile(net, x, forms=FORMS)
    (group,) = made.sites.joint
    errors = made.candidate(group.name, Form.SHARED).decomposition.errors
    assert errors[8] < 1e-4 * errors[0]  # of eight rows there are two copies each
    fitted, rows = shares(group, made.candidate(group.name, Form.SHARED).decomposition.factors(8))
    assert sum(rows) == 8
    for part, layer in zip(fitted, net[1].made, strict=True):
        right, left = part.factors.parts
        torch.testing.assert_close((left @ right).float(), layer.weight.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_full_rank_reproduces_the_network(data, bias):
    net = network(bias=bias)
    made = rf.profile(net, data, forms=FORMS)
    entries = {entry.site: entry for entry in made.plan("params=1").entries}
    for group in made.sites.joint:
        pair = made.candidate(group.name, Form.SHARED).decomposition.factors(12)
        for site, rows in zip(group.members, shares(group, pair)[1], strict=True):
            shared = {"form": Form.SHARED, "rank": 12, "members": group.names, "rows": rows}
            entries[site.name] = replace(entries[site.name], **shared)
    asked = made.plan("params=1").with_entries(tuple(entries.values()))
    whole = rf.apply_(copy.deepcopy(net), asked, made)
    torch.testing.assert_close(whole(data), net(data), rtol=1e-4, atol=1e-5)
    for layer, dense in zip(whole[1].made, net[1].made, strict=True):  # every way to read a weight
        torch.testing.assert_close(layer.weight.clone(), dense.weight, rtol=1e-3, atol=1e-4)
        y = torch.randn(2, len(dense.weight))
        torch.testing.assert_close(y @ layer.weight, y @ dense.weight, rtol=1e-3, atol=1e-4)


def naive(options, limits, groups):
    """Every choice of every side of every group."""
    best = None
    for sides in itertools.product((False, True), repeat=len(groups)):
        shared = {name for name, side in zip(groups, sides, strict=True) if side}
        gone = {member for name in shared for member in groups[name]} | (set(groups) - shared)
        rows = {site: group for site, group in options.items() if site not in gone}
        for picked in itertools.product(*rows.values()):
            costs = [sum(axis) for axis in zip(*(o.costs for o in picked), strict=True)]
            loss = sum(o.loss for o in picked)
            fits = all(c <= limit for c, limit in zip(costs, limits, strict=True))
            if fits and (best is None or loss < best - 1e-12):
                best = loss
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_allocator_finds_the_best_choice_with_groups(seed):
    draw = torch.Generator().manual_seed(seed)

    def row(count, keep, scale):
        costs = torch.randint(1, 9, (count, 1 + seed % 2), generator=draw).mul(scale).tolist()
        losses = torch.rand(count, generator=draw).tolist()
        first = [Option(Form.KEEP, 9, 0.0, (9.0 * scale,) * (1 + seed % 2))] if keep else []
        rows = enumerate(zip(losses, costs, strict=True))
        return [*first, *(Option(Form.FACTORED, rank, loss, tuple(map(float, cost))) for rank, (loss, cost) in rows)]

    options = {name: row(3, True, 1) for name in "abcde"} | {"ab": row(4, False, 2), "cd": row(4, False, 2)}
    groups = {"ab": ["a", "b"], "cd": ["c", "d"]}
    for limit in (14.0, 20.0, 27.0):
        limits = (limit,) * (1 + seed % 2)
        wanted = naive(options, limits, groups)
        if wanted is None:
            with pytest.raises(BudgetError):
                optimal_of_groups(options, limits, groups)
            continue
        picked = optimal_of_groups(options, limits, groups)
        assert sum(o.loss for o in picked.values()) == pytest.approx(wanted, abs=1e-9)
        for name, members in groups.items():
            assert (name in picked) != any(member in picked for member in members)


def test_the_plan_counts_what_the_result_costs_and_shares_where_that_is_better(model, data, known, plan, small):
    assert rf.model_cost(small, data[:1]) == plan.after
    assert plan.after.params <= 0.7 * plan.before.params
    alone = rf.plan(model, "params=0.7", data=data, forms=FORMS[:2])
    lost = [sum(entry.predicted_loss for entry in each.entries) for each in (alone, plan)]
    assert lost[1] < lost[0]
    changes = [(rf.apply_(copy.deepcopy(model), each)(data) - model(data)).square().sum() for each in (alone, plan)]
    assert changes[1] < changes[0]
    for entry in plan.entries:
        if entry.members:
            held = model.get_submodule(entry.site).weight.shape
            first, rest = entry.site == entry.members[0], held[0] - entry.rows
            own = entry.rank * (rest + (held[1] if first else 0))
            assert entry.params == own + (held[0] if entry.bias else 0)
    assert all(not entry.members for entry in known.plan("params=0.7", "local").entries)  # compares no forms


def test_groups_are_weighed_where_they_are_asked_for_and_by_a_method_that_knows_them(model, data):
    assert not rf.profile(model, data).sites.joint
    fitted = rf.profile(model, data, method="sequential", forms=FORMS)
    assert not fitted.sites.joint
    said = "method 'sequential' fits one layer after another and makes no factor that several layers share: method "
    assert fitted.notes == (f"{said}'project' does",)


@pytest.mark.parametrize("method", [method.name for method in METHODS if method.name != "project"])
def test_a_method_that_shares_no_factor_refuses_the_form_alone_and_names_one_that_does(method, model, data):
    with pytest.raises(ValueError, match=rf"method '{method}' .*: use method='project' \(--method project\), or ask"):
        rf.profile(model, data, method=method, forms=["shared"])
    rf.profile(model, data, forms=["shared"])  # the remedy works


def test_a_method_refuses_forms_of_which_it_makes_none_before_it_works(model):
    unread = iter(())  # would be refused if anything were read
    with pytest.raises(ValueError, match=r"'tucker' does not make any of the forms factored, pivoted: use method='pro"):
        rf.profile(model, unread, method="tucker", forms=["pivoted", "factored"])
    rf.profile(model, example=torch.randn(1, 8), method="truncate", forms=["spatial", "pivoted"])


def counted(small):
    """How often the shared factor of the first group is computed."""
    first = next(m for m in small.modules() if isinstance(m, SharedNext)).first
    seen = []
    first.down.register_forward_hook(lambda *_: seen.append(1))
    return first, seen


def test_the_shared_product_runs_once_without_gradients_and_for_each_layer_with_them(small, data):
    net = copy.deepcopy(small)
    first, seen = counted(net)
    with torch.no_grad():
        once = net(data)
        assert len(seen) == 1
        assert first.kept.known is None  # nothing is left behind
        net(data)
        assert len(seen) == 2
    each = net(data)
    assert len(seen) == 2 + first.members
    torch.testing.assert_close(once, each, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(net(data), once, rtol=0, atol=0)


def test_frozen_layers_record_nothing_and_share_the_product(small, data):
    """Also with gradients enabled, as without no_grad; not where the input or an adapter wants some."""
    net = copy.deepcopy(small).requires_grad_(False)
    first, seen = counted(net)
    assert torch.equal(net(data), small(data))
    assert len(seen) == 1
    x = torch.randn(5, first.in_features, requires_grad=True)
    group = [m for m in net.modules() if getattr(m, "members", 1) > 1 and m.first is first]
    sum(layer(x).sum() for layer in group).backward()
    assert x.grad is not None
    assert len(seen) == 1 + first.members
    first.down.register_parameter("adapter", nn.Parameter(torch.zeros(1)))
    for layer in group:
        layer(x.detach())
    assert len(seen) == 1 + 2 * first.members


def test_a_product_is_remembered_for_the_very_same_numbers_alone(small):
    net = copy.deepcopy(small)
    first, seen = counted(net)
    others = [m for m in net.modules() if isinstance(m, SharedNext) and m.first is first]
    x = torch.randn(5, first.in_features)

    def fresh():
        return others[0].up(x @ first.down.weight.T)

    with torch.no_grad():
        first(x)
        torch.testing.assert_close(others[0](x.view(5, -1)), fresh())
        assert len(seen) == 1
        first(x)
        x.mul_(2)  # seen
        torch.testing.assert_close(others[0](x), fresh())
        first(x)
        first.down.weight.mul_(2)
        torch.testing.assert_close(others[0](x), fresh())
        first(x)
        first.down.double()
        first.down.float()
        torch.testing.assert_close(others[0](x.contiguous()), fresh())
        first(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(others[0](x), others[0].up(first.down(x)))
        begun = len(seen)
        first(x)
        first(x)  # another pass
        assert len(seen) == begun + 2
        gone = torch.randn(3, first.in_features)
        first(gone)
        left = weakref.ref(first.kept.known.cell[0])
        del gone
        gc.collect()
        assert left() is None  # a pass that ended early keeps nothing alive


def test_what_torch_does_not_count_as_a_change_is_seen_too(small):
    net = copy.deepcopy(small)
    first, seen = counted(net)
    others = [m for m in net.modules() if isinstance(m, SharedNext) and m.first is first]
    numbers = np.random.default_rng(0).standard_normal((5, first.in_features)).astype("float32")
    given, lent = torch.from_numpy(numbers), torch.ones(5, first.in_features)

    def fresh(x):
        return others[0].up(x @ first.down.weight.T)

    with torch.no_grad():
        first(given)
        numbers[:, 1] = 0
        torch.testing.assert_close(others[0](given), fresh(given))
        first(lent)
        lent.numpy()[2] = 7
        torch.testing.assert_close(others[0](lent), fresh(lent))
        x = torch.randn(5, first.in_features)
        for change in (
            lambda weight: weight.data.mul_(2),
            lambda weight: setattr(weight, "data", weight.detach() + 1),
            lambda weight: weight.data.copy_(torch.randn(weight.shape)),
        ):
            first(x)
            change(first.down.weight)
            torch.testing.assert_close(others[0](x), fresh(x))
        begun, x = len(seen), torch.randn(5, first.in_features)
        first(x)
        others[1](x)
        assert len(seen) == begun + 1  # it is remembered where nothing has changed


def test_threads_and_copies_do_not_see_each_others_products(small, data):
    wanted, found = small(data).detach(), []
    first, seen = counted(copy.deepcopy(small))
    x = torch.randn(5, first.in_features)

    def run():
        with torch.no_grad():
            found.append(first.kept.known)
            first(x)
            found.append(first.kept.known)

    with torch.no_grad():
        first(x)
    mine = first.kept.known
    other = threading.Thread(target=run)
    other.start()
    other.join()
    assert found[0] is None
    assert found[1] is not mine
    assert first.kept.known is mine
    assert len(seen) == 2
    again = copy.deepcopy(small)
    assert all(m.first in set(again.modules()) for m in again.modules() if isinstance(m, SharedNext))
    torch.testing.assert_close(again(data), wanted, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*jit.trace:DeprecationWarning")
def test_gradients_checkpointing_and_compilers(small, data):
    grads = []
    for way in ("plain", "again"):
        net = copy.deepcopy(small).train()
        hidden = net[0](data)
        hidden = net[1](hidden) if way == "plain" else checkpoint(net[1], hidden, use_reentrant=False)
        net[2:](hidden).square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    with torch.no_grad():
        wanted = small(data)
        exported = torch.export.export(small, (data,)).module()(data)
        compiled = torch.compile(copy.deepcopy(small), backend="aot_eager")(data)
        traced = torch.jit.trace(small, data)(data)
    for found in (exported, compiled, traced):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_traces_and_refuses_to_script_with_the_remedy(small, data):
    with pytest.raises(NotImplementedError, match=r"shares its first factor .*: use torch\.jit\.trace"):
        torch.jit.script(small)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(small, data), file)
    file.seek(0)
    found = torch.jit.load(file)
    torch.testing.assert_close(found(data), small(data))
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in small.parameters())


def test_an_exported_network_computes_each_shared_product_once(small, data, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert export.to_onnx(small, data[:4], tmp_path / "small.onnx") < 1e-5
    products = [node for node in onnx.load(tmp_path / "small.onnx").graph.node if node.op_type in ("Gemm", "MatMul")]
    layers = [m for m in small.modules() if isinstance(m, nn.Linear)]  # factors, and what was kept
    assert len(products) == len(layers)


def test_saved_loaded_and_applied_again(model, data, known, plan, small, tmp_path):
    rf.save(small, plan, tmp_path / "small")
    again = rf.load(tmp_path / "small", network())
    assert torch.equal(again.model(data), small(data))
    assert again.plan == plan
    plan.save(tmp_path / "plan.json")
    assert torch.allclose(rf.apply_(network(), rf.Plan.load(tmp_path / "plan.json"))(data), small(data), atol=1e-5)
    known.save(tmp_path / "profile")
    kept = rf.Profile.load(tmp_path / "profile", model, data)
    assert kept.plan("params=0.7").entries == plan.entries
    assert torch.allclose(rf.apply_(network(), plan, kept)(data), small(data), atol=1e-5)


def test_rows_that_are_equal_are_stored_once(data, tmp_path):
    """As of a widened network, whose neurons come in pairs: a row of one layer is what the other one stores."""

    def widened():
        wide = network()
        with torch.no_grad():
            for layer in wide[1].made:
                layer.weight[1::2] = layer.weight[::2]
        return wide

    model = widened()
    known = rf.profile(model, data, forms=["shared"], where="1.made.*")
    plan = known.plan("params=0.9")
    small = rf.apply_(copy.deepcopy(model), plan, known)
    orders = [layer.up.order.tolist() for layer in small[1].made]
    assert all(len(set(order)) == len(order) for order in orders)
    rf.save(small, plan, tmp_path / "small")
    again = rf.load(tmp_path / "small", network()).model
    assert torch.equal(again(data), small(data))
    torch.testing.assert_close(small(data), model(data), rtol=0, atol=0.05)


def test_entries_that_do_not_agree_are_refused(model, plan):
    wrong = next(entry for entry in plan.entries if entry.members)
    for change in ({"rank": wrong.rank - 1}, {"rows": wrong.rows + 1}, {"members": wrong.members[:2]}, {"members": ()}):
        entries = tuple(e if e is not wrong else replace(e, **change) for e in plan.entries)
        with pytest.raises(rf.ApplyError, match="share"):
            rf.apply_(copy.deepcopy(model), plan.with_entries(entries))


@pytest.fixture(scope="module")
def llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        basis = torch.randn(6, 16)
        for layer in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj):
            layer.weight.copy_(torch.randn(24, 6) @ basis / 8)
    ids = torch.randint(24, (24, 8), generator=torch.Generator().manual_seed(1))
    made = rf.profile(model, [{"input_ids": x} for x in ids.split(8)], forms=FORMS)
    plan = made.plan("params=0.7")
    assert [each.names[0].rpartition(".")[2] for each in made.sites.joint] == ["q_proj", "gate_proj"]
    assert any(entry.members for entry in plan.entries)
    return rf.apply_(copy.deepcopy(model), plan, made), plan, ids[:2]


def test_a_folder_of_transformers_keeps_what_is_shared(llama, tmp_path):
    from transformers import AutoModel, AutoModelForCausalLM

    from rankfold import hub

    small, plan, ids = llama
    wanted = small(ids).logits
    rf.save(small, plan, tmp_path / "small")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    again.save_pretrained(tmp_path / "again")
    for found in (again, AutoModelForCausalLM.from_pretrained(tmp_path / "again"), rf.load(tmp_path / "small").model):
        torch.testing.assert_close(found(ids).logits, wanted, rtol=0, atol=0)
        assert found.num_parameters() == plan.after.params
        assert found.model.layers[0].mlp.up_proj.first is found.model.layers[0].mlp.gate_proj
    body = AutoModel.from_pretrained(tmp_path / "small")  # its names are shorter
    torch.testing.assert_close(body(ids).last_hidden_state, small.model(ids).last_hidden_state, rtol=0, atol=0)
    torch.testing.assert_close(hub.to_dense(again)(ids).logits, wanted, rtol=1e-4, atol=1e-5)


def test_an_adapter_on_the_shared_factor_reaches_every_layer(llama):
    peft = pytest.importorskip("peft")
    small, _, ids = llama
    net = peft.get_peft_model(copy.deepcopy(small), peft.LoraConfig(target_modules=["down"], r=2))
    layers = net.base_model.model.model.layers[0].mlp
    assert layers.up_proj.down is layers.gate_proj.down
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        wanted = net(ids).logits
        assert (wanted - small(ids).logits).abs().max() > 1e-3
        torch.testing.assert_close(net.merge_and_unload()(ids).logits, wanted, rtol=1e-3, atol=1e-4)


def test_slicing_leaves_shared_layers_as_they_are(model, plan, small, data, tmp_path):
    assert {entry.site for entry in plan.changed if not entry.members}  # others are there
    rf.save(small, plan, tmp_path / "small", bottlenecks=rf.bottlenecks(small, data))
    share = 0.97 * plan.after.params / plan.before.params
    cut = rf.slice_(rf.load(tmp_path / "small", copy.deepcopy(model)), f"params={share}")
    assert cut.plan.after.params <= share * plan.before.params
    assert rf.model_cost(cut.model, data[:1]).params == cut.plan.after.params
    assert all(cut.plan[entry.site].rank == entry.rank for entry in plan.entries if entry.members)
    assert any("share a factor" in note for note in cut.plan.notes)
