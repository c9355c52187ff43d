"""One form, method, rule, budget, layer type, objective and estimator of a user's own go the whole way."""

import ast
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import rankfold, succeeded
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rankfold as rf
from rankfold.compress.methods.project import Project
from rankfold.testing import check_form, check_method, check_objective, check_reader

MINE = Path(__file__).parents[1] / "mine"
OBJECTS = sorted(file for file in MINE.glob("*.py") if file.stem not in ("__init__", "networks"))


def statements(text: str) -> int:
    """Lines of a module that are code: no docstring, no comment, no blank."""
    tree = ast.parse(text)
    told = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = text.splitlines()
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and at not in told for at, line in enumerate(lines, 1)
    )


@pytest.mark.parametrize("file", OBJECTS, ids=lambda file: file.stem)
def test_each_is_short_and_takes_public_names_alone(file):
    text = file.read_text()
    assert statements(text) <= 40
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("rankfold"):
            assert node.module in (
                "rankfold.forms",
                "rankfold.sites",
                "rankfold.linalg",
                "rankfold.objectives",
                "rankfold.recover",
            )
            assert not any(alias.name.startswith("_") for alias in node.names)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr != "__init__":
            raise AssertionError(f"{file.name}: {node.attr} is no public name")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def rows(count: int = 300, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))


def the_whole_way(model, budget, tmp_path, *, example, data=None, **how):
    """Plan, write, read, apply, save, load: the outputs stay those of the plan applied at once. The plan's cost is the
    network's own. Returns the plan and the compressed network."""
    known = rf.profile(model, data, example=example, **{k: v for k, v in how.items() if k != "rule"})
    made = known.plan(budget, how.get("rule", "optimal"))
    made.save(tmp_path / "plan.json")
    read = rf.Plan.load(tmp_path / "plan.json")
    assert read == made
    small = rf.apply_(copy.deepcopy(model), made, known)
    again = rf.apply_(copy.deepcopy(model), read)
    assert torch.equal(small(example), again(example))
    assert rf.model_cost(small, example) == made.after
    rf.save(small, made, tmp_path / "saved")
    stored = rf.load(tmp_path / "saved", copy.deepcopy(model))
    assert stored.plan == made
    assert torch.equal(stored.model(example), small(example))
    return made, small


@pytest.mark.parametrize("method", ["truncate", "project"])
def test_a_form(mine, method, tmp_path):
    pivoted = mine.form.PIVOTED
    made, small = the_whole_way(network(), "params=0.7", tmp_path, example=rows(1), data=rows(), method=method)
    assert {pivoted} <= {entry.form for entry in made.changed} <= {pivoted, rf.Form.PIVOTED}  # they cost the same
    assert any(isinstance(module, mine.form.PivotedLinear) for module in small.modules())
    plain = [entry.form if entry.form is rf.Form.KEEP else rf.Form.FACTORED for entry in made.entries]
    product = made.with_entries(tuple(_with(entry, form) for entry, form in zip(made.entries, plain, strict=True)))
    torch.testing.assert_close(rf.apply_(network(), product)(rows()), small(rows()), rtol=1e-4, atol=1e-5)
    profile = rf.profile(network(), rows(), method=method)
    profile.save(tmp_path / "profile")
    assert rf.Profile.load(tmp_path / "profile", network(), rows()).plan("params=0.7") == profile.plan("params=0.7")


def _with(entry, form):
    from dataclasses import replace

    return replace(entry, form=form)


def test_a_form_in_a_file_is_asked_for_by_name(mine, tmp_path):
    made = rf.plan(network(), "params=0.7", "truncate", example=rows(1))
    assert mine.form.PIVOTED not in {entry.form for entry in made.entries}  # nobody has registered it yet
    made = rf.plan(network(), "params=0.7", "truncate", example=rows(1))
    made.save(tmp_path / "plan.json")
    from rankfold.forms import form

    del form._REGISTERED["my-pivoted"]
    with pytest.raises(ValueError, match=r"no form named 'my-pivoted'.*rankfold\.forms\.register") as error:
        rf.Plan.load(tmp_path / "plan.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["optimal", "local", "global"])
def test_a_method(mine, rule, tmp_path):
    made, small = the_whole_way(
        network(), "params=0.6", tmp_path, example=rows(1), method=mine.method.COLUMNS, rule=rule
    )
    assert made.method == "columns"
    first = made.changed[0]
    if first.form is not rf.Form.FACTORED:  # then its rows are combined anew
        small = rf.apply_(network(), made.with_entries((_with(first, rf.Form.FACTORED),)), method=mine.method.COLUMNS)
    assert int((small.get_submodule(first.site).down.weight != 0).sum()) == first.rank


def test_a_method_with_the_probes_of_data(mine, tmp_path):
    method = mine.method.COLUMNS.name
    the_whole_way(network(), "flops=0.6", tmp_path, example=rows(1), data=rows(), method=method)


@pytest.mark.parametrize("method", ["sequential", "relu"])
def test_a_form_in_a_sweep(mine, method):
    pivoted = mine.form.PIVOTED
    made = rf.plan(network(), "params=0.7", method, rows())
    assert pivoted in {entry.form for entry in made.changed}
    small = rf.apply_(network(), made)
    assert rf.model_cost(small, rows(1)).params == made.after.params


@pytest.mark.parametrize("method", ["truncate", "project", "sequential"])
def test_a_rule(mine, method):
    made = rf.plan(network(), "params=0.6", method, rows(), rule=mine.rule.LAST_FIRST)
    assert made.rule == "last first"
    assert made.calibration["rule"] == {"name": "last first"}
    assert [entry.site for entry in made.changed][-1] == "4"
    assert made.after.params <= 0.6 * made.before.params
    assert rf.Plan.from_json(made.to_json()) == made
    rf.apply_(network(), made)(rows())
    assert rf.plan(network(), "params=0.6", method, rows(), rule="last first") == made


@pytest.mark.parametrize("rule", ["optimal", "local", "global", "iterative"])
def test_a_budget(mine, rule, tmp_path):
    budget = mine.budget.Energy(0.6)
    made, _ = the_whole_way(network(), budget, tmp_path, example=rows(1), data=rows(), method="truncate", rule=rule)
    assert made.budgets == (budget,)
    assert budget.of(made.after) <= 0.6 * budget.of(made.before)
    both = rf.plan(network(), [budget, "flops=0.5"], "truncate", rows())
    assert both.after.flops <= 0.5 * both.before.flops
    assert budget.of(both.after) <= 0.6 * budget.of(both.before)


@pytest.mark.parametrize("method", ["truncate", "project", "sequential", "relu"])
@pytest.mark.parametrize("rule", ["optimal", "iterative"])
def test_a_layer_type(mine, method, rule, tmp_path):
    if rule == "iterative" and method in ("sequential", "relu"):
        return
    torch.manual_seed(0)
    model = nn.Sequential(mine.layer.Mix(10, 24), nn.Tanh(), mine.layer.Mix(24, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    assert [(site.kind, site.parameter, site.shape) for site in rf.sites(model)][:2] == [
        ("Mix", "0.kernel", (24, 10)),
        ("Mix", "2.kernel", (16, 24)),
    ]
    made, small = the_whole_way(model, "params=0.5", tmp_path, example=rows(1), data=rows(), method=method, rule=rule)
    assert {"0", "2"} & {entry.site for entry in made.changed}
    # what an ordinary layer with the same matrix becomes
    plain = nn.Sequential(*(_ordinary(module) for module in model)).eval()
    same = rf.apply_(plain, rf.plan(plain, "params=0.5", method, rows(), rule=rule))
    if method == "truncate":
        torch.testing.assert_close(same(rows()), small(rows()), rtol=1e-4, atol=1e-5)


def _ordinary(module: nn.Module) -> nn.Module:
    if not hasattr(module, "kernel"):
        return module
    layer = nn.Linear(*module.kernel.shape, bias=False)
    layer.weight.data = module.kernel.detach().T.clone()
    return layer


def test_a_layer_that_overrides_the_forward_of_torch_s_own(mine):
    from rankfold.sites import LinearLayer, register_reader

    class Scaled(nn.Linear):
        def __init__(self, *size):
            super().__init__(*size)
            self.register_buffer("calls", torch.zeros(()))  # what else it does is not known

        def forward(self, x):
            return super().forward(x)

    model = nn.Sequential(Scaled(8, 6), nn.ReLU())
    assert not len(rf.sites(model))
    register_reader(lambda m: LinearLayer("Scaled", (6, 8), True) if type(m) is Scaled else None)
    assert [site.kind for site in rf.sites(model)] == ["Scaled"]


@pytest.mark.parametrize("name", ["worst error", "within"])
def test_an_objective(mine, name, tmp_path):
    objective = mine.objectives.WORST if name == "worst error" else mine.objectives.WITHIN
    model, data = mine.networks.regression(), mine.networks.part(200, 1)
    made, small = the_whole_way(
        model, "params=0.7", tmp_path, example=data[0][:1], data=data, method="project", objective=name
    )
    assert made.calibration["objective"] == name
    before, after = (rf.evaluate(each, mine.networks.part(60, 2), objective=name).judged for each in (model, small))
    assert before.name == after.name == name
    assert abs(before.better(after)) < 0.2
    tuned = copy.deepcopy(small)
    rf.fit(tuned, data, None, rf.Recipe(epochs=2, batch_size=50), objective=objective)


def test_an_estimator(mine):
    whole = np.outer(np.arange(1.0, 13), np.arange(1.0, 9)) / 20
    known = np.where(np.random.default_rng(0).random(whole.shape) < 0.7, whole, np.nan)
    found = mine.estimator.Impute(1).fit(known)
    assert (found.converged_, found.rank_) == (True, 1)
    assert "residual" in found.reason_
    np.testing.assert_allclose(found.reconstruct(), whole, rtol=1e-4)
    np.testing.assert_allclose(found.transform(known), whole, rtol=1e-4)
    from sklearn.base import clone

    assert clone(found).get_params()["rank"] == 1


def test_the_laws_that_the_package_ships(mine):
    torch.manual_seed(0)
    check_form(mine.form.PIVOTED, nn.Linear(9, 7), torch.randn(3, 9))
    check_form(mine.form.PIVOTED, nn.Linear(6, 11, bias=False), torch.randn(3, 4, 6))
    check_method(mine.method.COLUMNS, nn.Linear(6, 9), torch.randn(20, 6))
    check_reader(mine.layer.read_mix, mine.layer.Mix(8, 6), torch.randn(3, 8))
    batch = torch.randn(12, 3), torch.randn(12, 2)
    for objective in (mine.objectives.WORST, mine.objectives.WITHIN):
        model = nn.Linear(3, 2)
        model.weight.grad = kept = torch.ones(2, 3)
        check_objective(objective, model, batch)
        assert model.weight.grad is kept
        assert bool((kept == 1).all())
        assert model.bias.grad is None


def test_the_law_of_objectives_takes_data_in_every_form():
    torch.manual_seed(0)
    x, y, model = torch.randn(10, 3), torch.randint(0, 2, (10,)), nn.Linear(3, 2)
    named = [{"input": x[i : i + 5], "labels": y[i : i + 5]} for i in (0, 5)]
    check_objective(rf.Classification(), model, DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True))
    check_objective(rf.Classification(), model, [(x[:4], y[:4]), (x[4:], y[4:])])
    check_objective(rf.Classification(), model, named)
    with pytest.raises(ValueError, match=r"classification: the batches do not fit together .*give one batch"):
        check_objective(rf.Classification(), nn.LazyLinear(2), [(x[:4], y[:4]), (x[4:, :2], y[4:])])


@pytest.mark.parametrize("size", [7, 9, 12])
def test_a_method_is_held_to_the_patches_that_it_was_calibrated_on(size):
    """Of more than 32 places of an image some are taken."""
    torch.manual_seed(0)
    check_method(Project(), nn.Conv2d(4, 8, 3), torch.randn(32, 4, size, size))
    check_method(Project(), nn.Conv2d(4, 8, 3, groups=2, stride=2), torch.randn(32, 4, 2 * size, 2 * size))


def test_all_of_them_from_the_command_line(mine, tmp_path):
    """The module of the network registers what a plan names."""
    model, data = mine.networks.regression(), mine.networks.part(200, 1)
    budgets = ["params=0.7", mine.budget.Energy(0.9)]
    made = rf.plan(model, budgets, "columns", data, rule="last first", objective="worst error")
    assert {entry.form for entry in made.changed} >= {mine.form.PIVOTED}
    made.save(tmp_path / "plan.json")
    spec = "mine.networks:regression"
    told = succeeded("apply", spec, tmp_path / "plan.json", "-o", tmp_path / "small", "--data", "mine.networks:data")
    assert told["params"] == made.after.params
    figures = succeeded("evaluate", tmp_path / "small", "--model", spec, "--data", "mine.networks:data")
    expected = rf.evaluate(rf.apply_(model, made), mine.networks.part(60, 2), objective="worst error").judged.value
    assert figures["worst error"] == pytest.approx(expected, rel=1e-5)
    shown = rankfold("show", tmp_path / "plan.json")
    assert shown.exit_code == 0
    assert "pivoted" in shown.output
