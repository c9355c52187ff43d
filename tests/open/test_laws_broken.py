"""An own object that breaks its laws is told so in one line, that says what was expected and what was given."""

from dataclasses import dataclass, replace

import pytest
import torch
from test_own import network, rows
from torch import Tensor, nn

import rankfold as rf
from rankfold.forms import Factors, Form
from rankfold.pipeline import Settings, compress
from rankfold.testing import check_form, check_method, check_objective, check_reader
from rankfold.train import TrainingError


def line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# forms


def broken_form(mine, **parts):
    """A form like the good one but for what is given."""
    from rankfold.forms import register

    good = type(mine.form.PIVOTED)
    return register(type("Broken", (good,), parts)("broken"))


def miscounted(self, layer, rank, bias):
    return rank * sum(layer.shape) // 2


def forgets_the_order_(self, layer, new, factors):
    type(self).__mro__[1].write_(self, layer, new, factors)
    new.order.copy_(torch.arange(len(new.order)))


def fails_(self, layer, new, factors):
    new.down.weight.copy_(factors.parts[1])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            {"params": miscounted},
            r"0 \(Linear 24×10\): form broken counts \d+ parameters at rank \d+, and the layer.* \d+",
        ),
        (
            {"write_": forgets_the_order_},
            r"form broken at rank \d+: the layer must compute the product of its factors",
        ),
        ({"write_": fails_}, r"form broken of rank \d+ cannot take factors of shapes \(\d+, 10\), \(24, \d+\): "),
        ({"offered": lambda self, layer: layer.kind}, None),
        ({"skeleton": Form.skeleton}, r"form broken: skeleton\(layer, old, rank, bias\) is missing"),
    ],
)
def test_a_form(mine, parts, expected):
    form = broken_form(mine, **parts)
    if expected is None:
        return
    pivoted = rf.plan(network(), "params=0.7", "truncate", example=rows(1))
    broken = tuple(replace(e, form=form, rank=2) if e.site == "0" else e for e in pivoted.entries)
    model = network()
    with pytest.raises((ValueError, NotImplementedError), match=expected) as error:
        rf.apply_(model, pivoted.with_entries(broken))
    line(error)
    assert all(type(module) in (nn.Linear, nn.Tanh, nn.Sequential) for module in model.modules())  # nothing was changed
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        check_form(form, nn.Linear(10, 24), rows(4))


def test_a_form_whose_layer_gives_another_precision_under_autocast(mine):
    class Widened(mine.form.PivotedLinear):
        def forward(self, x):
            return super().forward(x).to(x.dtype)

    def skeleton(self, layer, old, rank, bias):
        return Widened(layer.shape[1], rank, layer.shape[0], bias, layer.weight(old).dtype)

    form = broken_form(mine, skeleton=skeleton)
    with pytest.raises(AssertionError, match=r"under autocast its output is torch\.float32, that of the dense layer"):
        check_form(form, nn.Linear(10, 24), rows(4))


def test_a_form_that_is_none():
    from rankfold.forms import register

    with pytest.raises(TypeError, match="a form must be an instance of a subclass of Form, got str"):
        register("mine")
    with pytest.raises(ValueError, match=r"the forms are .*keep.*register"):
        Form("nothing")


# methods


@dataclass(frozen=True)
class Wrong:
    """The good decomposition with some parts replaced."""

    good: object
    parts: dict

    def __getattr__(self, name):
        found = self.parts.get(name, getattr(self.good, name))
        return found(self.good) if name in self.parts and name != "factors" else found


def wrong_method(mine, **parts):
    good = mine.method.COLUMNS

    class Method(type(good)):
        def decompose(self, *args):
            return Wrong(good.decompose(*args), parts)

    return Method(name="wrong")


def flipped(rank: int) -> Factors:
    return Factors((torch.ones(10, rank), torch.ones(rank, 24)))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            {"errors": lambda good: good.errors.float()},
            r"errors \(k \+ 1,\) in float64 were expected, got \(\d+,\) torch.float32",
        ),
        ({"errors": lambda good: good.errors * float("nan")}, "errors of at least 0 were expected"),
        ({"levels": lambda good: good.levels[1:]}, r"levels \(10,\) were expected beside 11 errors, got \(9,\)"),
        ({"ranks": lambda good: range(1, 99)}, "ascending ranks from 1 to 10 were expected, got 1, 2, 3, 4, 5, 6, …"),
        ({"ranks": lambda good: [3, 2]}, "ascending ranks from 1 to 10 were expected, got 3, 2"),
        (
            {"factors": flipped},
            r"the method must give factors right \(\d+, \d+\) and left \(\d+, \d+\)",
        ),
    ],
)
def test_a_method(mine, parts, expected):
    method = wrong_method(mine, **parts)
    with pytest.raises(ValueError, match=expected) as error:
        rf.apply_(network(), rf.plan(network(), "params=0.6", method, example=rows(1)), method=method)
    assert line(error).split(" (Linear")[0] in ("0", "2")
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        check_method(method, nn.Linear(10, 24), rows(20))


def test_what_is_no_method_rule_or_budget():
    for given, expected in (
        (
            {"method": object()},
            r"the name of a method, or an object with name, forms, needs_data and decompose",
        ),
        ({"method": "nothing"}, r"no method named 'nothing': the methods are .*rankfold\.register_method"),
        ({"rule": object()}, r"must be the name of a rank rule, or an object with name and choose"),
        ({"rule": "nothing"}, "no rank rule named 'nothing': the rules are optimal"),
        ({"budget": 0.5}, r"a budget was expected, such as 'flops=0\.5'"),
    ):
        with pytest.raises(ValueError, match=expected) as error:
            rf.plan(network(), **{"budget": "params=0.6", "method": "truncate", "example": rows(1)} | given)
        line(error)


# rules and budgets


@dataclass(frozen=True)
class Rule:
    picks: object
    name: str = "own"

    def choose(self, choices, limits, known):
        return self.picks(choices)


@pytest.mark.parametrize(
    ("picks", "expected"),
    [
        (
            lambda c: {s: o[0] for s, o in c.items()},
            r"rule 'own': params ≤ 0\.6 of dense leaves .* what it chose costs",
        ),
        (lambda c: {}, "rule 'own': its choose must return one option for each of the 3 layers, and returned none"),
        (lambda c: None, "its choose must return one option for each of the 3 layers, and returned NoneType"),
        (
            lambda c: {**{s: o[0] for s, o in c.items()}, "x": 1},
            "its choose must return one option for each of the 3 layers, and returned 0, 2, 4, x",
        ),
        (
            lambda c: {s: replace(o[1], rank=99) for s, o in c.items()},
            "its choose must return one of the .* options offered for 0",
        ),
    ],
)
def test_a_rule_is_held_to_what_it_was_offered_and_the_profile_outlives_it(picks, expected):
    known = rf.profile(network(), rows())
    with pytest.raises(ValueError, match=expected) as error:
        known.plan("params=0.6", Rule(picks))
    line(error)
    assert known.plan("params=0.6").after.params <= 0.6 * known.cost.params  # nothing is lost


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (lambda self, cost: float("nan"), r"Broken\.of must give a number of at least 0 .* got nan"),
        (lambda self, cost: "many", "of must give a number of at least 0 .* got 'many'"),
        (lambda self, cost: float(cost.params) ** 0.5, r"Broken\.of must be a sum over layers"),
    ],
)
def test_a_budget(mine, of, expected):
    broken = type("Broken", (mine.budget.Energy,), {"of": of})
    known = rf.profile(network(), rows())
    with pytest.raises(ValueError, match=expected) as error:
        known.plan(broken(0.8))
    line(error)
    assert known.plan("params=0.6").changed


def test_a_budget_without_a_name():
    with pytest.raises(TypeError, match="needs a default for its field 'kind'"):

        @rf.register_budget
        @dataclass(frozen=True)
        class Nameless(rf.Resource):
            pass


# layer types


def test_a_reader(mine):
    from rankfold.sites import LinearLayer, register_reader

    module, x = mine.layer.Mix(8, 6), torch.randn(3, 8)
    for layer, expected in (
        (lambda m: LinearLayer("Mix", (8, 6), False, True, "kernel"), "rows"),
        (lambda m: LinearLayer("Mix", (6, 8), True, True, "kernel"), "has_bias is True, and bias is None"),
        (lambda m: LinearLayer("Mix", (6, 9), False, True, "kernel"), "a matrix 6×9 of 48 numbers"),
        (lambda m: 7, "a layer object for Mix was expected, got int"),
    ):

        def reader(m, layer=layer):
            return layer(m) if type(m) is mine.layer.Mix else None

        with pytest.raises((AssertionError, RuntimeError)):
            check_reader(reader, module, x)
        del expected
    with pytest.raises(AssertionError, match="takes an Identity"):
        check_reader(lambda m: LinearLayer("Mix", (6, 8), False, True, "kernel"), module, x)
    register_reader(lambda m: 7 if type(m) is mine.layer.Mix else None)
    with pytest.raises(TypeError, match=r"for a Mix it must return a layer object .* returned a int") as error:
        rf.sites(nn.Sequential(module))
    line(error)


# objectives


def good_loss(output, batch):
    return (output - batch[1]).square().mean()


def nan_figure(output, batch):
    return torch.full((len(output),), float("nan"))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"figure": nan_figure}, "broken: its figure is NaN.* a number was expected"),
        ({"figure": lambda o, b: "good"}, "broken: its figure is not a number"),
        ({"figure": lambda o, b: o}, r"one number for each sample or their mean, not \(60, 2\)"),
        ({"figure": lambda o, b: o[:7, 0]}, "gives 7 numbers for a batch of 60 samples"),
        ({"loss": lambda o, b: o - b[1]}, r"its loss must give one number as a tensor, not \(60, 2\)"),
        ({"loss": lambda o, b: 3.0}, "its loss must give one number as a tensor, not float"),
    ],
)
def test_an_objective(mine, how, expected, tmp_path):
    objective = rf.objective("broken", **{"loss": good_loss} | how)
    model, data = mine.networks.regression(), mine.networks.part(60, 2)
    with pytest.raises(TrainingError, match=expected) as error:
        rf.evaluate(model, data, objective=objective)
    line(error)
    with pytest.raises((AssertionError, ValueError)):
        check_objective(objective, model, data)


class Drifting(rf.Objective):
    """Its figure depends on how the data were cut."""

    name = "drifting"

    def losses(self, output, batch, smoothing=0.0):
        return good_loss(output, batch), len(output)

    def measure(self, output, batch, taught=None):
        return {"most": (output - batch[1]).abs().max(), "batches": torch.tensor(1)}

    def conclude(self, sums: dict[str, Tensor]):
        return (rf.Figure("drift", float(sums["most"])),), None


def test_an_objective_whose_figure_depends_on_the_batches(mine):
    with pytest.raises(AssertionError, match=r"drifting: drift is .* in one batch and .* in halves"):
        check_objective(Drifting(), nn.Linear(3, 2), (torch.randn(12, 3), torch.randn(12, 2)))


def test_a_figure_that_fails_at_the_end_leaves_the_plan(mine, tmp_path):
    """The same call goes on from there once it is mended."""
    model = mine.networks.regression()

    class Data:
        train, validation, test = (mine.networks.part(count, seed) for count, seed in ((200, 1), (60, 2), (50, 3)))

    def late(output, batch):
        if len(output) == 50:
            return "nothing"
        return (output - batch[1]).abs().amax(1)

    settings = Settings(objective=rf.objective("late", loss=good_loss, figure=late), curve=False)
    with pytest.raises(ValueError, match="late: its figure is not a number"):
        compress(model, Data, "params=0.7", settings=settings, directory=tmp_path / "run")
    assert (tmp_path / "run" / "run" / "plan.json").exists()
    said: list[str] = []
    from rankfold.pipeline import Tell

    mended = replace(
        settings, objective=rf.objective("late", loss=good_loss, figure=lambda o, b: (o - b[1]).abs().amax(1))
    )
    compress(model, Data, "params=0.7", settings=mended, directory=tmp_path / "run", tell=Tell(say=said.append))
    assert any(text.startswith("resuming: the plan is taken from") for text in said)
