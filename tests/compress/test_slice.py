"""Slices of factored networks: what they cost is what was predicted, whatever the layer; and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import ATTENTION, PLAIN, Case
from networks import ConvNet, encoder, images
from torch import Tensor, nn

import rankfold as rf
from rankfold.compress.slicing.bottlenecks import Bottlenecks
from rankfold.compress.slicing.narrowed import Narrowed
from rankfold.compress.slicing.narrowed import slice_ as narrow_
from rankfold.compress.slicing.slicing import plan_slice, slice_costs
from rankfold.costs import model_cost
from rankfold.linalg import tails
from rankfold.sites import factored_sites


def conv_net() -> tuple[nn.Module, None]:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvNet(), None


def factored(model: nn.Module, data: Any, ranks: dict[str, int], method: str = "project") -> rf.Stored:
    plan = rf.plan(model, rf.Ranks(ranks), method, data)
    small = rf.apply_(copy.deepcopy(model), plan)
    return rf.Stored(small, plan, {}, rf.bottlenecks(small, data))


def sliced(stored: rf.Stored, ranks: dict[str, int]) -> rf.Stored:
    twin = rf.Stored(copy.deepcopy(stored.model), stored.plan, {}, stored.bottlenecks)
    return rf.slice_(twin, rf.Ranks(ranks))


def outputs(model: nn.Module, name: str, data: Any) -> Tensor:
    """What one layer gives, as rows (N, m)."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with torch.no_grad():
        model(data)
    handle.remove()
    output = seen[0].double()
    linear = isinstance(layer, nn.Linear | rf.LowRankLinear)
    return output.reshape(-1, output.shape[-1]) if linear else output.movedim(1, -1).flatten(0, -2)


def wide(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:
    """More samples than a case has of its own: attention that goes by the second axis takes them there."""
    axis = 0 if case.name not in ("attention-sequence-first", "attention-narrow-keys-no-bias") else 1
    return torch.cat([case.inputs(dtype, seed) for seed in range(8)], axis)


def largest(model: nn.Module, name: str) -> int:
    return max(site.max_rank(rf.Form.FACTORED) for site in rf.sites(model) if site.name == name)


@pytest.mark.parametrize("case", [*PLAIN, *ATTENTION], ids=repr)
def test_the_predicted_error_is_the_measured_one(case):
    model, data, name = case.model(), wide(case), case.names[0]
    assert rf.Form.FACTORED in rf.sites(model)[name].forms
    assert largest(model, name) >= 3
    stored = factored(model, data, {name: largest(model, name) - 1})
    smaller = sliced(stored, {name: largest(model, name) - 2})
    before, after = (outputs(one.model, name, data) for one in (stored, smaller))
    entry = smaller.plan[name]
    if stored.plan[name].form is rf.Form.SPATIAL:
        return  # patches are a sample of all places: see the test below
    spread = (before - before.mean(0)).square().sum().sqrt()
    measured = float((after - before).square().sum().sqrt() / spread)
    assert measured == pytest.approx(slice_costs(stored.plan, smaller.plan)[name][0], rel=1e-6)
    assert entry.rank == largest(model, name) - 2
    assert isinstance(smaller.model.get_submodule(name).weight, Tensor)


def test_the_error_of_a_spatial_pair():
    layer = nn.Conv2d(5, 7, 3, padding=1)
    model = nn.Sequential(layer).double()
    data = torch.randn(256, 5, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # 30 places
    stored = factored(model, data, {"0": 12})
    assert stored.plan["0"].form is rf.Form.SPATIAL
    for rank in (11, 8, 3):
        smaller = sliced(stored, {"0": rank})
        before, after = (outputs(one.model, "0", data) for one in (stored, smaller))
        measured = float((after - before).norm() / (before - before.mean(0)).norm())
        assert measured == pytest.approx(slice_costs(stored.plan, smaller.plan)["0"][0], rel=1e-4)
        # no worse than the same channels without a second factor fitted to them
        narrowed = Narrowed(stored.model[0], stored.bottlenecks.sites["0"])
        assert narrowed.loss(rank) <= float(narrowed.errors[rank]) ** 2 * (1 + 1e-9)


def test_a_layer_is_sliced_as_well_as_can_be():
    """Against the singular values of its explicit outputs, where outputs count alike."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12)).double()
    data = torch.randn(500, 20, generator=generator, dtype=torch.float64)
    plan = rf.plan(model, rf.Ranks({"0": 9}), "project", data)
    small = rf.apply_(copy.deepcopy(model), plan)
    with torch.no_grad():  # as after fine-tuning: nothing is ordered any more
        for weight in small.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator).double() * 0.3)
    stored = rf.Stored(small, plan, {}, rf.bottlenecks(small, data, metric_samples=0))
    rows = outputs(small, "0", data)
    best = tails(torch.linalg.svdvals(rows - rows.mean(0)))
    for rank in range(1, 9):
        after = outputs(sliced(stored, {"0": rank}).model, "0", data)
        torch.testing.assert_close((after - rows).norm(), best[rank], rtol=1e-10, atol=0)


def test_the_model_s_outputs_change_as_predicted():
    """Of a linear model the prediction is exact, but for the drawn directions of the metric and its damping."""
    model = nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 12)).double()
    nn.init.orthogonal_(model[1].weight)
    data = torch.randn(1024, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stored = factored(model, data, {"0": 10})
    for rank in (2, 5):
        smaller = sliced(stored, {"0": rank})
        with torch.no_grad():
            moved = smaller.model(data) - stored.model(data)
        change = slice_costs(stored.plan, smaller.plan)["0"][1]
        assert float(moved.square().sum(-1).mean()) / _energy(stored.model, data) == pytest.approx(change, rel=0.15)
    assert stored.bottlenecks.energy == 1.0  # predicted changes are shares of the outputs' variance already


def _energy(model: nn.Module, data: Tensor) -> float:
    with torch.no_grad():
        rows = model(data)
    return float((rows - rows.mean(0)).square().sum(-1).mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["block.3", "shortcut", "head"])
def test_a_slice_of_a_slice_is_the_slice_at_once(name, dtype):
    model, _ = conv_net()
    data = images(200)
    model = model.to(dtype).eval()
    stored = factored(model, data.to(dtype), {name: 5 if name != "head" else 4})
    twice = sliced(sliced(stored, {name: 3}), {name: 2})
    once = sliced(stored, {name: 2})
    kernels = [one.model.get_submodule(name).weight for one in (twice, once)]
    tight = {"rtol": 1e-9, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(*kernels, **tight)
    for key in ("predicted_error", "predicted_loss", "params", "flops"):
        assert getattr(twice.plan[name], key) == pytest.approx(getattr(once.plan[name], key), rel=1e-5)


def test_without_bias_the_batch_norm_behind_carries_mean_and_variance():
    model, _ = conv_net()
    data = images(300) + 1.0
    stored = factored(model.eval(), data, {"block.0": 6})
    assert stored.bottlenecks.sites["block.0"].norm == "block.1"
    smaller = sliced(stored, {"block.0": 2})
    assert smaller.model.get_submodule("block.0").bias is None
    before, after = (outputs(one.model, "block.1", data) for one in (stored, smaller))
    torch.testing.assert_close(after.mean(0), before.mean(0), rtol=0, atol=2e-3)
    torch.testing.assert_close(after.std(0), before.std(0), rtol=5e-3, atol=0)
    moved = smaller.model.get_submodule("block.1").running_mean - stored.model.get_submodule("block.1").running_mean
    assert float(moved.abs().max()) > 0.01  # there was something to carry


def test_without_bias_and_without_norm_the_mean_counts():
    with torch.random.fork_rng():
        torch.manual_seed(0)  # how large the mean is beside the rest depends on the weights
        model = nn.Sequential(nn.Linear(8, 8, bias=False)).double()
    data = torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    stored = factored(model, data, {"0": 6}, method="truncate")
    assert stored.model[0].bias is None
    smaller = sliced(stored, {"0": 1})
    before, after = (outputs(one.model, "0", data) for one in (stored, smaller))
    measured = float((after - before).norm() / before.norm())
    assert measured == pytest.approx(smaller.plan["0"].predicted_error, rel=0.35)
    assert measured < 0.5  # the mean is what is large


def test_half_precision_and_groups():
    model, _ = conv_net()
    data = images(200).bfloat16()
    stored = factored(model.bfloat16().eval(), data, {"block.3": 5, "head": 4})
    smaller = sliced(stored, {"block.3": 3, "head": 2})
    for name in ("block.3", "head"):
        module = smaller.model.get_submodule(name)
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    before, after = (outputs(one.model, "block.3", data) for one in (stored, smaller))
    measured = float((after - before).norm() / (before - before.mean(0)).norm())
    assert measured == pytest.approx(slice_costs(stored.plan, smaller.plan)["block.3"][0], rel=0.1)


def test_attention_projections_of_an_encoder():
    model, (batch, _) = encoder()
    data = [(batch, None)]
    names = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.linear1", "encoder.layers.1.linear2"]
    stored = factored(model.eval(), data, dict.fromkeys(names, 9))
    smaller = sliced(stored, dict.fromkeys(names, 4))
    assert [smaller.plan[name].rank for name in names] == [4, 4, 4]
    with torch.no_grad():
        assert bool(smaller.model(*batch).isfinite().all())


class Twice(nn.Module):
    """One layer in two places, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(10, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def test_a_shared_layer_stays_shared(tmp_path):
    data = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    stored = factored(Twice().eval(), data, {"first": 8})
    hooked = []
    stored.model.first.register_forward_hook(lambda *found: hooked.append(found))
    smaller = rf.slice_(stored, rf.Ranks({"first": 3}))
    assert smaller.model.first is smaller.model.second
    assert smaller.model.first.rank == 3
    smaller.model(data)
    assert len(hooked) == 2
    rf.save(smaller.model, smaller.plan, tmp_path / "s", bottlenecks=smaller.bottlenecks)
    again = rf.load(tmp_path / "s", Twice())
    assert again.model.first is again.model.second
    torch.testing.assert_close(again.model(data), smaller.model(data))
    assert rf.slice_(again, "params=0.5").plan["first"].rank <= 3


@pytest.fixture(scope="module")
def artifact() -> rf.Stored:
    model, _ = conv_net()
    data = images(300)
    plan = rf.plan(model.eval(), "flops=0.7", data=data)
    small = rf.apply_(copy.deepcopy(model), plan)
    return rf.Stored(small, plan, {}, rf.bottlenecks(small, data))


def fresh(stored: rf.Stored) -> rf.Stored:
    return rf.Stored(copy.deepcopy(stored.model), stored.plan, stored.notes, stored.bottlenecks)


@pytest.mark.parametrize("budget", ["flops=0.5", "params=0.5", "bytes=0.5", ["flops=0.6", "params=0.5"]])
def test_budgets_are_met_and_counted(artifact, budget):
    smaller = rf.slice_(fresh(artifact), budget)
    cost = model_cost(smaller.model, images(1))
    assert cost == smaller.plan.after
    for asked in smaller.plan.budgets:
        kept = getattr(cost, asked.kind) / getattr(artifact.plan.before, asked.kind)
        assert kept <= asked.keep
    assert all(new.rank <= old.rank for new, old in zip(smaller.plan.entries, artifact.plan.entries, strict=True))
    assert not smaller.plan.edited
    assert slice_costs(artifact.plan, smaller.plan)
    assert any(note.startswith("this network was sliced from one with ") for note in smaller.plan.notes)


def test_what_fits_already_is_left_as_it_is(artifact):
    same = rf.slice_(fresh(artifact), "flops=0.7")
    assert same.plan.entries == artifact.plan.entries
    assert same.plan.notes == artifact.plan.notes
    for name, tensor in artifact.model.state_dict().items():
        assert torch.equal(tensor, same.model.state_dict()[name])


def test_the_smallest_budget_is_named_and_can_be_met(artifact):
    with pytest.raises(rf.BudgetError, match="which takes flops=") as caught:
        rf.slice_(fresh(artifact), "flops=0.01")
    smallest = str(caught.value).split("which takes ")[1].split(" ")[0]
    assert rf.slice_(fresh(artifact), smallest).plan.after.flops > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["stem", "block.0", "block.3"])
def test_a_kept_layer_is_factored_as_well_as_can_be(name, dtype):
    """One without bias before a BatchNorm, one with groups; against the singular values of its explicit outputs."""
    model, _ = conv_net()
    data = images(300)
    other = "shortcut" if name != "shortcut" else "head"
    plan = rf.plan(model.eval(), rf.Ranks({other: 4}), data=data)
    small = rf.apply_(copy.deepcopy(model), plan).to(dtype)
    data = data.to(dtype)
    stored = rf.Stored(small, plan, {}, rf.bottlenecks(small, data, metric_samples=0))
    assert stored.plan[name].form is rf.Form.KEEP
    smaller = sliced(stored, {name: 3})
    entry = smaller.plan[name]
    assert (entry.form, entry.rank) == (rf.Form.FACTORED, 3)
    before, after = (outputs(one.model, name, data) for one in (stored, smaller))
    before, moved = before - before.mean(0), after - before
    moved = moved - moved.mean(0)  # of a layer without bias the BatchNorm behind takes the mean
    groups = 2 if name == "block.3" else 1
    parts = before.unflatten(1, (groups, -1)).movedim(1, 0)
    best = sum(float(torch.linalg.svdvals(part)[3:].square().sum()) for part in parts) ** 0.5
    assert float(moved.norm()) == pytest.approx(best, rel=1e-5 if dtype is torch.float64 else 0.05)
    assert float(moved.norm() / before.norm()) == pytest.approx(entry.predicted_error, rel=1e-2)
    cost, reference = (model_cost(copy.deepcopy(one.model).float(), images(1)) for one in (smaller, stored))
    assert smaller.plan.after.flops - stored.plan.after.flops == cost.flops - reference.flops
    assert smaller.plan.after.params == cost.params
    again = sliced(smaller, {name: 2})
    assert again.plan[name].rank == 2


def test_energy_and_ranks(artifact):
    smaller = rf.slice_(fresh(artifact), rf.KeepEnergy(0.8))
    changed = slice_costs(artifact.plan, smaller.plan)
    assert changed
    name = next(iter(changed))
    with pytest.raises(rf.SliceError, match="the layers that can are"):
        rf.slice_(fresh(artifact), rf.Ranks({"nowhere": 1}))
    with pytest.raises(rf.SliceError, match="ranks from 1 to"):
        rf.slice_(fresh(artifact), rf.Ranks({name: 99}))


def test_an_edited_plan_needs_an_example():
    model, _ = conv_net()
    data = images(100)
    plan = rf.plan(model.eval(), rf.Ranks({"head": 4, "block.0": 6}), data=data)
    entries = tuple(rf.Entry(**{**e.__dict__, "rank": 5}) if e.site == "block.0" else e for e in plan.entries)
    edited = plan.with_entries(entries)
    small = rf.apply_(copy.deepcopy(model), edited)
    stored = rf.Stored(small, edited, {}, rf.bottlenecks(small, data))
    with pytest.raises(rf.SliceError, match="edited"):
        rf.slice_(fresh(stored), "flops=0.9")
    smaller = rf.slice_(fresh(stored), "flops=0.9", example=images(1))
    assert model_cost(smaller.model, images(1)) == smaller.plan.after


def test_what_cannot_be_sliced_says_why(artifact):
    model, _ = conv_net()
    data = images(100)
    plan = rf.plan(model.eval(), rf.Ranks({"stem": 4}), "tucker", data)
    small = rf.apply_(copy.deepcopy(model), plan)
    smaller = rf.slice_(rf.Stored(small, plan, {}, rf.bottlenecks(small, data)), "flops=0.8")
    assert any("not sliced: stem (the ranks of tucker depend on" in note for note in smaller.plan.notes)
    lone = nn.Sequential(nn.Conv2d(3, 8, 3))
    plan = rf.plan(lone, rf.Ranks({"0": 4}), "tucker", data)
    small = rf.apply_(copy.deepcopy(lone), plan)
    with pytest.raises(rf.SliceError, match="0 \\(the ranks of tucker depend on"):
        rf.slice_(rf.Stored(small, plan, {}, rf.bottlenecks(small, data)), "flops=0.5")
    with pytest.raises(rf.SliceError, match=r"such as rankfold\.load\(DIR\) reads, got a str"):
        rf.slice_("small", "params=0.5")
    with pytest.raises(rf.SliceError, match="without its bottlenecks"):
        rf.slice_(rf.Stored(artifact.model, artifact.plan, {}), "flops=0.5")
    with pytest.raises(rf.SliceError, match="by latency"):
        rf.slice_(fresh(artifact), "latency=0.5")
    with pytest.raises(rf.SliceError, match="no budget"):
        rf.slice_(fresh(artifact), [])
    with pytest.raises(ValueError, match="not understood"):
        rf.slice_(fresh(artifact), "flop=0.5")
    with pytest.raises(ValueError, match="empty"):
        rf.bottlenecks(artifact.model, [])
    with pytest.raises(ValueError, match="NaN or infinite"):
        rf.bottlenecks(artifact.model, images(4) * float("nan"))
    for samples in (-1, 0, 5.0):
        with pytest.raises(ValueError, match=f"^samples must be at least 1, a whole number, got {samples}$"):
            rf.bottlenecks(artifact.model, images(4), samples=samples)


@pytest.mark.parametrize("given", [0.5, None, object(), ["params=0.5", 0.3]], ids=["number", "none", "object", "list"])
def test_what_is_no_budget_is_refused_before_anything_changes(artifact, given):
    stored = fresh(artifact)
    before = copy.deepcopy(stored.model.state_dict())
    with pytest.raises(rf.SliceError, match="a budget was expected, such as"):
        rf.slice_(stored, given)
    after = stored.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_trained_further_the_old_bottlenecks_are_refused_and_new_ones_are_right():
    model, _ = conv_net()
    data = images(300)
    stored = factored(model.double().eval(), data.double(), {"head": 4})
    with torch.no_grad():
        for weight in stored.model.get_submodule("head").parameters():
            weight.mul_(1.5).add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(rf.SliceError, match="measure them again"):
        rf.slice_(fresh(stored), "params=0.9")
    anew = rf.Stored(stored.model, stored.plan, {}, rf.bottlenecks(stored.model, data.double()))
    smaller = sliced(anew, {"head": 2})
    before, after = (outputs(one.model, "head", data.double()) for one in (anew, smaller))
    measured = float((after - before).norm() / (before - before.mean(0)).norm())
    assert measured == pytest.approx(slice_costs(anew.plan, smaller.plan)["head"][0], rel=1e-6)


def test_a_foreign_plan_changes_nothing(artifact):
    stored = fresh(artifact)
    made = plan_slice(stored.model, stored.plan, stored.bottlenecks, "flops=0.5")
    name = next(iter(slice_costs(stored.plan, made)))
    larger = tuple(rf.Entry(**{**e.__dict__, "rank": 500}) if e.site == name else e for e in made.entries)
    with pytest.raises(rf.SliceError, match="cannot be cut out of"):
        narrow_(stored.model, stored.plan, stored.bottlenecks, made.with_entries(larger))
    for key, tensor in artifact.model.state_dict().items():
        assert torch.equal(tensor, stored.model.state_dict()[key])


def test_bottlenecks_survive_a_file(artifact):
    known = artifact.bottlenecks
    again = Bottlenecks.from_bytes(known.to_bytes())
    assert (again.mark, again.samples, again.unreached) == (known.mark, known.samples, known.unreached)
    assert again.energy == pytest.approx(known.energy)
    assert again.sites.keys() == known.sites.keys()
    for name, one in known.sites.items():
        twin = again.sites[name]
        assert (one.norm, one.comparable, one.diagonal) == (twin.norm, twin.comparable, twin.diagonal)
        torch.testing.assert_close(twin.root, one.root, rtol=1e-6, atol=1e-6)
    budget = "flops=0.5"
    a, b = (rf.slice_(rf.Stored(copy.deepcopy(artifact.model), artifact.plan, {}, k), budget) for k in (known, again))
    assert [e.rank for e in a.plan.entries] == [e.rank for e in b.plan.entries]
    with pytest.raises(ValueError, match="not bottlenecks of rankfold"):
        Bottlenecks.from_bytes(b"nonsense, but long enough for a header")
    broken = known.to_bytes()[:-40]
    with pytest.raises(ValueError, match="not bottlenecks of rankfold"):
        Bottlenecks.from_bytes(broken)


@pytest.mark.parametrize("moved", ["bias", "statistics"])
def test_bottlenecks_belong_to_all_that_the_network_holds(moved, artifact, tmp_path):
    model = copy.deepcopy(artifact.model)
    tensors = model.named_buffers() if moved == "statistics" else model.named_parameters()
    ending = "running_mean" if moved == "statistics" else "bias"
    with torch.no_grad():
        next(tensor for name, tensor in tensors if name.endswith(ending)).add_(1)
    with pytest.raises(rf.SliceError, match="measured on other weights"):
        rf.slice_(rf.Stored(model, artifact.plan, {}, artifact.bottlenecks), "flops=0.5")
    with pytest.raises(rf.StoreError, match="measured on other weights"):
        rf.save(model, artifact.plan, tmp_path / "a", bottlenecks=artifact.bottlenecks)
    earlier = replace(artifact.bottlenecks, mark=artifact.bottlenecks.mark.partition("-")[0])
    rf.slice_(rf.Stored(model, artifact.plan, {}, earlier), "flops=0.5")  # those saved before know of weights alone


def test_store(artifact, tmp_path):
    place = rf.save(artifact.model, artifact.plan, tmp_path / "a", bottlenecks=artifact.bottlenecks)
    file = place / "bottlenecks.safetensors"
    assert rf.load(place, conv_net()[0]).bottlenecks.mark == artifact.bottlenecks.mark
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(rf.StoreError, match="bottlenecks\\.safetensors: damaged"):
        rf.load(place, conv_net()[0])
    rf.save(artifact.model, artifact.plan, place)
    assert not file.exists()
    assert rf.load(place, conv_net()[0]).bottlenecks is None
    other = copy.deepcopy(artifact.model)
    with torch.no_grad():
        name = next(site.name for site in factored_sites(other))
        other.get_submodule(name).down.weight.mul_(2)
    with pytest.raises(rf.StoreError, match="other weights"):
        rf.save(other, artifact.plan, place, bottlenecks=artifact.bottlenecks)


def test_hooks_modes_and_gradients_stay(artifact):
    model = copy.deepcopy(artifact.model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rf.bottlenecks(model, images(20))
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
