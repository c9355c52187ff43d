"""Latency as a budget: what every site takes by the clock, and plans that are timed before they are believed."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.isotonic import isotonic_regression
from torch import nn

from rankfold.compress.allocate import BudgetError, Costs, Option
from rankfold.compress.apply import shape_
from rankfold.compress.budget import Budget, Latency
from rankfold.compress.candidates import Candidate
from rankfold.compress.plan import Plan
from rankfold.costs import Example, latencies, once, trace, with_batch
from rankfold.sites import Call, Form, Site, SiteList

Progress = Callable[[str, int, int], None]
Timing = Callable[[Site, Form, int], float]
Timer = Callable[[nn.Module, Example], float]
Measure = Callable[..., Mapping[str, float]]
Key = tuple[Form, int]
Keeps = dict[int, float]  # by resource: a fraction of the dense time

FASTER = 0.95  # of the dense time: what is above is not measurably faster
SECONDS, TURNS = 1.0, 40  # the longest that one layer is timed, three turns at least
ROUNDS = 6
MARGIN = 0.98  # how much further than needed a limit is tightened
SPARE = 0.9  # of the time allowed: where less is used, more is tried


def site_timing(
    root: nn.Module,
    sites: SiteList,
    candidates: Mapping[str, Sequence[Candidate]],
    example: Example,
    batch: int,
    tell: Progress,
    *,
    timer: Timer = once,
) -> Timing:
    """Milliseconds of all calls of a site in one forward pass of ``batch`` samples, in any form at any rank.

    Each candidate is timed alone, on random input of the true shapes, dense and at about ten ranks in turn; in
    between the time is interpolated, and it never falls as the rank grows. A rank that is not measurably faster than
    the dense layer costs at least as much, so that keeping wins. Layers that are alike are timed once; sites without
    candidates, which are kept whatever happens, count as 0. Attention must be split. ``timer``: seconds of one call.
    Cost: about a second for each different layer.
    """
    calls = trace(root, with_batch(example, batch), sites)[1]
    known: dict[object, dict[Form, Curve]] = {}
    curves: dict[str, dict[Form, Curve]] = {}
    todo = [site for site in sites if candidates.get(site.name) and calls.get(site.name)]
    for done, site in enumerate(todo):
        module, found, shapes = root.get_submodule(site.name), candidates[site.name], tuple(calls[site.name])
        weight = site.weight(root)
        alike = (repr(module), shapes, weight.dtype, weight.device, tuple((c.form, c.bias) for c in found))
        if alike not in known:
            known[alike] = _curves(module, site, found, shapes, timer)
        curves[site.name] = known[alike]
        tell("timing layers", done + 1, len(todo))

    def timing(site: Site, form: Form, rank: int) -> float:
        return curves[site.name][form].at(rank) if site.name in curves else 0.0

    return timing


@dataclass(frozen=True)
class Curve:
    """Milliseconds of one layer in one form: as it is (``dense``), and at some ``ranks``; none for the dense form."""

    dense: float
    ranks: tuple[int, ...] = ()
    times: tuple[float, ...] = ()

    def at(self, rank: int) -> float:
        if not self.ranks:
            return self.dense
        time = float(np.interp(rank, self.ranks, self.times))
        if rank > self.ranks[-1]:  # the factors have more work to do than the dense layer
            time *= rank / self.ranks[-1]
        return time if time < FASTER * self.dense else max(time, self.dense)


def grid(highest: int, allowed: Sequence[int]) -> list[int]:
    """The ranks to time, of those ``allowed`` up to ``highest``.

    Kernels work on blocks of 16 channels, so the time may jump behind each of the first few multiples.
    """
    blocks = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    wanted = {1, 4, 8, highest, *(16 * b for b in blocks), *(16 * b + 1 for b in blocks[:4])}
    possible = [rank for rank in allowed if rank <= highest] or [min(allowed)]
    return sorted({min(possible, key=lambda p: abs(p - rank)) for rank in wanted if rank <= highest})


def _curves(
    module: nn.Module, site: Site, found: Sequence[Candidate], calls: Sequence[Call], timer: Timer
) -> dict[Form, Curve]:
    layer = site.layer
    layers = {(Form.KEEP, 0): layer.skeleton(module, Form.KEEP, 0, layer.has_bias)}
    for candidate in found:
        work = layer.flops(Form.KEEP, 0, calls)
        less = [r for r in candidate.decomposition.ranks if layer.flops(candidate.form, r, calls) <= work]
        for rank in grid(max(less, default=1), candidate.decomposition.ranks):
            layers[candidate.form, rank] = layer.skeleton(module, candidate.form, rank, candidate.bias)
    times = {key: 1e3 * seconds for key, seconds in _in_turns(layers, calls, timer).items()}
    dense = times[Form.KEEP, 0]
    curves = {Form.KEEP: Curve(dense)}
    for candidate in found:
        ranks = tuple(rank for form, rank in sorted(times) if form is candidate.form)
        rising = isotonic_regression([times[candidate.form, rank] for rank in ranks])
        curves[candidate.form] = Curve(dense, ranks, tuple(map(float, rising)))
    return curves


def _in_turns(layers: Mapping[Key, nn.Module], calls: Sequence[Call], timer: Timer) -> dict[Key, float]:
    """Seconds of each layer for all ``calls``: the lower quartile, which other work on the machine disturbs least."""
    weight = next(layers[Form.KEEP, 0].parameters())
    draw = torch.Generator(weight.device).manual_seed(0)
    seconds = dict.fromkeys(layers, 0.0)
    for shape, count in Counter(call.input for call in calls).items():
        x = Example((torch.randn(shape, generator=draw, device=weight.device).to(weight.dtype),), {}, shape[0])
        taken: dict[Key, list[float]] = {key: [] for key in layers}
        with torch.no_grad():
            for layer in layers.values():
                timer(layer, x)
            for turn in range(TURNS):
                for key, layer in layers.items():
                    taken[key].append(timer(layer, x))
                if turn >= 2 and sum(map(sum, taken.values())) > SECONDS:
                    break
        for key, values in taken.items():
            seconds[key] += count * float(np.quantile(values, 0.25))
    return seconds


def meet_latency(
    root: nn.Module,
    write: Callable[..., Plan],
    solve: Callable[[Costs], dict[str, Option]],
    limits: Costs,
    resource: Sequence[Budget],
    example: Example,
    tell: Progress,
    *,
    measure: Measure = latencies,
) -> Plan:
    """The plan that keeps every latency budget of ``resource`` when the whole compressed model is timed.

    ``limits`` are on the sums over the sites, whose times do not quite add up to the model's. What they lead to is
    built and timed beside the original; where it is too slow its limit is tightened by as much, and where more than
    a tenth of the time is left it is loosened; six times at most. The plan that is returned was in time twice, and
    says so in its notes. ``measure``: as ``rankfold.costs.latencies``. Attention must not be split, so that the
    original is timed as it is used. Cost: some seconds for each round; memory: a copy of the model.

    Raises ``BudgetError`` with the best that was measured where nothing is fast enough.
    """
    asked = {axis: budget for axis, budget in enumerate(resource) if isinstance(budget, Latency)}
    total = {axis: measure({"dense": root}, example, batch=b.batch)["dense"] for axis, b in asked.items()}

    def solved(keeps: Keeps) -> dict[str, Option]:
        shift = {axis: (keeps[axis] - budget.keep) * total[axis] for axis, budget in asked.items()}
        return solve(tuple(limit + shift.get(axis, 0.0) for axis, limit in enumerate(limits)))

    def timed(plan: Plan) -> Keeps:
        models = {"dense": root, "compressed": shape_(copy.deepcopy(root), plan)}
        times = {axis: measure(models, example, batch=budget.batch) for axis, budget in asked.items()}
        return {axis: t["compressed"] / t["dense"] for axis, t in times.items()}

    def in_time(ratios: Keeps) -> bool:
        return all(ratios[axis] <= budget.keep for axis, budget in asked.items())

    keeps = {axis: budget.keep for axis, budget in asked.items()}
    passed, best = None, dict.fromkeys(asked, math.inf)
    for turn in range(ROUNDS):
        wanted = keeps
        picked, keeps = _tightest(solved, wanted)
        plan = write(picked)
        ratios = timed(plan)
        if in_time(ratios):
            again = timed(plan)
            ratios = {axis: max(ratios[axis], again[axis]) for axis in asked}
        tell("measuring latency", turn + 1, ROUNDS)
        best = min(best, ratios, key=lambda r: max(r[axis] / budget.keep for axis, budget in asked.items()))
        if in_time(ratios):
            passed = plan, ratios
            used = {axis: ratios[axis] / budget.keep for axis, budget in asked.items()}
            if max(used.values()) > SPARE or all(keep >= 1 for keep in keeps.values()):
                break
            keeps = {axis: min(1.0, MARGIN * keeps[axis] / used[axis]) for axis in asked}
        elif passed is not None or keeps != wanted:
            break  # looser was too slow, or nothing tighter can be had
        else:
            over = {axis: ratios[axis] / budget.keep for axis, budget in asked.items()}
            keeps = {axis: keeps[axis] * (MARGIN / over[axis] if over[axis] > 1 else 1.0) for axis in asked}
    if passed is None:
        raise BudgetError(
            f"the latency budget cannot be met on this machine: asked {_said(asked, {})}, the fastest that was "
            f"measured took {_said(asked, best)}; small layers gain nothing from factoring: allow more, or a larger batch"
        )
    plan, ratios = passed
    return replace(plan, notes=(f"measured latency: {_said(asked, ratios)}", *plan.notes))


def _tightest(solved: Callable[[Keeps], dict[str, Option]], keeps: Keeps) -> tuple[dict[str, Option], Keeps]:
    """The choice for ``keeps``, or, where these are predicted to be out of reach, for the least that is not.

    Raises the ``BudgetError`` where even the dense time is not enough: another budget is in the way.
    """
    try:
        return solved(keeps), keeps
    except BudgetError:
        low, high = keeps, dict.fromkeys(keeps, 1.0)
        picked = solved(high)
    for _ in range(8):
        middle = {axis: (low[axis] + high[axis]) / 2 for axis in keeps}
        try:
            picked, high = solved(middle), middle
        except BudgetError:
            low = middle
    return picked, high


def _said(asked: Mapping[int, Latency], ratios: Keeps) -> str:
    return ", ".join(
        f"{ratios.get(axis, budget.keep):.3g} of dense at batch {budget.batch}" for axis, budget in asked.items()
    )
