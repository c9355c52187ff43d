"""A profile: measured once, asked often; what it forecasts is met on new data; written and read back whole."""

import copy

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.compress.methods.project import Project
from rankfold.compress.planning import decide
from rankfold.compress.planning.candidates import decompose
from rankfold.compress.statistics import calibrate
from rankfold.sites import sites

RULES = ["optimal", "local", "global", rf.Iterative(step=40, samples=20)]
BUDGETS = ["params=0.7", "flops=0.5", ["flops=0.6", "params=0.6"], "energy=0.9", "bytes=0.5", rf.Ranks({"2": 3})]
D = 256


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(108, 24), nn.ReLU(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


def images(count: int = 200, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def labelled(count: int = 200, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return images(count, seed), torch.randint(5, (count,), generator=torch.Generator().manual_seed(seed))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value for _, value in sorted(model.state_dict().items())]


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


# asked often


@pytest.mark.parametrize("method", ["project", "truncate", "tucker"])
def test_it_gives_the_plans_that_plan_gives(method):
    known = rf.profile(network(), labelled(), method=method)
    for budget in ("params=0.9", *BUDGETS[:3]):
        for rule in RULES[:3]:
            assert _plan(known, budget, rule) == _made(budget, method, rule), (budget, rule)


def test_budgets_that_differ_in_their_fractions_share_their_options(monkeypatch):
    asked, options = [], decide.options
    monkeypatch.setattr(decide, "options", lambda *given: asked.append(given) or options(*given))
    known = rf.profile(network(), labelled())
    for fraction in (0.8, 0.6, 0.5):
        known.plan(f"flops={fraction}")
        known.plan([f"flops={fraction}", rf.Multiples(2)])
        known.plan([f"flops={fraction}", "energy=0.5"])
    assert len(asked) == 2 + 3, "once for each kind, and with an energy each time"


def _made(budget, method, rule) -> rf.Plan | str:
    try:
        return rf.plan(network(), budget, method, labelled(), rule=rule)
    except rf.BudgetError as error:
        return str(error)


@pytest.mark.parametrize("method", ["project", "truncate", "tucker", "cp", "sequential"])
def test_apply_with_it_and_without_it_are_equal_to_the_bit(method):
    known = rf.profile(network(), labelled(), method=method)
    plan = known.plan("params=0.9")
    assert plan.changed
    assert equal(rf.apply_(network(), plan, known), rf.apply_(network(), plan))


def test_one_of_another_model_is_refused_before_any_change():
    known, other = rf.profile(network(), labelled()), network(1)
    plan = rf.plan(other, "params=0.6", data=labelled())
    before = copy.deepcopy(other)
    with pytest.raises(rf.ApplyError, match="the profile was made of another model than the plan"):
        rf.apply_(other, plan, known)
    assert equal(other, before)


# written and read back


@pytest.mark.parametrize("method", ["project", "truncate", "tucker"])
def test_plans_from_the_file_are_those_from_memory(method, tmp_path):
    known = rf.profile(network(), labelled(), method=method)
    file = tmp_path / "profile.safetensors"
    known.save(file)
    read = rf.Profile.load(file, network(), labelled())
    for budget in BUDGETS:
        for rule in RULES:
            if rule == RULES[-1] and (method == "tucker" or budget in ("energy=0.9", BUDGETS[-1])):
                continue
            wanted, found = (_plan(each, budget, rule) for each in (known, read))
            assert found == wanted, (budget, rule)
    plan = read.plan("params=0.9")
    assert equal(rf.apply_(network(), plan, read), rf.apply_(network(), plan, known))
    assert equal(rf.apply_(network(), plan), rf.apply_(network(), plan, known))
    read.save(tmp_path / "again.safetensors")
    assert rf.Profile.load(tmp_path / "again.safetensors", network(), labelled()).plan("params=0.9") == plan


def _plan(known: rf.Profile, budget, rule) -> rf.Plan | str:
    try:
        return known.plan(budget, rule)
    except rf.BudgetError as error:
        return str(error)


def test_without_data_it_plans_all_the_same_or_says_that_it_needs_them(tmp_path):
    file, other = tmp_path / "project", tmp_path / "truncate"
    known = rf.profile(network(), labelled())
    known.save(file)
    assert rf.Profile.load(file, network()).plan("params=0.6") == known.plan("params=0.6")
    priced = rf.profile(network(), labelled(), method="truncate")
    priced.save(other)
    with pytest.raises(ValueError, match="this needs data: give data="):
        rf.Profile.load(other, network()).plan("params=0.6")
    plan = priced.plan("params=0.6")  # what the probes found is known from now on
    priced.save(other)
    assert rf.Profile.load(other, network()).plan("params=0.6") == plan
    assert rf.Profile.load(other, network()).plan("params=0.6", "global") == priced.plan("params=0.6", "global")


def test_for_the_same_network_in_another_precision_that_is_said(tmp_path):
    file = tmp_path / "profile.safetensors"
    rf.profile(network(), labelled()).save(file)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(ValueError, match="of the same network in float32: load it for that"):
            rf.Profile.load(file, network().to(dtype))
    with pytest.raises(ValueError, match="of another model, or of other weights"):
        rf.Profile.load(file, network(1))


def test_other_models_and_damaged_files_are_refused_in_one_line(tmp_path):
    file = tmp_path / "profile.safetensors"
    rf.profile(network(), labelled()).save(file)
    whole = file.read_bytes()
    smaller = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    for model, data in (
        (network(1), whole),
        (smaller, whole),
        (network(), whole[:-40]),
        (network(), whole[: len(whole) // 2]),
        (network(), b""),
        (network(), b"nonsense, but long enough for a header"),
        (network(), whole.replace(b"rankfold.profile", b"rankfold.profilf")),
        (network(), whole.replace(b'"project', b'"projekt').replace(b'\\"project', b'\\"projekt')),
    ):
        file.write_bytes(data)
        with pytest.raises(ValueError) as error:
            rf.Profile.load(file, model, labelled())
        assert "\n" not in str(error.value)
        assert str(file) in str(error.value)
    rf.plan(network(), "params=0.6", "truncate", example=images(1)).save(file)
    with pytest.raises(ValueError, match="profile"):
        rf.Profile.load(file, network())
    with pytest.raises(ValueError, match="makes its factors only after ranks are chosen"):
        rf.profile(network(), labelled(), method="sequential").save(file)


# forecasts


def planted(m: int = D, n: int = D, seed: int = 0) -> nn.Module:
    """One layer whose outputs fall off slowly."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(n, m).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5)
    return nn.Sequential(layer, nn.Identity()).eval()


def normal(count: int, seed: int, n: int = D) -> torch.Tensor:
    scale = torch.linspace(1, 0.2, n, dtype=torch.float64)
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def measured(model: nn.Module, small: nn.Module, inputs: torch.Tensor) -> float:
    """Error of the output on new data, as a fraction of its deviation."""
    with torch.no_grad():
        outputs = model(inputs)
        return float((small(inputs) - outputs).norm() / (outputs - outputs.mean(0)).norm())


def at_rank(known: rf.Profile, rank: int) -> rf.Plan:
    return known.plan(rf.Ranks({"0": rank}))


def test_with_few_samples_nothing_is_lost_on_them_and_the_forecast_says_so_of_others():
    model, x = planted(), normal(32, 1)
    known = rf.profile(model, x, method=Project(ridge=0.0))
    candidate, _ = known.candidates["0"]  # the same decomposition, as a pair of factors and by rows
    in_sample = Project().decompose(
        candidate.site, rf.Form.FACTORED, model[0].weight, known.statistics.sites["0"], model[0].bias
    )
    assert in_sample.relative_error(31) < 1e-6
    assert measured(model, _projected(model, in_sample, 31), x) < 1e-6
    assert candidate.relative_error(31) > 0.2
    entry = at_rank(known, 31)["0"]
    assert entry.predicted_error == candidate.relative_error(31)
    small = rf.apply_(copy.deepcopy(model), at_rank(known, 31), known)
    found = measured(model, small, normal(4000, 2))
    assert 0.7 < entry.predicted_error / found < 1.3  # from four held-out samples


def _projected(model: nn.Module, made, rank: int) -> nn.Module:
    factors = made.factors(rank)
    small = copy.deepcopy(model)
    with torch.no_grad():
        small[0].weight.copy_(factors.parts[1] @ factors.parts[0])
        small[0].bias.add_(factors.shift)
    return small


@pytest.mark.parametrize("rank", [10, 60, 150])
def test_with_many_samples_the_forecast_is_what_new_data_show(rank):
    model = planted()
    known = rf.profile(model, normal(4000, 1), calibration=rf.Calibration(samples=4000))
    plan = at_rank(known, rank)
    found = measured(model, rf.apply_(copy.deepcopy(model), plan, known), normal(4000, 2))
    assert plan["0"].predicted_error == pytest.approx(found, rel=0.02)


def test_the_error_on_the_samples_themselves_is_no_forecast():
    """What the test above is worth."""
    model, x = planted(), normal(300, 1)
    known = rf.profile(model, x)
    candidate, _ = known.candidates["0"]  # the same decomposition, as a pair of factors and by rows
    found = measured(model, rf.apply_(copy.deepcopy(model), at_rank(known, 150), known), normal(4000, 2))
    assert candidate.relative_error(150) == pytest.approx(found, rel=0.1)
    in_sample = Project().decompose(
        candidate.site, rf.Form.FACTORED, model[0].weight, known.statistics.sites["0"], model[0].bias
    )
    assert in_sample.relative_error(150) < 0.8 * found


@pytest.mark.parametrize("samples", [24, 48, 96])
def test_a_ridge_weighed_on_held_out_samples_helps_on_new_inputs(samples):
    """Mean over seeds and ranks; where rows are many, none is weighed."""
    ratios = []
    for seed in range(4):
        model, x, new = planted(64, 96, seed), normal(samples, seed + 10, 96), normal(2000, seed + 50, 96)
        found = sites(model)
        statistics = calibrate(model, [x], found, samples=None)
        weighed = decompose(model, found, Project(), statistics, lambda *a: None).candidates["0"][0]
        plain = Project().decompose(found[0], rf.Form.FACTORED, model[0].weight, statistics.sites["0"], model[0].bias)
        for rank in (8, 16, 24):
            with_it, without = (_new_error(model, made, rank, new) for made in (weighed.decomposition, plain))
            ratios.append(with_it / without)
    assert sum(ratios) / len(ratios) < 0.97
    assert max(ratios) < 1.03


def _new_error(model: nn.Module, made, rank: int, new: torch.Tensor) -> float:
    return measured(model, _projected(model, made, rank), new)


def test_many_rows_weigh_no_ridge():
    known = rf.profile(planted(24, 32), normal(2000, 1, 32))
    assert [candidate.ridge for candidate in known.candidates["0"]] == [0.0, 0.0]
    assert known.decomposed == 2  # one for the forecast
    assert known.weighed == 1
