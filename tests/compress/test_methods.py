"""Every method on every layer kind: the laws of ``rankfold.testing.check_method``, and optimality."""

from dataclasses import dataclass

import pytest
import torch
from cases import CASES, PLAIN, Case
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import rankfold as rf
from rankfold.compress.methods import method_named
from rankfold.compress.methods.cp import CP
from rankfold.compress.methods.project import Project
from rankfold.compress.methods.truncate import Truncate, Truncated
from rankfold.compress.methods.tucker import Tucker
from rankfold.compress.statistics import calibrate
from rankfold.sites import Factors, Form, sites
from rankfold.sites import patches as places
from rankfold.testing import check_method

CONVOLUTIONS = [case for case in PLAIN if Form.TUCKER in sites(case.model())[0].forms]


def layer_of(case: Case) -> nn.Module:
    return case.model()[0]


@pytest.mark.parametrize("case", PLAIN, ids=repr)
def test_truncation_keeps_its_promises(case: Case):
    check_method(Truncate(), layer_of(case), case.inputs())


@pytest.fixture
def every_patch(monkeypatch):
    """Statistics of all patches, not of a sample of them, so that promises are exact."""
    monkeypatch.setattr(places, "POSITIONS", 10**6)


@pytest.mark.parametrize("case", PLAIN, ids=repr)
@pytest.mark.usefixtures("every_patch")
def test_projection_keeps_its_promises(case: Case):
    check_method(Project(), layer_of(case), case.inputs(), tolerance=1e-5)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=repr)
def test_tucker_keeps_its_promises(case: Case):
    check_method(Tucker(), layer_of(case), case.inputs(), exact=False)


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv2d-2x4", "conv2d-one-channel", "conv3d"])
def test_cp_keeps_its_promises(name: str):
    case = next(c for c in PLAIN if c.name == name)
    check_method(CP(steps=4, iterations=20), layer_of(case), case.inputs())


KERNELS = {
    "zero": lambda g: torch.zeros(6, 5, 3, 3),
    "constant": lambda g: torch.ones(6, 5, 3, 3),
    "two terms": lambda g: torch.einsum("or,cr,xr,yr->ocxy", *(torch.randn(s, 2, generator=g) for s in (6, 5, 3, 3))),
    "dead channels": lambda g: torch.randn(6, 5, 3, 3, generator=g) * (torch.arange(6) < 2).view(6, 1, 1, 1),
    "tiny": lambda g: 1e-30 * torch.randn(6, 5, 3, 3, generator=g),
    "huge": lambda g: 1e30 * torch.randn(6, 5, 3, 3, generator=g),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", [Truncate(), Project(), Tucker(), CP(steps=3, iterations=10)], ids=lambda m: m.name)
@pytest.mark.usefixtures("every_patch")
def test_degenerate_kernels_are_factored_like_any_other(method, kernel, generator):
    layer = nn.Conv2d(5, 6, 3, bias=kernel != "tiny").double()
    layer.weight.data = KERNELS[kernel](generator).double()
    if kernel == "zero":
        model = nn.Sequential(layer)
        site = sites(model)[0]
        statistics = calibrate(model, [torch.randn(4, 5, 5, 5).double()], sites(model)).sites["0"]
        for form in sorted(method.forms & site.forms - {Form.DENSE}):
            decomposition = method.decompose(site, form, site.weight(model), statistics, site.bias(model))
            assert not bool(decomposition.errors.any())
            assert decomposition.relative_error(2) == 0
            assert all(not bool(part.isnan().any()) for part in decomposition.factors(2).parts)
        return
    check_method(
        method, layer, torch.randn(4, 5, 5, 5, generator=generator), exact=method.name != "tucker", tolerance=1e-4
    )


def test_cp_with_more_terms_is_never_worse(generator):
    """Each solution starts anew and may end in a worse place; the one with fewer terms is taken then."""
    layer = nn.Conv2d(6, 8, 3).double()
    for _ in range(3):
        layer.weight.data.normal_(generator=generator)
        check_method(CP(steps=12, iterations=2), layer, torch.randn(2, 6, 5, 5))


# ---- optimality ------------------------------------------------------------------------------------------------------


shapes = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(3, 40), st.integers(0, 2**31))


@given(shapes, st.integers(1, 9))
def test_truncation_is_the_best_weight_of_its_rank(shape, rank):
    """Eckart and Young: no other matrix of the rank is nearer, here against random ones and the exact error."""
    m, n, _, seed = shape
    rank = min(rank, m, n)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(n, m, bias=False).double())
    model[0].weight.data = weight
    factors = Truncate().decompose(sites(model)[0], Form.FACTORED, weight).factors(rank)
    right, left = factors.parts
    tail = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()
    torch.testing.assert_close((weight - left @ right).norm(), tail, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))  # balanced


@given(shapes, st.integers(1, 9), st.sampled_from(["full", "few samples", "dead inputs", "constant"]), st.booleans())
def test_projection_is_the_best_layer_of_its_rank_on_the_data(shape, rank, kind, bias):
    """Reference: the best approximation of the centred outputs, which no layer of the rank can pass below.

    The singular values of the centred outputs are the error of the best rank-r *outputs*; the layer attains it, however
    deficient the inputs are, and the bias takes the mean. Without the metric of the model's outputs.
    """
    m, n, rows, seed = shape
    rank = min(rank, m, n)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 if kind == "few samples" else rows, n, generator=generator, dtype=torch.float64) + 1
    if kind == "dead inputs":
        x[:, n // 2 :] = 0
    if kind == "constant":
        x[:] = x[:1]
    model = nn.Sequential(nn.Linear(n, m, bias=bias).double())
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
    model[0].weight.data = weight
    found = sites(model)
    statistics = calibrate(model, [x], found, metric_samples=0).sites["0"]
    bias_now = found[0].bias(model)
    decomposition = Project().decompose(found[0], Form.FACTORED, weight, statistics, bias_now)
    factors = decomposition.factors(rank)
    right, left = factors.parts
    y = model(x).detach()
    old = torch.zeros(m, dtype=torch.float64) if bias_now is None else bias_now
    z = x @ (left @ right).T + old + factors.shift
    best = torch.linalg.svdvals(y - y.mean(0))[rank:].square().sum().sqrt()
    scale = float(y.norm()) + 1
    assert abs(float((y - z).norm() - best)) < 1e-6 * scale
    torch.testing.assert_close((y - z).mean(0), torch.zeros(m, dtype=torch.float64), rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("name", ["truncate", "project", "sequential", "relu", "nuclear"])
def test_both_factors_of_a_small_weight_have_its_size(name):
    """Quantisers clear blocks of a few millionths: half of a pair would be lost if its other half held the size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 24)).eval()
    for weight in (model[0].weight, model[2].weight):
        weight.data *= 1e-6
    plan = rf.plan(model, "params=0.6", data=torch.randn(256, 24), method=name, forms=["factored"])
    pairs = [layer for layer in rf.apply_(model, plan).modules() if hasattr(layer, "up")]
    assert pairs
    for pair in pairs:
        rows, columns = pair.down.weight.norm(dim=1), pair.up.weight.norm(dim=0)
        torch.testing.assert_close(rows, columns, rtol=1e-3, atol=0)


def test_projection_beats_truncation_on_its_data(generator):
    model = nn.Sequential(nn.Linear(16, 12).double())
    mixing = torch.randn(16, 16, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, 16)
    x = torch.randn(200, 16, generator=generator, dtype=torch.float64) @ mixing.T
    found = sites(model)
    weight, statistics = model[0].weight.detach(), calibrate(model, [x], found).sites["0"]
    y = x @ weight.T
    errors = {}
    for method in (Truncate(), Project()):
        factors = method.decompose(found[0], Form.FACTORED, weight, statistics, model[0].bias.detach()).factors(4)
        change = x @ (weight - factors.parts[1] @ factors.parts[0]).T
        errors[method.name] = float((change - change.mean(0)).norm() / y.norm())
    assert errors["project"] < 0.7 * errors["truncate"]


def test_statistics_that_were_never_taken_mean_truncation():
    model = nn.Sequential(nn.Linear(6, 5))
    site, weight = sites(model)[0], model[0].weight.detach()
    with_data = Project().decompose(site, Form.FACTORED, weight, None)
    assert torch.equal(with_data.errors, Truncate().decompose(site, Form.FACTORED, weight).errors)


def test_methods_by_name():
    for name in ("project", "truncate", "tucker", "cp"):
        assert method_named(name).name == name
    own = Truncate()
    assert method_named(own) is own
    with pytest.raises(ValueError, match=r"no method named 'svd': the methods are project, sequential, relu"):
        method_named("svd")


# ---- wrong methods are rejected --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """Truncation with one thing spoilt."""

    spoil: type
    name: str = "wrong"
    forms: frozenset[Form] = frozenset({Form.FACTORED})
    needs_data: bool = False

    def decompose(self, site, form, weight, statistics=None, bias=None):
        return self.spoil(form, site.layer.geometry(form).matrix(weight))


class SquaredErrors(Truncated):
    def relative_error(self, rank: int) -> float:
        return super().relative_error(rank) ** 2


class Pessimistic(Truncated):
    def relative_error(self, rank: int) -> float:
        return min(1.0, 1.2 * super().relative_error(rank))


class SmallestDirections(Truncated):
    def factors(self, rank: int) -> Factors:
        u, s, vh = self.svd
        return Factors((vh[-rank:], u[:, -rank:] * s[-rank:]))


class UnsortedErrors(Truncated):
    @property
    def errors(self) -> Tensor:
        return super().errors.flip(0)


class SinglePrecision(Truncated):
    @property
    def errors(self) -> Tensor:
        return super().errors.float()


class NoRankZero(Truncated):
    @property
    def errors(self) -> Tensor:
        return super().errors[1:]


class LevelsNotDivided(Truncated):
    @property
    def levels(self) -> Tensor:
        return 10 * super().levels


class RanksTooLarge(Truncated):
    @property
    def ranks(self) -> range:
        return range(1, len(self.errors) + 1)


class Wandering(Truncated):
    def factors(self, rank: int) -> Factors:
        right, left = super().factors(rank).parts
        turn = torch.linalg.qr(torch.randn(rank, rank, dtype=left.dtype)).Q
        return Factors((turn.T @ right, left @ turn))


class WritesIntoTheWeight(Truncated):
    def factors(self, rank: int) -> Factors:
        factors = super().factors(rank)
        self.matrix.mul_(1 + 1e-12)
        return factors


class NegativeError(Truncated):
    @property
    def errors(self) -> Tensor:
        errors = super().errors.clone()
        errors[-1] = -1e-3
        return errors


class ChangesItsMind(Truncated):
    def relative_error(self, rank: int) -> float:
        return super().relative_error(rank)

    @property
    def errors(self) -> Tensor:
        return super().errors * (1 + torch.rand(()).double())


WRONG = {
    SquaredErrors: "promises",
    Pessimistic: "promises",
    SmallestDirections: "promises",
    UnsortedErrors: "rises",
    SinglePrecision: "float64",
    NoRankZero: "levels must be",
    LevelsNotDivided: "level is outside",
    RanksTooLarge: "beyond the errors",
    Wandering: "other factors",
    WritesIntoTheWeight: "weight was changed",
    NegativeError: "negative",
    ChangesItsMind: "other errors",
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.items(), ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("name", ["linear-tall", "conv2d"])
def test_wrong_methods_are_rejected(spoil, message, name):
    case = next(c for c in PLAIN if c.name == name)
    check_method(Wrong(Truncated), layer_of(case), case.inputs())
    with pytest.raises(AssertionError, match=message):
        check_method(Wrong(spoil), layer_of(case), case.inputs())


class ForgetsTheMean(Project):
    """Deliberately wrong: the bias is not set free."""

    def decompose(self, site, form, weight, statistics, bias=None):
        good = super().decompose(site, form, weight, statistics, bias)
        factors = good.factors
        good.factors = lambda rank: Factors(factors(rank).parts, torch.zeros_like(factors(rank).shift))
        return good


class WeightErrors(Project):
    """Deliberately wrong: promises the error of the weight for that of the output."""

    def decompose(self, site, form, weight, statistics, bias=None):
        good = super().decompose(site, form, weight, statistics, bias)
        good.relative_error = Truncate().decompose(site, form, weight).relative_error
        return good


@pytest.mark.parametrize("wrong", [ForgetsTheMean(), WeightErrors()], ids=lambda m: type(m).__name__)
def test_wrong_projections_are_rejected(wrong, generator):
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64) @ torch.diag(torch.logspace(0, -1, 6).double()) + 3
    check_method(Project(), nn.Linear(6, 5), x)
    with pytest.raises(AssertionError, match="promises"):
        check_method(wrong, nn.Linear(6, 5), x)


def test_a_method_that_offers_nothing_is_told():
    with pytest.raises(AssertionError, match="offers nothing"):
        check_method(Tucker(), nn.Linear(5, 6), torch.randn(3, 5))
    with pytest.raises(AssertionError, match="not one site"):
        check_method(Truncate(), nn.Linear(5, 1), torch.randn(3, 5))


def test_every_method_is_covered_by_a_form_of_some_layer():
    forms = {form for case in CASES for site in sites(case.model()) for form in site.forms}
    optional = {form for form in Form if form.optional}  # only where they are named: tests/compress/test_quantised.py
    assert forms | optional | {Form("shared")} == set(Form)  # shared, of experts alone: tests/models/test_experts.py
