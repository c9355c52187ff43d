"""Layer after layer: each one fitted to the original, given what the compressed network feeds it."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from networks import NETWORKS, network
from torch import nn

import rankfold as rf
from rankfold.compress.applying.layer import build
from rankfold.compress.applying.promised import written_
from rankfold.compress.layerwise.kept import Kept
from rankfold.compress.layerwise.pairs import Pairs, Rows
from rankfold.compress.layerwise.preactivations import Following
from rankfold.compress.layerwise.rounds import divergence
from rankfold.compress.layerwise.sweep import Sweep
from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.maxnorm import MaxNorm
from rankfold.compress.methods.nuclear import NuclearBall
from rankfold.compress.methods.refit import refit
from rankfold.compress.methods.relu import ActivationAware
from rankfold.compress.methods.sequential import Sequential
from rankfold.compress.planning.plan import Entry
from rankfold.compress.planning.profile import Calibration
from rankfold.compress.statistics import calibrate
from rankfold.costs import evaluating
from rankfold.linalg.on_data.cross_moments import CrossMoments
from rankfold.linalg.on_data.ridge import RIDGES, Ridge, anchored_path, choose_ridge
from rankfold.linalg.programs.maxnorm import nuclear_max_norm
from rankfold.observe import Chain, Samples, Span
from rankfold.pipeline import layer_errors
from rankfold.sites import Factors, Form, opened, sites
from rankfold.sites import patches as places

METHODS = [Sequential(), Sequential(rounds=1, kept=False), ActivationAware(), NuclearBall(), MaxNorm(iterations=200)]


class Residual(nn.Module):
    """Two blocks whose second convolution meets a residual connection before its activation, and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 6)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.relu(self.second(self.first(x)) + x).mean((2, 3)))


def residual(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, x = Residual(), torch.randn(48, 3, 8, 8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 2)
                module.bias.data.normal_()
        model.train()(x)
    return model.eval(), x


@pytest.fixture(autouse=True)
def _every_patch(monkeypatch):
    """All patches and not a sample of them, so that promises are exact."""
    monkeypatch.setattr(places, "POSITIONS", 10**6)


def gather(original, current, site, data, rows=0):
    """Pairs of one site in two networks that are one block each."""
    span = Span(None, None, ((site.name,),))
    sweep = Sweep(
        original, current, Chain((), (span,), steady=False), {site.name: site}, Samples(data), (), Kept(), rows
    )
    with evaluating(original), evaluating(current):
        sweep.run_original(span, span.groups)
        return sweep.pairs(span, [site.name])[site.name]


def pre_activations(model: nn.Module, name: str, x: torch.Tensor):
    follower = Following()
    module = model.get_submodule(name)
    handle = module.register_forward_hook(lambda m, a, out: follower.produced(name, out))
    with torch.no_grad(), evaluating(model), follower:
        model(x)
    handle.remove()
    return follower.found[name]


@pytest.mark.parametrize("name", ["stem.0", "first.0", "second.0", "head"])
def test_a_layer_is_followed_to_the_activation_behind_it(name):
    model, x = residual()
    found = pre_activations(model, name, x)
    with torch.no_grad():
        stem = model.stem[:2](x)
        first = model.first[:2](stem.relu())
        second = model.second(first.relu()) + stem.relu()
        expected = {"stem.0": stem, "first.0": first, "second.0": second, "head": model(x)}[name]
    assert torch.equal(found.pre, expected)
    assert found.activation == ("" if name == "head" else "relu")
    if name != "head":
        norm = {"stem.0": model.stem[1], "first.0": model.first[1], "second.0": model.second[1]}[name]
        torch.testing.assert_close(found.scale.float(), norm.weight.detach() / (norm.running_var + norm.eps).sqrt())


def test_an_activation_in_place_leaves_what_it_was_given():
    model = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.3, inplace=True), nn.Linear(4, 2))
    x = torch.randn(5, 4)
    found = pre_activations(model, "0", x)
    assert torch.equal(found.pre, model[0](x))
    assert (found.activation, found.slope) == ("leaky_relu", 0.3)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.rounds}")
def test_the_predicted_error_is_the_error_at_the_pre_activation(method):
    """Where both networks run, on the calibration data, and the target is what the pre-activation lacks."""
    model, x = residual()
    model = model.double()
    data = list(x.double().split(12))
    plan = rf.plan(model, "params=0.6", method, data, calibration=Calibration(batch_size=12))
    small = rf.apply_(copy.deepcopy(model), plan)
    used = data if method.rounds == 1 and not getattr(method, "one_shot", False) else data[:-1]  # the last one judges
    assert plan.changed
    assert any(entry.form is not rf.Form.DENSE for entry in plan.changed)
    for entry in plan.changed:
        wrong, targets = [], []
        for batch in used:
            theirs, ours = (pre_activations(net, entry.site, batch) for net in (model, small))
            scale = 1.0 if theirs.scale is None else theirs.scale.reshape(1, -1, 1, 1)
            wrong.append(((theirs.pre - ours.pre) / scale).movedim(1, -1).flatten(0, -2))
            output = pre_activations_of_layer(small, entry.site, batch)
            targets.append(wrong[-1] + output)
        wrong, targets = torch.cat(wrong), torch.cat(targets)
        measured = float(wrong.square().sum() / (targets - targets.mean(0)).square().sum()) ** 0.5
        assert measured == pytest.approx(entry.predicted_error, rel=1e-5, abs=1e-7), entry


def pre_activations_of_layer(model: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    kept = []
    handle = model.get_submodule(name).register_forward_hook(lambda m, a, out: kept.append(out))
    with torch.no_grad():
        model(x)
    handle.remove()
    # what a BatchNorm takes up of the shift is constant, and does not change deviations
    return kept[0].movedim(1, -1).flatten(0, -2)


def test_given_the_inputs_no_other_matrix_of_that_rank_errs_less():
    """Theorem 3.1 with X̃ ≠ X against its formula (math: error² = ‖Y‖² − Σ s²), and against the symmetric solution."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 9, generator=generator).double()
    bent = x @ torch.randn(9, 9, generator=generator).double() + 0.3 * torch.randn(400, 9, generator=generator)
    layer = nn.Sequential(nn.Linear(9, 7)).double()
    site = sites(layer)[0]
    with torch.no_grad():
        y = layer(x)
    known = [CrossMoments(9, 7).update(bent[i::2], y[i::2]) for i in range(2)]
    full = refit(site, layer[0].weight.detach(), _pairs(known), None)
    centred, target = bent - bent.mean(0), y - y.mean(0)
    u = torch.linalg.qr(centred)[0]
    s = torch.linalg.svdvals(u.mT @ target)
    for rank in range(1, 7):
        left, right = full.decomposition(rf.Form.FACTORED, 0.0).factors(rank).parts[::-1]
        best = float((target.square().sum() - s[:rank].square().sum()) / target.square().sum()) ** 0.5
        assert full.error(left @ right) == pytest.approx(best, rel=2e-3)
        symmetric = SiteStatistics(calibrate(layer, [x], sites(layer), metric_samples=0).sites["0"].moments)
        wrong = Sequential().decompose(site, rf.Form.FACTORED, layer[0].weight.detach(), symmetric).factors(rank).parts
        assert full.error(wrong[1].double() @ wrong[0].double()) > 1.05 * best


def _pairs(folds):
    return Pairs(folds)


def test_a_fit_makes_good_what_earlier_layers_lost():
    model, x = residual()
    data = list(x.split(8))
    budget = "params=0.5"
    results = {}
    for method in ("project", Sequential(rounds=1), Sequential(rounds=1, kept=False)):
        plan = rf.plan(model, budget, method, data)
        small = rf.apply_(copy.deepcopy(model), plan)
        results[str(method)] = divergence(model, small, data)
    symmetric, *others = results.values()
    assert max(others) < 0.95 * symmetric, results  # whose ranks are chosen with positions taken together


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_fitted(name):
    model, batch = network(name)
    before = copy.deepcopy(model.state_dict())
    plan = rf.plan(model, "params=0.8", Sequential(), [batch] * 2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    small = rf.apply_(copy.deepcopy(model), plan)
    assert plan.after.params <= 0.8 * plan.before.params
    assert 0 <= divergence(model, small, [batch]) < float("inf")
    assert torch.is_grad_enabled()
    assert not any(hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_that_nothing_stands_before_stay_what_they_are(dtype):
    """In half precision the fit follows the rounding of the run: that is no reason to replace a layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5)).to(dtype)
    x = torch.randn(256, 8).to(dtype)
    plan = rf.plan(net, rf.Ranks({"2": 4}), rf.ActivationAware(rounds=1), x)
    assert [str(entry.form) for entry in plan.entries] == ["keep", str(plan["2"].form), "dense"]
    assert plan["2"].rank == 4
    assert plan["4"].note.startswith("fitted anew")
    small = rf.apply_(copy.deepcopy(net), plan)
    assert torch.equal(small[0].weight, net[0].weight)
    assert not torch.equal(small[4].weight, net[4].weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_fitted(dtype):
    model, batch = network("conv_net", dtype)
    plan = rf.plan(model, "params=0.7", Sequential(), [batch])
    small = rf.apply_(copy.deepcopy(model), plan)
    assert {p.dtype for p in small.parameters()} == {dtype}


def test_plans_of_fits_are_saved_with_their_factors(tmp_path):
    model, x = residual()
    plan = rf.plan(model, "params=0.5", Sequential(rounds=1), [x])
    plan.save(tmp_path / "a.json")
    loaded = rf.Plan.load(tmp_path / "a.json")
    assert loaded == plan
    assert loaded.factors.keys() == plan.factors.keys()
    here, there = (rf.apply_(copy.deepcopy(model), p) for p in (plan, loaded))
    assert torch.equal(here(x), there(x))
    (tmp_path / "a.factors.safetensors").unlink()
    with pytest.raises(rf.ApplyError, match=r"keep the file .*factors\.safetensors"):
        rf.apply_(copy.deepcopy(model), rf.Plan.load(tmp_path / "a.json"))


def test_damaged_factors_are_refused(tmp_path):
    model, x = residual()
    rf.plan(model, "params=0.5", Sequential(rounds=1), [x]).save(tmp_path / "a.json")
    file = tmp_path / "a.factors.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="factors of another plan"):
        rf.Plan.load(tmp_path / "a.json")


def test_a_rank_that_was_not_fitted_is_refused():
    model, x = residual()
    plan = rf.plan(model, "params=0.5", Sequential(rounds=1), [x])
    edited = plan.with_entries(tuple(replace(e, rank=e.rank - 1) if e.site == "second.0" else e for e in plan.entries))
    with pytest.raises(rf.ApplyError, match=r"second\.0 .*fitted at rank \d+: make the plan again"):
        rf.apply_(copy.deepcopy(model), edited)


class Interrupt(Exception):
    pass


def test_an_interrupted_fit_goes_on(tmp_path):
    model, x = residual()
    data = list(x.split(6))
    whole = rf.plan(model, "params=0.5", Sequential(), data, calibration=Calibration(batch_size=6))

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("fitting") and done == 2:
            raise Interrupt

    def go(progress=None) -> rf.Plan:
        return rf.plan(
            model, "params=0.5", Sequential(), data, directory=tmp_path, progress=progress,
            calibration=Calibration(batch_size=6),
        )  # fmt: skip

    with pytest.raises(Interrupt):
        go(stop)
    left = sorted(tmp_path.rglob("fit-*/*.safetensors"))
    assert len(left) >= 2
    left[-1].write_bytes(left[-1].read_bytes()[:-7])  # cut short while it was written
    told = []
    resumed = go(lambda *step: told.append(step))
    assert resumed == whole
    assert not any(what == "calibrating" for what, _, _ in told), "everything was measured again"
    for name, fitted in whole.factors.items():
        assert all(map(torch.equal, fitted.factors.parts, resumed.factors[name].factors.parts))


def test_what_was_left_of_another_request_is_not_taken_up(tmp_path):
    model, x = residual()
    for data in ([x], [2 * x]):
        plan = rf.plan(model, "params=0.5", Sequential(rounds=1), data, directory=tmp_path)
        fresh = rf.plan(model, "params=0.5", Sequential(rounds=1), data)
        assert plan == fresh


def test_errors_on_held_out_data_are_those_of_the_whole_network():
    model, x = residual()
    plan = rf.plan(model, "params=0.6", Sequential(rounds=1, one_shot=False), [x])
    again = layer_errors(model, plan, [x])
    for entry in plan.changed:
        assert again[entry.site] == pytest.approx(entry.predicted_error, rel=1e-3, abs=1e-4), entry
    other = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    fresh = layer_errors(model, plan, [other])
    assert all(0 < fresh[entry.site] < 3 for entry in plan.changed)


def test_a_memory_limit_changes_how_many_are_measured_at_a_time_and_not_the_plan(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(24, 24), nn.ReLU())), nn.Linear(24, 5))
    data = list(torch.randn(256, 24, generator=torch.Generator().manual_seed(0)).split(32))
    fits = Sequential(rounds=1, one_shot=False)  # within a limit factors in one shot are not there to compare with
    free = rf.plan(model, "params=0.5", fits, data)
    told = []
    limit = Calibration(memory=8 * 24 * 24 * 30)  # one layer at a time, fitted to both halves
    tight = rf.plan(model, "params=0.5", fits, data, calibration=limit, progress=lambda *step: told.append(step))
    assert max(total for what, _, total in told if what == "measuring part after part") > 1
    assert [(e.form, e.rank) for e in tight.entries] == [(e.form, e.rank) for e in free.entries]
    for name, fitted in free.factors.items():
        for a, b in zip(fitted.factors.parts, tight.factors[name].factors.parts, strict=True):
            torch.testing.assert_close(a, b)


def test_a_site_beyond_the_memory_limit_is_named_and_truncated():
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 8))
    data = [torch.randn(64, 40)]
    plan = rf.plan(model, "params=0.5", Sequential(rounds=1), data, calibration=Calibration(memory=4000))
    assert "bound of memory" in plan["0"].note
    rf.apply_(copy.deepcopy(model), plan)


def test_layers_that_calibration_never_reached_are_named():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            return self.used(x)

    plan = rf.plan(Half(), rf.Ranks({"used": 3, "unused": 3}), Sequential(rounds=1), [torch.randn(64, 12)])
    assert "never called on the calibration data" in plan["unused"].note
    assert not plan["used"].note
    assert any("unused" in note for note in plan.notes)


def test_few_samples_are_said():
    model = nn.Sequential(nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 30))
    ranks = rf.Ranks({"0": 8, "2": 8})
    data = list(torch.randn(24, 30, generator=torch.Generator().manual_seed(0)).split(4))
    plan = rf.plan(model, ranks, Sequential(rounds=1, one_shot=False), data, calibration=Calibration(batch_size=4))
    many = list(torch.randn(4000, 30, generator=torch.Generator().manual_seed(0)).split(500))
    enough = rf.plan(model, ranks, Sequential(rounds=1), many)
    single = rf.plan(model, ranks, Sequential(one_shot=False), [torch.cat(data)])
    for made in (plan, single):
        assert any("few" in entry.note for entry in made.entries)
        assert any("few samples" in note for note in made.notes)
    assert not any("few" in entry.note for entry in enough.entries)


def test_memory_is_in_bytes():
    with pytest.raises(ValueError, match="number of bytes"):
        Calibration(memory="2GB")


def test_the_iterative_rule_is_refused():
    model, x = residual()
    with pytest.raises(ValueError, match="fits layers only after their ranks are chosen"):
        rf.plan(model, "params=0.5", "sequential", [x], rule="iterative")


def test_activations_that_are_not_finite_name_the_site():
    model, x = residual()
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"stem\.0 .*NaN or infinite"):
        rf.plan(model, "params=0.5", "sequential", [x])


@pytest.mark.parametrize("form", [rf.Form.FACTORED, rf.Form.SPATIAL])
@pytest.mark.parametrize("name", ["first.0", "second.0"])
def test_behind_a_relu_the_descent_gains_what_it_says(form, name):
    model, x = residual()
    with opened(model):
        site = sites(model)[name]
        solved = {}
        for method in (ActivationAware(), Sequential()):
            found = gather(model, model, site, [x], 10**6)
            solved[method.name] = method.solve(site, form, 4, site.weight(model), None, found, None)
    assert found.activation == "relu"
    losses = {}
    before = pre_activations(model, name, x)
    inputs = model.stem(x) if name == "first.0" else model.first(model.stem(x))
    with torch.no_grad():
        output = model.get_submodule(name)(inputs)
        for key, solution in solved.items():
            right, left = (part.double() for part in solution.factors.parts)
            new = site.layer.geometry(form).put(site.weight(model), left @ right).float()
            now = nn.functional.conv2d(inputs, new, padding=1) + solution.factors.shift.reshape(1, -1, 1, 1)
            pre = before.pre + before.scale.reshape(1, -1, 1, 1) * (now - output)
            shown = (before.pre > 0).double().mean((0, 2, 3)).clamp_min(0.05) * before.scale.square()
            losses[key] = float(((pre.relu() - before.pre.relu()).square().mean((0, 2, 3)) / shown).sum())
    gain = 1 - losses["relu"] / losses["sequential"]
    assert gain > 0.005
    said = float(re.match(r"loss behind relu -([\d.]+)% in \d+ iterations", solved["relu"].certificate)[1]) / 100
    assert said == pytest.approx(gain, abs=0.05)  # the descent also counts the ridge


def test_the_convex_program_behind_a_relu_is_certified():
    model, x = residual()
    method = ActivationAware(rounds=1, convex=True, forms=frozenset({rf.Form.FACTORED}))
    plan = rf.plan(model, rf.Ranks({"first.0": 6, "second.0": 6}), method, [x])
    assert "relative duality gap" in plan["first.0"].certificate
    assert "another branch" in plan["second.0"].note
    small = rf.apply_(copy.deepcopy(model), plan)
    with torch.no_grad():
        wanted, found = (torch.relu(net.first[:2](net.stem(x))) for net in (model, small))
    assert (found - wanted).norm() < 0.5 * (wanted - wanted.mean((0, 2, 3), keepdim=True)).norm()


def test_the_convex_program_behind_a_relu_has_the_bound_of_the_theorem(monkeypatch):
    """|X̃Z| ≤ α, the largest output that is to be imitated: without it hidden outputs run away."""
    seen = []

    def spied(rows, y, **limits):
        fit = nuclear_max_norm(rows, y, **limits)
        seen.append((float((rows @ fit.weight.mT).abs().max()), limits["bound"], float(y.max())))
        return fit

    monkeypatch.setattr("rankfold.compress.methods.relu.nuclear_max_norm", spied)
    model, x = residual()
    method = ActivationAware(rounds=1, convex=True, forms=frozenset({rf.Form.FACTORED}))
    rf.plan(model, rf.Ranks({"first.0": 6}), method, [x])
    ((largest, bound, shown),) = seen
    assert largest <= bound * (1 + 1e-9)
    assert shown <= bound < 100 * shown


def test_the_nuclear_ball_shrinks_and_after_debiasing_is_the_projection():
    model, x = residual()
    ranks = rf.Ranks({"stem.0": 3})
    made = {
        key: rf.plan(model, ranks, method, [x])
        for key, method in (
            ("ball", NuclearBall()), ("debiased", NuclearBall(debias=True)),
            ("cut", Sequential(rounds=1, kept=False, one_shot=False)),
        )
    }  # fmt: skip
    assert made["ball"]["stem.0"].predicted_error > made["cut"]["stem.0"].predicted_error
    if made["cut"]["stem.0"].form is made["debiased"]["stem.0"].form:
        assert made["debiased"]["stem.0"].predicted_error == pytest.approx(made["cut"]["stem.0"].predicted_error)
    assert "exact in the nuclear-norm ball" in made["ball"]["stem.0"].certificate


def test_the_max_norm_program_states_its_gap():
    model, x = residual()
    plan = rf.plan(model, rf.Ranks({"second.0": 3}), MaxNorm(), [x])
    assert "relative duality gap" in plan["second.0"].certificate


def test_pairs_come_from_the_compressed_network():
    model, x = residual()
    bent = copy.deepcopy(model)
    with torch.no_grad():
        bent.stem[0].weight.mul_(0.5)
    with opened(model):
        site = sites(model)["second.0"]
        found = gather(model, bent, site, [x])
        same = gather(model, model, site, [x])
    with torch.no_grad():
        inputs = bent.first(bent.stem(x))
    rows = places.patches(model.second[0], inputs).double()
    torch.testing.assert_close(found.moments.inputs.mean, rows.mean(0))
    with torch.no_grad():
        y = model.second[0](model.first(model.stem(x))).movedim(1, -1).flatten(0, -2).double()
    torch.testing.assert_close(same.moments.target_mean, y.mean(0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found.moments.target_mean, y.mean(0), atol=1e-3), "the residual branch was lost unseen"


def test_cross_moments_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 50, 5, generator=generator) + 3, torch.randn(2, 50, 4, generator=generator) - 1
    parts = CrossMoments(5, 4, groups=2)
    for start in range(0, 50, 7):
        parts.update(x[:, start : start + 7], t[:, start : start + 7])
    parts = CrossMoments.from_state_dict(parts.state_dict())
    x, t = x.double(), t.double()
    centred, target = x - x.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    torch.testing.assert_close(parts.gram, centred.mT @ centred / 50)
    torch.testing.assert_close(parts.cross, centred.mT @ target / 50)
    torch.testing.assert_close(parts.energy, target.square().mean(1))
    torch.testing.assert_close(parts.target_mean, t.mean(1))


def test_the_ridge_is_the_one_that_predicts_the_other_half():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 20, generator=generator).double()
    folds = []
    for _ in range(2):
        x = torch.randn(24, 20, generator=generator).double()
        t = x @ truth.mT + 3 * torch.randn(24, 3, generator=generator)
        folds.append(CrossMoments(20, 3).update(x, t))
    anchor = truth + 0.1 * torch.randn(3, 20, generator=generator)
    chosen = choose_ridge([(folds[0], folds[1]), (folds[1], folds[0])], anchor)
    assert isinstance(chosen, Ridge)
    assert chosen.held_out is not None
    assert chosen.value == pytest.approx(max(RIDGES)), "noise is large and the anchor near: stay there"
    near, far = anchored_path(folds[0].gram, folds[0].cross, anchor, [1e6, 1e-9])
    torch.testing.assert_close(near, anchor, atol=1e-4, rtol=0)
    assert (far - anchor).norm() > 1


@pytest.mark.parametrize("size", [0, 1, 3])
def test_factors_with_a_shift_of_another_layer_are_refused(size):
    """One number would go to every output without a word."""
    net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    site = sites(net)["0"]
    factors = Factors((torch.randn(2, 12), torch.randn(20, 2)), torch.ones(size))
    new = build(net[0], site, Entry("0", Form.FACTORED, 2, (20, 12), bias=True)).to_empty(device="cpu")
    with pytest.raises(ValueError, match=r"0 \(Linear 20×12\): the method must give a shift for the 20 outputs"):
        written_(site, Form.FACTORED, 2, new, factors)
    written_(site, Form.FACTORED, 2, new, replace(factors, shift=torch.ones(20)))


def test_of_all_forms_those_over_a_base_are_not_fitted():
    plan = rf.plan(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12)), "bytes=0.4", Sequential(),
                   [torch.randn(64, 12)], forms="all")  # fmt: skip
    assert plan.changed
    assert not any(entry.form.over_base for entry in plan.entries)


@pytest.mark.parametrize("method", [Sequential, NuclearBall, MaxNorm, ActivationAware])
def test_the_inner_metric_says_of_a_wide_layer_what_the_metric_does(method):
    """Of a layer with more outputs than inputs WᵀDW alone is gathered where a model is one of tokens; with it every
    method makes what it makes with the D that lies in the outputs' space."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 14, bias=False)).double()
    (site,) = sites(net).reducible
    weight = net[0].weight.detach()
    x = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    basis = torch.linalg.qr(weight)[0]
    spread = basis @ torch.randn(6, 20, dtype=torch.float64)
    outside = torch.eye(14, dtype=torch.float64) - basis @ basis.mT
    metric = spread @ spread.mT + 1e-6 * outside  # there nothing lies that counts
    known = _pairs([CrossMoments(6, 14).update(x[i::2], (x @ weight.T)[i::2]) for i in range(2)])
    known.rows = Rows([x], [x @ weight.T], [torch.zeros(400, 14, dtype=torch.float64)])
    known.activation = "relu" if method is ActivationAware else ""
    made = [
        method(damping=0.0).solve(site, Form.FACTORED, 3, weight, None, known, given)
        for given in (metric, weight.mT @ metric @ weight)
    ]
    one, other = (solved.factors.parts[1] @ solved.factors.parts[0] for solved in made)
    assert (one - other).norm() < 1e-4 * one.norm()
    if method is MaxNorm:  # its fit is of that rank already: the metric weighs nothing
        return
    plain = method(damping=0.0).solve(site, Form.FACTORED, 3, weight, None, known, None)
    assert (plain.factors.parts[1] @ plain.factors.parts[0] - one).norm() > 1e-2 * one.norm()


def test_a_transposed_convolution_says_that_it_is_one():
    """Its note was that of experts that choose their tokens, as if something of the data had been in the way."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.ConvTranspose2d(16, 12, 2, 2), nn.ReLU(),
        nn.Conv2d(12, 3, 1),
    ).eval()  # fmt: skip
    made = rf.plan(net, rf.Ranks({"0": 4, "3": 6}), "sequential", torch.randn(64, 1, 8, 8))
    assert made["3"].note == (
        "fitted to the original's own inputs: inputs and outputs of ConvTranspose2d are not paired"
    )
    assert made["5"].note.startswith("fitted anew, at its size, to make good what earlier layers have changed")
