"""Rank rules that need no further forward passes: optimal, local and global.

Every rule sees the same thing: for each site a list of options (keep among them) with a predicted loss and a cost
vector, and one limit for each resource. Costs are those of the site; the rest of the model is in the limits already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite

import numpy as np

from rankfold.compress.ranks.options import (
    BudgetError,
    Costs,
    Option,
    check_feasible,
    fill,
    saves,
    total,
    useful,
    within,
)
from rankfold.compress.ranks.program import integer, near_relaxation, promising
from rankfold.linalg.frontier import frontier
from rankfold.sites import Form


def optimal(options: Mapping[str, Sequence[Option]], limits: Costs, *, exact: int = 4000) -> dict[str, Option]:
    """The choice of least total loss with total costs within ``limits``: a multiple-choice knapsack.

    Options that the linear relaxation proves useless are left out. With one limit every sum that can still be best is
    followed (``frontier``); with several, or where these are too many, the rest is integer programming (HiGHS). With
    more than ``exact`` options even then, only those next to the solution of the relaxation take part, which leaves at
    most a few rank steps to chance; what is left of the budget is then filled. Raises ``BudgetError`` if nothing fits.
    """
    choices = {site: useful(list(group)) for site, group in options.items()}
    check_feasible(choices, limits)
    if not limits or not choices:
        return {site: min(group, key=lambda o: (o.loss, o.costs)) for site, group in choices.items()}
    choices, prices, room = promising(choices, limits)
    if len(limits) == 1 and isfinite(room):
        losses, costs = (
            [np.array([get(o) for o in group]) for group in choices.values()]
            for get in (lambda o: o.loss, lambda o: o.costs[0])
        )
        indices = frontier(losses, costs, limits[0], float(prices[0]), room)
        if indices is not None:
            found = {site: group[i] for (site, group), i in zip(choices.items(), indices, strict=True)}
            if within(found, limits):
                return fill(found, options, limits)
    if sum(map(len, choices.values())) > exact:
        choices = near_relaxation(choices, limits)
    picked = integer(choices, limits)
    bound = total(picked)
    # the solver's tolerance is a fraction of the largest loss: leave out what no better choice can contain
    while max(option.loss for group in choices.values() for option in group) > 10 * bound > 0:
        choices = {site: [option for option in group if option.loss <= bound] for site, group in choices.items()}
        picked = integer(choices, limits)
        bound = min(bound, total(picked))
    return fill(picked, options, limits)


def _cheapest_within(
    thresholds: Sequence[float], pick: Callable[[float], dict[str, Option]], limits: Costs
) -> dict[str, Option]:
    """The choice for the largest of the ascending ``thresholds`` that is within the limits (costs rise with it)."""
    low, high, best = 0, len(thresholds) - 1, None
    while low <= high:
        middle = (low + high) // 2
        picked = pick(thresholds[middle])
        if within(picked, limits):
            best, low = picked, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise BudgetError(
            "the budget cannot be met by this rank rule, not even with rank 1 in every layer: allow more, or use "
            "the rule 'optimal'"
        )
    return best


def _keep_or(option: Option, group: Sequence[Option]) -> Option:
    """The option, or keeping the site where factoring it would save nothing."""
    keep = next((o for o in group if o.form is Form.KEEP), None)
    return option if keep is None or saves(option, keep) else keep


def local(
    options: Mapping[str, Sequence[Option]],
    limits: Costs,
    fraction: float | None = None,
    rank: int | None = None,
) -> dict[str, Option]:
    """One rank, or one fraction of the full rank, for every site (LSVT); by default the largest that fits."""

    def pick(share: float) -> dict[str, Option]:
        picked = {}
        for site, group in options.items():
            ranks = [o for o in group if o.form is not Form.KEEP]
            if not ranks:
                picked[site] = group[0]
                continue
            full = max(o.rank for o in ranks)
            wanted = max(1, min(full, rank if rank is not None else int(share * full + 1e-9)))
            picked[site] = _keep_or(min(ranks, key=lambda o: abs(o.rank - wanted)), group)
        return picked

    if fraction is not None or rank is not None:
        picked = pick(fraction if fraction is not None else 1.0)
        if not within(picked, limits):
            raise BudgetError(
                f"the budget cannot be met with {_wish(fraction, rank)} in every layer: ask the rule for less, or "
                "allow more"
            )
        return picked
    full = max((o.rank for group in options.values() for o in group), default=1)
    return _cheapest_within([i / full for i in range(1, full + 1)], pick, limits)


def _wish(fraction: float | None, rank: int | None) -> str:
    return f"rank {rank}" if rank is not None else f"{fraction:g} of the full rank"


def global_(options: Mapping[str, Sequence[Option]], limits: Costs) -> dict[str, Option]:
    """Every spectrum divided by its largest value, all values ranked together, the largest kept (GSVT)."""
    ladders = {
        site: sorted((o for o in group if o.form is not Form.KEEP), key=lambda o: o.rank)
        for site, group in options.items()
    }

    def pick(negative_level: float) -> dict[str, Option]:
        picked = {}
        for site, ladder in ladders.items():
            kept = [o for o in ladder if o.level >= -negative_level]
            chosen = kept[-1] if kept else ladder[0] if ladder else options[site][0]
            picked[site] = _keep_or(chosen, options[site]) if ladder else chosen
        return picked

    levels = sorted({-o.level for ladder in ladders.values() for o in ladder} | {-np.inf, 0.0})
    return _cheapest_within(levels, pick, limits)
