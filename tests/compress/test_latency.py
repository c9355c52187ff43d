"""Latency budgets: sites timed by a clock that the test holds, plans timed before they are believed."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network
from torch import nn

from rankfold.compress.applying.apply import apply_
from rankfold.compress.methods import method_named
from rankfold.compress.planning import decide, planner
from rankfold.compress.planning.candidates import decompose
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.planning.profiling import profile
from rankfold.compress.ranks.budget import Latency, Params
from rankfold.compress.ranks.latency import meet_latency, paired
from rankfold.compress.ranks.options import BudgetError, Option
from rankfold.compress.ranks.timing import grid, site_timing
from rankfold.costs import Cost, Example
from rankfold.costs.curve import FASTER, Curve
from rankfold.sites import Form, opened, sites


def quiet(what, done, total):
    pass


def weights(layer):
    return sum(p.numel() for p in layer.parameters() if p.dim() > 1)


class Clock:
    """A timer by which a layer takes as long as ``law`` says of its weights, and each call a little more."""

    def __init__(self, law=lambda layer: 1e-6 * weights(layer), overhead=0.0):
        self.law, self.overhead, self.calls = law, overhead, []

    def __call__(self, layer, args, kwargs):
        self.calls.append((layer, args[0].shape))
        return layer(*args, **kwargs), self.law(layer) + self.overhead


def timing_of(root, example, timer, method="truncate", batch=3, every_form=True):
    found, example = sites(root), Example.of(example)
    with opened(root):
        made = decompose(root, found, method_named(method), None, quiet).candidates
        candidates = made if every_form else {name: group[:1] for name, group in made.items()}
        return found, site_timing(root, found, candidates, example, batch, quiet, timer=timer)


def two_layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.Linear(60, 60)).eval()


def test_times_follow_the_clock():
    clock = Clock()
    found, timing = timing_of(two_layers(), torch.randn(2, 40), clock)
    first = found["0"]
    assert timing(first, Form.KEEP, 0) == pytest.approx(1e3 * 1e-6 * 2400)
    for rank in (1, 4, 7, 16, 20):
        assert timing(first, Form.FACTORED, rank) == pytest.approx(1e3 * 1e-6 * 100 * rank)
    assert {shape[0] for _, shape in clock.calls} == {3}


def test_what_is_not_measurably_faster_costs_the_dense_time():
    found, timing = timing_of(two_layers(), torch.randn(2, 40), Clock())
    first, dense = found["0"], timing(found["0"], Form.KEEP, 0)
    cheap = int(FASTER * 2400 / 100)
    assert timing(first, Form.FACTORED, cheap - 1) < FASTER * dense
    for rank in range(cheap + 1, 41):
        assert timing(first, Form.FACTORED, rank) >= dense
    constant = timing_of(two_layers(), torch.randn(2, 40), Clock(lambda layer: 1e-3))[1]
    assert all(constant(first, Form.FACTORED, rank) >= constant(first, Form.KEEP, 0) for rank in range(1, 41))


@given(st.integers(0, 10_000))
@settings(max_examples=8)
def test_times_never_fall_with_the_rank(seed):
    generator = torch.Generator().manual_seed(seed)
    noise = Clock(lambda layer: float(torch.rand(1, generator=generator)))
    found, timing = timing_of(two_layers(), torch.randn(2, 40), noise)
    for site in found:
        times = [timing(site, Form.FACTORED, rank) for rank in range(1, site.max_rank(Form.FACTORED) + 1)]
        assert all(low <= high for low, high in pairwise(times))


def test_layers_that_are_alike_share_their_times():
    model = two_layers()
    slow = model[3]
    found, timing = timing_of(model, torch.randn(2, 40), Clock(lambda layer: 2.0 if layer is slow else 1.0))
    assert timing(found["2"], Form.KEEP, 0) == timing(found["3"], Form.KEEP, 0)
    assert timing(found["0"], Form.KEEP, 0) == 1000.0


class Shared(nn.Module):
    """One layer called twice, one never; one site is tied and so never factored."""

    def __init__(self):
        super().__init__()
        self.embed, self.twice, self.never = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.twice(self.twice(self.embed(ids))))


def test_all_calls_of_a_site_count_and_uncalled_and_kept_sites_take_nothing():
    model = Shared().eval()
    found, timing = timing_of(model, torch.zeros(2, 5, dtype=torch.long), Clock())
    assert timing(found["twice"], Form.KEEP, 0) == pytest.approx(2 * 1e-3 * 144)
    assert timing(found["never"], Form.KEEP, 0) == timing(found["never"], Form.FACTORED, 1) == 0
    assert timing(found["head"], Form.KEEP, 0) == timing(found["embed"], Form.KEEP, 0) == 0


@pytest.mark.parametrize(
    ("name", "method"), [("conv_net", "truncate"), ("conv_net", "tucker"), ("encoder", "truncate")]
)
def test_networks_are_timed_where_they_stand_and_left_as_found(name, method):
    model, (inputs, _) = network(name)
    before, rng = state(model), torch.get_rng_state()
    output = copy.deepcopy(model)(*as_tuple(inputs))
    found, timing = timing_of(model, inputs, Clock(overhead=1e-9), method)
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    torch.testing.assert_close(model(*as_tuple(inputs)), output)
    for site in found.reducible:
        for form in method_named(method).forms & site.forms - {Form.DENSE}:
            assert 0 < timing(site, form, 1) < timing(site, Form.KEEP, 0)


def test_a_pair_over_a_base_is_timed_at_all_its_ranks():
    """It has more FLOPs than the dense layer at every rank but 0: what it spares is reading."""
    small = two_layers()
    known = profile(small, torch.randn(64, 40), forms="residual")
    with opened(small):
        timing = site_timing(small, known.sites, known.candidates, Example.of(torch.randn(2, 40)), 3, quiet,
                             timer=Clock(lambda layer: 1e-6 * weights(layer)))  # fmt: skip
    found = known.sites["0"]
    ranks = timing.curves[timing.places["0"]][Form.RESIDUAL].ranks
    assert ranks[0] == 0
    assert ranks[-1] == 40
    times = [timing(found, Form.RESIDUAL, rank) for rank in (*range(0, 41, 8), 40)]
    assert times[0] < times[2] <= times[4]
    assert Curve(1.0, (0,), (0.5,)).at(3) > Curve(1.0, (0,), (0.5,)).at(0)  # of a table from before


def test_the_network_is_left_as_found_after_an_error():
    model = two_layers()
    before = state(model)

    def fail(layer, args, kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        timing_of(model, torch.randn(2, 40), fail)
    assert state(model) == before


def state(model):
    return {path: (id(module), module.training) for path, module in model.named_modules()}


def as_tuple(inputs):
    return inputs if isinstance(inputs, tuple) else (inputs,)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_a_grid_has_few_ranks_within_bounds_and_both_ends(highest, full):
    ranks = grid(highest, range(1, full + 1))
    assert ranks[0] == 1
    assert ranks[-1] == min(highest, full)
    assert len(ranks) <= 22
    few = grid(highest, [2, 5, 9])
    assert few in ([2], [2, 5], [2, 5, 9])


def test_beyond_the_grid_time_grows_with_the_rank():
    curve = Curve(10.0, (1, 4), (2.0, 5.0))
    assert [curve.at(rank) for rank in (1, 2, 3, 4, 6, 8)] == [2.0, 3.0, 4.0, 5.0, 7.5, 10.0]
    assert Curve(10.0).at(3) == 10.0


class Machine:
    """``measure`` and ``solve`` of a machine on which one site's rank decides; ``law(rank)`` is the true fraction."""

    def __init__(self, law, keep=0.5, dense=100.0, sites_take=80.0):
        self.law, self.dense, self.sites_take = law, dense, sites_take
        self.resource = (Params(1.0), Latency(keep, 4))
        self.limits = (1e9, keep * dense - (dense - sites_take))
        self.root = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 3))
        self.measured, self.asked = [], []

    def solve(self, limits):
        """The largest rank that is predicted to fit: a rank takes a fortieth of what the sites take."""
        self.asked.append(limits)
        assert limits[0] == 1e9
        rank = math.floor(40 * limits[1] / self.sites_take + 1e-9)
        if rank < 1:
            raise BudgetError("the budget cannot be met: resource 1")
        return {"0": Option(Form.KEEP if rank >= 40 else Form.FACTORED, min(rank, 40), 1 / rank, (0.0, 2.0 * rank))}

    def write(self, picked):
        option = picked["0"]
        entry = Entry("0", option.form, option.rank, (60, 40), bias=True)
        return Plan((entry,), (), "truncate", "optimal", "", Cost(1, 1, 1), Cost(1, 1, 1))

    def measure(self, models, example, *, batch, phase):
        assert batch == 4
        times = {"dense": self.dense}
        if "compressed" in models:
            layer = models["compressed"][0]
            rank = layer.rank if hasattr(layer, "rank") else 40
            self.measured.append(rank)
            times["compressed"] = self.dense * self.law(rank)
        return times

    def meet(self):
        example = Example.of(torch.randn(4, 40))
        return meet_latency(
            self.root, self.write, self.solve, self.limits, self.resource, example, quiet, measure=self.measure
        )


def test_a_plan_that_is_in_time_is_timed_twice():
    machine = Machine(lambda rank: 0.2 + 0.8 * rank / 40)
    plan = machine.meet()
    assert plan["0"].rank == 15
    assert machine.measured == [15, 15]
    assert plan.notes == ("measured latency: 0.5 of dense at batch 4",)


@pytest.mark.parametrize("law", [lambda r: 0.3 + 0.7 * r / 40, lambda r: min(1.3, 0.1 + 0.05 * r), lambda r: r / 40])
def test_the_plan_is_in_time_whatever_the_machine_and_little_time_is_left(law):
    machine = Machine(law)
    plan = machine.meet()
    assert law(plan["0"].rank) <= 0.5
    assert law(plan["0"].rank) > 0.4
    assert machine.measured.count(plan["0"].rank) >= 2


def test_a_plan_that_is_slow_the_second_time_is_not_believed():
    machine = Machine(lambda rank: 0.2 + 0.8 * rank / 40)
    moods = iter([0.0, 0.2])
    law = machine.law
    machine.law = lambda rank: law(rank) + next(moods, 0.0)
    assert machine.meet()["0"].rank < 15


def test_budgets_out_of_reach_say_what_was_reached():
    machine = Machine(lambda rank: 0.8 + 0.01 * rank)
    with pytest.raises(
        BudgetError, match=r"0\.5 of dense at batch 4 was asked for, and the fastest .* 0\.81 of dense at batch 4"
    ):
        machine.meet()
    assert min(machine.measured) == 1


def test_what_is_predicted_out_of_reach_is_tried_before_it_is_refused():
    machine = Machine(lambda rank: 0.1 + 0.02 * rank, sites_take=30.0)
    assert machine.limits[1] < 0
    assert 0.45 < machine.law(machine.meet()["0"].rank) <= 0.5


def test_a_machine_that_was_slower_before_does_not_hide_what_can_be_had():
    """Nothing is faster than dense, and the limits were measured at a slower moment: still a refusal by measurement."""
    machine = Machine(lambda rank: 1.2)
    machine.limits, solve = (1e9, -300.0), machine.solve  # .5 of 760, of which the sites took 80
    machine.solve = lambda limits: solve(limits) if limits[1] >= machine.sites_take else refuse(limits)
    with pytest.raises(BudgetError, match="cannot be met on this machine"):
        machine.meet()


def test_another_budget_out_of_reach_is_named():
    machine = Machine(lambda rank: rank / 40)
    machine.solve = refuse
    with pytest.raises(BudgetError, match="resource 0"):
        machine.meet()


def refuse(limits):
    raise BudgetError("the budget cannot be met: resource 0")


class Sleepy(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        for _ in range(self.size):
            x = x + self.weight
        return x


def test_pairs_are_reported_by_their_ratio():
    times = paired({"dense": Sleepy(50), "compressed": Sleepy(1)}, Example.of(torch.zeros(2, 3)), batch=5, seconds=0.0)
    assert set(times) == {"dense", "compressed"}
    assert all(value > 0 for value in times.values())


def test_a_planned_latency_is_met_from_end_to_end(monkeypatch):
    """On a machine on which time is weights: half of the time means half of the weights."""
    model, (inputs, _) = network("conv_net")

    def measure(models, example, *, batch, phase="forward"):
        return {name: 1e3 * 1e-6 * sum(p.numel() for p in m.parameters()) for name, m in models.items()}

    monkeypatch.setitem(site_timing.__kwdefaults__, "timer", Clock())
    monkeypatch.setitem(meet_latency.__kwdefaults__, "measure", measure)
    monkeypatch.setattr(decide, "latencies", measure)
    plan = planner.plan(model, "latency=0.7@2", "truncate", example=inputs, rule="optimal")
    assert "measured latency" in plan.notes[0]
    before = sum(p.numel() for p in model.parameters())
    apply_(model, plan)
    assert 0.6 * before < sum(p.numel() for p in model.parameters()) <= 0.7 * before
