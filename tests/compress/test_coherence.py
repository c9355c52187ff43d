"""What errors at all positions of a sample cost together: against loops, planted, and where it is not to be known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.compress import coherence
from rankfold.compress.coherence import costs_of, layer_of
from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.ratios import Point, ratios
from rankfold.compress.spread import Spread, measure_spread
from rankfold.objectives import Answer, Objective
from rankfold.objectives.moved import Moved
from rankfold.observe import Samples, after
from rankfold.sites import opened

POSITIONS = 6


class Pooled(nn.Module):
    """Two linear layers over a sequence, and the mean over its positions."""

    def __init__(self, inputs: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(inputs, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))).mean(1)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, groups=1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))).mean((2, 3))


class Units:
    """In place of random directions the axes, one for each draw: their mean square is the whole sum."""

    def __init__(self, spread: Spread, draw: int) -> None:
        self.spread, self.draw = spread, draw

    def of(self, answers: Sequence[Answer], first: int) -> tuple[Tensor, float]:
        z, (scale,) = answers[0].centred, self.spread.scales
        return scale * z.shape[-1] ** 0.5 * z[..., self.draw].sum(), len(z)

    def add(self, gradients: Any, counted: float, half: int) -> None:
        raise AssertionError("gradients are contracted, not gathered")


def brute(model: nn.Module, site: str, new: nn.Module, x: Tensor, objective: Objective, spread: Spread) -> float:
    """One sample after another, every output by itself: Σ_k (Σ_positions ∂z_k/∂y · δ)², with torch.func."""
    return sum(_of_one(model, model.get_submodule(site), new, one[None], objective, spread) for one in x) / len(x)


def _of_one(
    model: nn.Module, layer: nn.Module, new: nn.Module, one: Tensor, objective: Objective, spread: Spread
) -> float:
    (scale,) = spread.scales
    inputs: list[Tensor] = []
    with torch.no_grad(), after(None, {layer: lambda m, args, kwargs, output: inputs.append(args[0])}):
        model(one)
        moved = new(inputs[0]) - layer(inputs[0])

    def answer(by: Tensor) -> Tensor:
        with after(None, {layer: lambda m, args, kwargs, output: output + by}):
            return scale * objective.answers(model(one))[0].centred[0]

    jacobian = torch.func.jacrev(answer)(torch.zeros_like(moved)).detach()
    return float((jacobian * moved).flatten(1).sum(1).square().sum())


@pytest.mark.parametrize("make", [Pooled, Pictures])
@pytest.mark.parametrize("objective", [rf.Classification(), rf.Teacher()], ids=["classes", "numbers"])
def test_it_is_the_sum_over_samples_and_outputs_of_the_squared_sum_over_positions(
    make: Callable[[], nn.Module], objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = make().double().eval()
    x = (torch.randn(21, 2, 7, 7) if make is Pictures else torch.randn(21, POSITIONS, 8)).double()
    known = rf.profile(model, x, objective=objective)
    flat = [each for group in known.candidates.values() for each in group]
    spread = measure_spread(model, Samples(x), objective)
    monkeypatch.setattr(coherence, "_scalar", lambda objective, spread, draw: Units(spread, draw))
    with opened(model):
        found = costs_of(model, Samples(x, batch_size=12), flat, objective, spread=spread, draws=5)
        for candidate in flat:
            for point in found[coherence._key(candidate)]:
                new = layer_of(model, candidate, point.rank, draft=True)
                wanted = brute(model, candidate.site.name, new, x, objective, spread)
                assert point.cost == pytest.approx(wanted, rel=1e-9), candidate.site.name
    assert {coherence._key(each) for each in flat} == set(found)
    assert len(found) == len({id(each.decomposition) for each in flat})


def planted(alike: bool) -> tuple[nn.Module, Tensor]:
    """A layer, then a mean over positions that are all alike or have nothing in common."""
    torch.manual_seed(0)
    model = Pooled(12).eval()
    with torch.no_grad():
        model.a.weight.mul_(0.05)  # tanh is linear there
        model.a.bias.zero_()
    x = torch.randn(512, 1, 12).expand(-1, POSITIONS, -1) if alike else torch.randn(512, POSITIONS, 12)
    return model, x.contiguous()


@pytest.mark.parametrize("alike", [True, False])
def test_a_mean_over_positions_costs_as_many_times_more_as_they_are_alike(alike: bool, tmp_path: Path) -> None:
    model, x = planted(alike)
    known = rf.profile(model, x, objective="teacher")
    factor = POSITIONS if alike else 1
    for name in ("a", "b"):
        ratio = known.candidates[name][0].coherence
        assert ratio is not None
        assert factor / 1.7 < float(ratio[1]) < factor * 1.7, name
    plan = known.plan(rf.Ranks({"a": 2}))
    small = rf.apply_(copy.deepcopy(model), plan, known)
    measured = rf.evaluate(small, x, objective=Moved(), teacher=model).loss
    assert plan.forecast == pytest.approx(measured, rel=0.35)
    alone = float(known.candidate("a", plan["a"].form).decomposition.errors[2]) ** 2
    assert (measured / alone > POSITIONS / 1.5) == alike  # what it was forecast to be without
    assert plan.total.seen == pytest.approx(plan.forecast, rel=0.2)
    known.save(tmp_path / "profile")
    assert rf.Profile.load(tmp_path / "profile", model).plan(rf.Ranks({"a": 2})).total == plan.total


def test_layers_behind_the_mean_are_not_underpriced_beside_those_before_it() -> None:
    """With the price of positions by themselves all of the loss would go to the layer before the mean."""
    model, x = planted(True)
    known = rf.profile(model, x, objective="teacher")
    plan = known.plan("params=0.7")
    small = rf.apply_(copy.deepcopy(model), plan, known)
    measured = rf.evaluate(small, x, objective=Moved(), teacher=model).loss
    assert 0.5 < measured / plan.forecast < 2


def test_truncation_without_data_is_priced_so_too() -> None:
    model, x = planted(True)
    plan = rf.plan(model, "params=0.7", "truncate", data=x, objective="teacher")
    small = rf.apply_(copy.deepcopy(model), plan)
    measured = rf.evaluate(small, x, objective=Moved(), teacher=model).loss
    assert 0.5 < measured / plan.forecast < 2


def test_a_group_has_what_its_members_have() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(12, 9), nn.Linear(12, 9), nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x) + self.b(x)).mean(1)

    torch.manual_seed(0)
    x = torch.randn(256, 1, 12).expand(-1, POSITIONS, -1).contiguous()
    known = rf.profile(Two().eval(), x, objective="teacher", forms=["factored", "shared"])
    (name,) = [each.name for each in known.sites.joint]
    ratio = known.candidates[name][0].coherence
    assert ratio is not None
    assert POSITIONS / 1.5 < float(ratio[1]) < POSITIONS * 1.5


@pytest.mark.parametrize("positions", [POSITIONS, 16, 32])  # also multiples of the samples that are taken at once
def test_it_is_the_same_where_positions_come_first(positions: int) -> None:
    class First(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.transpose(0, 1)))).mean(0)

    torch.manual_seed(0)
    x = (torch.randn(128, 1, 8) + 0.1 * torch.randn(128, positions, 8)).contiguous()
    usual, first = Pooled().eval(), First().eval()
    first.load_state_dict(usual.state_dict())
    plans = [rf.plan(net, rf.Ranks({"a": 4, "b": 2}), data=x, objective="teacher") for net in (usual, first)]
    assert plans[1].forecast == pytest.approx(plans[0].forecast, rel=1e-4)
    small = rf.apply_(copy.deepcopy(first), plans[1])
    assert plans[1].forecast == pytest.approx(rf.evaluate(small, x, objective=Moved(), teacher=first).loss, rel=0.5)


def test_where_the_first_axis_is_no_sample_the_sum_is_over_all() -> None:
    class Late(nn.Module):
        """Time first inside, so that a sample is not a part of the layer's output."""

        def __init__(self) -> None:
            super().__init__()
            self.place, self.a, self.b = nn.Embedding(POSITIONS, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            places = self.a(self.place(torch.arange(POSITIONS)))  # once for all samples
            return self.b(x + places).tanh().mean(1)

    torch.manual_seed(0)
    model, x = Late().eval(), torch.randn(128, POSITIONS, 8)
    known = rf.profile(model, x, objective="teacher", where="a")
    (candidate, *_) = known.candidates["a"]
    measured, found = [], []
    with opened(model):
        points = costs_of(model, Samples(x), [candidate], rf.Teacher(), ranks=lambda c: [3, 5], draws=32)
        for point in points[coherence._key(candidate)]:
            other = copy.deepcopy(model)
            other.a = layer_of(model, candidate, point.rank)
            measured.append(rf.evaluate(other, x, objective=Moved(), teacher=model).loss)
            found.append(point.cost)
    assert found == pytest.approx(measured, rel=0.4)


def test_ratios_go_between_ranks_and_are_drawn_to_one_by_their_noise() -> None:
    errors = torch.tensor([1.0, 0.5, 0.25, 0.125, 0.0], dtype=torch.float64)
    price = errors.square()
    points = [Point(1, 0.25 * 8, 0.0), Point(3, 0.015625 * 2, 0.0)]
    torch.testing.assert_close(ratios(errors, price, points), torch.tensor([8.0, 8, 4, 2, 2]).double())
    noisy = [Point(p.rank, p.cost, 0.5) for p in points]
    drawn = ratios(errors, price, noisy)
    assert bool((drawn < ratios(errors, price, points)).all())
    assert bool((drawn >= 1).all())
    none = [Point(1, 0.26, 0.5), Point(3, 0.016, 0.5)]  # no more than noise
    torch.testing.assert_close(ratios(errors, price, none), torch.ones(5).double())
    torch.testing.assert_close(ratios(errors, price, []), torch.ones(5).double())


def test_layers_that_take_more_memory_than_the_model_are_tried_in_several_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = planted(True)
    known, seen = rf.profile(model, x, objective="teacher"), Samples(x[:64])
    flat = [each for group in known.candidates.values() for each in group]
    whole = costs_of(model, seen, flat, rf.Teacher())
    passes: list[int] = []
    real = coherence._affordable

    def counted(root: nn.Module, chosen: Any) -> Any:
        parts = list(real(root, chosen))
        passes.append(len(parts))
        return iter(parts)

    monkeypatch.setattr(coherence, "_affordable", counted)
    monkeypatch.setattr(coherence, "HELD", 0)
    assert costs_of(model, seen, flat, rf.Teacher()) == whole
    assert passes[0] > 1


def test_a_draft_is_what_errors_are_of() -> None:
    torch.manual_seed(0)
    model, x = Pictures().double().eval(), torch.randn(64, 2, 7, 7).double()
    known = rf.profile(model, x, objective="teacher", forms=["spatial"])
    (candidate,) = known.candidates["a"]
    made: Any = candidate.decomposition

    def error(factors: rf.Factors | Any) -> float:
        right, left = factors.parts
        change = made._change(left, right)
        return float(((made.metric @ change) * (change @ made.statistics.covariance)).sum()) ** 0.5

    assert error(made.draft(2)) == pytest.approx(float(made.errors[2]), rel=1e-4)
    assert error(made.factors(2)) < error(made.draft(2))


def test_a_network_without_gradients_has_none() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).detach().mean(1)

    model, x = Still().eval(), torch.randn(64, POSITIONS, 8)
    known = rf.profile(model, x, objective="teacher")
    assert [each.coherence for each in known.candidates["a"]] == [None] * len(known.candidates["a"])
    assert isinstance(known.candidates["a"][0], Candidate)


def test_answers_to_tokens_are_judged_one_by_one() -> None:
    """And the network is differentiated no further for them: the draws of the token metric are all there are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9)).eval()
    known = rf.profile(model, torch.randint(9, (64, POSITIONS)), objective="causal-lm")
    assert known.statistics is not None
    assert known.statistics.nats
    assert {each.coherence for group in known.candidates.values() for each in group} == {None}


class Normalised(nn.Module):
    """Behind a normalisation the size of a layer's output is lost, and with it, to second order, what most of an error
    that leaves next to nothing costs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(24, 16), nn.LayerNorm(16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.norm(self.a(x))))


@pytest.mark.parametrize("seed", range(3))
def test_a_direction_less_never_costs_less_than_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    model, x, new = Normalised().eval(), torch.randn(256, POSITIONS, 24), torch.randn(512, POSITIONS, 24)
    known = rf.profile(model, x, objective="teacher", where="a")
    for candidate in known.candidates["a"]:
        price = candidate.decomposition.errors.square() * candidate.coherence
        assert bool((price[:-1] > price[1:]).all())
    for rank in (1, 4, 8):
        plan = known.plan(rf.Ranks({"a": rank}))
        small = rf.apply_(copy.deepcopy(model), plan, known)
        measured = rf.evaluate(small, new, objective=Moved(), teacher=model).loss
        assert plan.forecast > measured / 3, rank  # where nothing is right any more it is twice the variance


def test_ratios_below_one_hold_where_more_is_lost() -> None:
    errors, price = torch.tensor([4.0, 3, 2, 1, 0.5]).double(), torch.tensor([16.0, 9, 4, 1, 0.25]).double()
    falling = [Point(4, 0.2, 0.0), Point(3, 0.4, 0.0), Point(2, 0.5, 0.0), Point(1, 0.9, 0.0)]
    torch.testing.assert_close(ratios(errors, price, falling), torch.full((5,), 0.8).double())
    above = [Point(4, 0.5, 0.0), Point(3, 1.1, 0.0)]  # twice its price, then less: a direction adds its own at least
    assert float(ratios(errors, price, above)[3]) == pytest.approx((0.5 + 0.75) / 1)
