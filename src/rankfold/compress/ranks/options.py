"""What may become of a site: one form at one rank, its loss and its costs; and choices of one of these for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from rankfold.sites import Form

Costs = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """One form of one site at one rank. ``loss`` ≥ 0 is comparable between sites; ``costs`` one for each resource.

    ``level`` is the smallest singular value kept, divided by the largest: what the global rule ranks.
    """

    form: Form
    rank: int
    loss: float
    costs: Costs
    level: float = 0.0


def alone(option: Option) -> Option:
    """The same with numbers of its own: in those that were made along with the other ranks' a plan would keep the pages
    of all of them, 30 MB for twelve blocks of width 1,024."""
    costs = tuple(cost + 0.0 for cost in option.costs)
    return Option(option.form, option.rank + 0, option.loss + 0.0, costs, option.level + 0.0)


class BudgetError(ValueError):
    """No choice of ranks meets the budget; names what stands in the way and the smallest budget that can be met.

    Example:
        >>> try:
        ...     rf.plan(nn.Sequential(nn.Linear(8, 8)), "params=0.01", "truncate", example=torch.randn(1, 8))
        ... except rf.BudgetError:
        ...     print("too small")
        too small
    """


def useful(options: Sequence[Option]) -> list[Option]:
    """The options that no other beats: cheaper in some resource, or of less loss, than every other one."""
    ordered = sorted(options, key=lambda o: (o.loss, o.costs))
    kept: list[Option] = []
    if ordered and len(ordered[0].costs) == 1:
        least = float("inf")
        for option in ordered:
            if option.costs[0] < least or not kept:
                kept.append(option)
                least = option.costs[0]
        return kept
    costs = np.empty((len(ordered), len(ordered[0].costs) if ordered else 0))
    for option in ordered:
        if kept and bool((costs[: len(kept)] <= np.asarray(option.costs)).all(1).any()):
            continue
        costs[len(kept)] = option.costs
        kept.append(option)
    return kept


def total(picked: Mapping[str, Option]) -> float:
    return sum(option.loss for option in picked.values())


def within(picked: Mapping[str, Option], limits: Costs) -> bool:
    return all(sum(o.costs[axis] for o in picked.values()) <= limit for axis, limit in enumerate(limits))


def check_feasible(
    options: Mapping[str, Sequence[Option]],
    limits: Costs,
    names: Sequence[str] = (),
    obstacle: Callable[[int, float], str] | None = None,
) -> None:
    """``BudgetError`` if one of the limits alone excludes every choice; ``obstacle(limit, what it lacks)`` says why."""
    for axis, limit in enumerate(limits):
        least = sum(min(o.costs[axis] for o in group) for group in options.values())
        if least > limit * (1 + 1e-12):
            name = names[axis] if names else f"limit {axis + 1}"
            why = "" if obstacle is None else obstacle(axis, least - limit)
            if not why:
                why = f"the layers cost at least {least:.6g}, and {max(limit, 0.0):.6g} is left for them: allow more"
            raise BudgetError(f"{name}: the budget cannot be met: {why}")


def fill(picked: Mapping[str, Option], options: Mapping[str, Sequence[Option]], limits: Costs) -> dict[str, Option]:
    """Spend what is left: the step of most loss saved that still fits, again and again, until no rank step fits.

    A site without loss has nothing to gain, and no site is factored at the price of keeping it.
    """
    result = dict(picked)
    ladders = {site: _worthwhile(group) for site, group in options.items()}
    while True:
        left = [limit - sum(o.costs[axis] for o in result.values()) for axis, limit in enumerate(limits)]
        best: tuple[float, str, Option] | None = None
        for site, ladder in ladders.items():
            now = result[site]
            for option in ladder if now.loss > 0 else ():
                larger = option.rank > now.rank if option.form is now.form else option.loss < now.loss
                if not larger or not option.loss <= now.loss:
                    continue
                fits = all(new - old <= room for new, old, room in zip(option.costs, now.costs, left, strict=True))
                gain = now.loss - option.loss if isfinite(option.loss) else 0.0
                if fits and (best is None or gain > best[0]):
                    best = (gain, site, option)
        if best is None:
            return result
        result[best[1]] = best[2]


def _worthwhile(group: Sequence[Option]) -> list[Option]:
    """Keeping the site, and what is cheaper than that in some resource."""
    keep = next((option for option in group if option.form is Form.KEEP), None)
    return [option for option in group if keep is None or option is keep or saves(option, keep)]


def saves(option: Option, keep: Option) -> bool:
    return any(new < old for new, old in zip(option.costs, keep.costs, strict=True))
