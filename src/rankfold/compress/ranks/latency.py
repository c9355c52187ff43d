"""Latency as a budget: plans that are timed before they are believed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from rankfold.batches import copied
from rankfold.compress.applying.apply import shape_
from rankfold.compress.planning.plan import Plan
from rankfold.compress.ranks.budget import Budget, Latency
from rankfold.compress.ranks.options import BudgetError, Costs, Option
from rankfold.compress.ranks.timing import draw_
from rankfold.costs import Example, evaluating, once
from rankfold.costs.decoding import Phase, phased
from rankfold.run.progress import Progress

Measure = Callable[..., Mapping[str, float]]
Ratios = dict[int, float]  # by resource: a fraction of the dense time

ROUNDS = 8
MARGIN = 0.99  # how much further than needed a limit is tightened
SPARE = 0.9  # of the time allowed: where less is used, more is tried
_ANY = 1e3  # dense times: whatever is planned is less
CLOSE = 0.03  # scales between which nothing more is tried


def paired(
    models: Mapping[str, nn.Module],
    example: Example,
    *,
    batch: int = 1,
    phase: Phase = "forward",
    seconds: float = 3.0,
) -> dict[str, float]:
    """Milliseconds of one forward pass of each model; those of all but the first from their ratios to the first.

    ``phase``: of language models, reading the prompt or one token after it.

    The models run in turns, back and forth, and the median is taken of the ratios within each turn, so that what else
    the machine does weighs on both sides alike. At least five turns, at most 200.
    """
    running = {name: phased(model, example, phase, batch) for name, model in models.items()}
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        for model, given in running.values():
            stack.enter_context(evaluating(model))
            once(model, given)
        begun = time.perf_counter()
        for turn in range(200):
            for name in names if turn % 2 else reversed(names):
                times[name].append(once(*running[name]))
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
    built and timed beside the original; where it is too slow the limits on latency are tightened, and where more than
    a tenth of the time is left they are loosened, a few times over. The plan that is returned was in time twice, and
    says so in its notes. ``measure``: as ``paired``. Attention must not be split, so that the original is timed as it
    is used. Cost: some seconds for each round; memory: a copy of the model.

    Raises ``BudgetError`` with the best that was measured where nothing is fast enough.
    """
    asked = {axis: budget for axis, budget in enumerate(resource) if isinstance(budget, Latency)}
    total = {
        axis: measure({"dense": root}, example, batch=b.batch, phase=b.phase)["dense"] for axis, b in asked.items()
    }

    def solved(scale: float) -> dict[str, Option]:
        """The choice for ``scale`` times the latency that was asked; from the dense one on, whichever loses least.

        The limits come from another measurement than ``total``: what is dense must not exceed them by noise.
        """
        more = {
            axis: (scale * b.keep - b.keep if scale * b.keep < 1 else _ANY) * total[axis] for axis, b in asked.items()
        }
        return solve(tuple(limit + more.get(axis, 0.0) for axis, limit in enumerate(limits)))

    def timed(plan: Plan) -> Ratios:
        if not plan.changed:
            return dict.fromkeys(asked, 1.0)
        models = {"dense": root, "compressed": _shaped(root, plan)}
        times = {axis: measure(models, example, batch=each.batch, phase=each.phase) for axis, each in asked.items()}
        return {axis: t["compressed"] / t["dense"] for axis, t in times.items()}

    def taken(ratios: Ratios) -> float:
        """The part of the time allowed that is taken."""
        return max(ratios[axis] / budget.keep for axis, budget in asked.items())

    passed, best = None, dict.fromkeys(asked, math.inf)
    scale, fast, slow = 1.0, 0.0, 1.1 / min(budget.keep for budget in asked.values())
    for turn in range(ROUNDS):
        picked, reached = _reached(solved, scale)
        plan = write(picked)
        ratios = timed(plan)
        if taken(ratios) <= 1:
            again = timed(plan)
            ratios = {axis: max(ratios[axis], again[axis]) for axis in asked}
        tell("measuring latency", turn + 1, ROUNDS)
        best = min(best, ratios, key=taken)
        if taken(ratios) <= 1:
            passed, fast, done = (plan, ratios), reached, taken(ratios) > SPARE
        else:
            slow, done = reached, reached > scale  # where that is the least, nothing can be faster
        if done or slow - fast < CLOSE:
            break
        scale = _next_scale(reached, [(budget.keep, ratios[axis]) for axis, budget in asked.items()])
        if not fast < scale < slow:
            scale = (fast + slow) / 2
    if passed is None:
        raise BudgetError(
            f"the latency budget cannot be met on this machine: {_said(asked, {})} was asked for, and the "
            f"fastest network that was measured took {_said(asked, best)}. The rest of the model takes its time "
            f"whatever the ranks are: {_remedy(asked, best)}"
        )
    plan, ratios = passed
    return replace(plan, notes=(f"measured latency: {_said(asked, ratios)}", *plan.notes))


def _next_scale(scale: float, met: Sequence[tuple[float, float]]) -> float:
    """What should lead to the latency that was asked, if as large a part of what is planned is reached as before.

    ``met``: (asked, measured) fractions of the dense time; the one that is furthest above decides.
    """
    asked, measured = max(met, key=lambda pair: pair[1] / pair[0])
    planned = min(1.0, scale * asked)
    if measured < 1 and asked < 1:
        planned = 1 - (1 - planned) * (1 - asked) / (1 - measured)
    else:
        planned *= asked / measured
    return MARGIN * planned / asked


def _shaped(root: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model in the shape of the plan, with random weights in the new layers."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator
        small = shape_(copied(root), plan)
    for entry in plan.changed:
        layer = small.get_submodule(entry.site)
        place = next(layer.parameters()).device
        draw_(layer, torch.Generator(place).manual_seed(0))
    return small


def _reached(solved: Callable[[float], dict[str, Option]], scale: float) -> tuple[dict[str, Option], float]:
    """(choice, scale): for ``scale``, or, where that is predicted to be out of reach, for the least that is not.

    Raises the ``BudgetError`` where even the dense time is not enough: another budget is in the way.
    """
    try:
        return solved(scale), scale
    except BudgetError:
        low, high = scale, math.inf
        picked = solved(high)
    for _ in range(6):
        middle = (low + high) / 2 if high < math.inf else max(1.0, 2 * low)
        try:
            picked, high = solved(middle), middle
        except BudgetError:
            low = middle
    return picked, high


def _remedy(asked: Mapping[int, Latency], best: Ratios) -> str:
    """What can be had, as it is typed; three digits, never less than was measured."""
    if max(best.values()) >= 1:
        return (
            "none of the compressed networks that were tried is faster than the original here: keep the "
            "original, or ask for a budget of FLOPs or bytes"
        )
    least = [replace(each, keep=max(each.keep, math.ceil(1e3 * best[axis]) / 1e3)).text for axis, each in asked.items()]
    return f"{' and '.join(least)} is the smallest that was reached: ask for that, or for a little more"


def _said(asked: Mapping[int, Latency], ratios: Ratios) -> str:
    return ", ".join(f"{ratios.get(axis, budget.keep):.3g} of dense {budget.place}" for axis, budget in asked.items())
