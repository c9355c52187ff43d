"""Latency as a budget: plans that are timed before they are believed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from rankfold.compress.allocate import BudgetError, Costs, Option
from rankfold.compress.apply import shape_
from rankfold.compress.budget import Budget, Latency
from rankfold.compress.plan import Plan
from rankfold.compress.timing import draw_
from rankfold.costs import Example, evaluating, once, with_batch

Progress = Callable[[str, int, int], None]
Measure = Callable[..., Mapping[str, float]]
Keeps = dict[int, float]  # by resource: a fraction of the dense time

ROUNDS = 6
MARGIN = 0.98  # how much further than needed a limit is tightened
SPARE = 0.9  # of the time allowed: where less is used, more is tried


def paired(
    models: Mapping[str, nn.Module], example: Example, *, batch: int = 1, seconds: float = 3.0
) -> dict[str, float]:
    """Milliseconds of one forward pass of each model; those of all but the first from their ratios to the first.

    The models run in turns, back and forth, and the median is taken of the ratios within each turn, so that what else
    the machine does weighs on both sides alike. At least five turns, at most 200.
    """
    example = with_batch(example, batch)
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
            once(model, example)
        begun = time.perf_counter()
        for turn in range(200):
            for name in names if turn % 2 else reversed(names):
                times[name].append(once(models[name], example))
            if turn >= 4 and time.perf_counter() - begun > seconds:
                break
    first = np.array(times[names[0]])
    base = 1e3 * float(np.median(first))
    return {name: base * float(np.median(np.array(values) / first)) for name, values in times.items()}


def meet_latency(
    root: nn.Module,
    write: Callable[..., Plan],
    solve: Callable[[Costs], dict[str, Option]],
    limits: Costs,
    resource: Sequence[Budget],
    example: Example,
    tell: Progress,
    *,
    measure: Measure = paired,
) -> Plan:
    """The plan that keeps every latency budget of ``resource`` when the whole compressed model is timed.

    ``limits`` are on the sums over the sites, whose times do not quite add up to the model's. What they lead to is
    built and timed beside the original; where it is too slow its limit is tightened by as much, and where more than
    a tenth of the time is left it is loosened; six times at most. The plan that is returned was in time twice, and
    says so in its notes. ``measure``: as ``paired``. Attention must not be split, so that the
    original is timed as it is used. Cost: some seconds for each round; memory: a copy of the model.

    Raises ``BudgetError`` with the best that was measured where nothing is fast enough.
    """
    asked = {axis: budget for axis, budget in enumerate(resource) if isinstance(budget, Latency)}
    total = {axis: measure({"dense": root}, example, batch=b.batch)["dense"] for axis, b in asked.items()}

    def solved(keeps: Keeps) -> dict[str, Option]:
        shift = {axis: (keeps[axis] - budget.keep) * total[axis] for axis, budget in asked.items()}
        return solve(tuple(limit + shift.get(axis, 0.0) for axis, limit in enumerate(limits)))

    def timed(plan: Plan) -> Keeps:
        models = {"dense": root, "compressed": _shaped(root, plan)}
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
            f"measured took {_said(asked, best)}; small layers gain nothing: allow more, or a larger batch"
        )
    plan, ratios = passed
    return replace(plan, notes=(f"measured latency: {_said(asked, ratios)}", *plan.notes))


def _shaped(root: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model in the shape of the plan, with random weights in the new layers."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        small = shape_(copy.deepcopy(root), plan)
    for entry in plan.changed:
        layer = small.get_submodule(entry.site)
        place = next(layer.parameters()).device
        draw_(layer, torch.Generator(place).manual_seed(0))
    return small


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
