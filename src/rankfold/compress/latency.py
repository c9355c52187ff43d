"""Latency as a budget: what every site takes by the clock, and plans that are timed before they are believed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from rankfold.compress.allocate import BudgetError, Option
from rankfold.compress.apply import shape_
from rankfold.compress.budget import Budget, Latency
from rankfold.compress.candidates import Candidate
from rankfold.compress.plan import Plan
from rankfold.costs import Example, latencies
from rankfold.sites import Form, Site, SiteList

Progress = Callable[[str, int, int], None]
Timing = Callable[[Site, Form, int], float]


def site_timing(
    root: nn.Module,
    sites: SiteList,
    candidates: Mapping[str, Sequence[Candidate]],
    example: Example,
    batch: int,
    tell: Progress,
) -> Timing:
    """Milliseconds of one site in a form at a rank."""
    from rankfold.costs import trace

    calls = trace(root, example, sites)[1]

    def timing(site: Site, form: Form, rank: int) -> float:
        return 1e-9 * site.layer.flops(form, rank, calls.get(site.name, ())) * batch / example.samples

    return timing


def meet_latency(
    root: nn.Module,
    write: Callable[..., Plan],
    solve: Callable[[tuple[float, ...]], dict[str, Option]],
    limits: tuple[float, ...],
    resource: Sequence[Budget],
    example: Any,
    tell: Progress,
) -> Plan:
    """The plan whose measured latency meets every latency budget in ``resource``; ``BudgetError`` if none does."""
    best = float("inf")
    for turn in range(6):
        plan = write(solve(limits))
        small = shape_(copy.deepcopy(root), plan)
        tighter, worst = list(limits), 0.0
        for axis, budget in enumerate(resource):
            if isinstance(budget, Latency):
                times = latencies({"dense": root, "small": small}, example, batch=budget.batch)
                ratio = times["small"] / times["dense"]
                worst = max(worst, ratio / budget.keep)
                if ratio > budget.keep:
                    tighter[axis] *= budget.keep / ratio
        best = min(best, worst)
        tell("measuring latency", turn + 1, 6)
        if worst <= 1:
            return replace(plan, notes=(*plan.notes, f"measured latency: {worst:.3f} of the budget"))
        limits = tuple(tighter)
    raise BudgetError(f"the latency budget cannot be met: the best measured was {best:.2f} times what is allowed")
