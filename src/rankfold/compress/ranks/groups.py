"""Ranks where some sites may share a factor: a group is one option of its own, or one of each of its members.

The multiple-choice knapsack with one more kind of choice. With prices λ of the costs (those of a linear relaxation) no
choice has a loss below Σ_g min(Σ_members min(loss + λ·cost), min over the group(loss + λ·cost)) + … − λ·limit, so that
what exceeds its group's least by more than a known choice exceeds that bound is in no better one, as in
``rankfold.compress.ranks.program``. What remains is an integer program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rankfold.compress.ranks.allocate import optimal
from rankfold.compress.ranks.options import BudgetError, Costs, Option, fill, useful, within
from rankfold.compress.ranks.program import program, solved

Groups = Mapping[str, Sequence[str]]
_EXACT = 4000


def optimal_of_groups(
    options: Mapping[str, Sequence[Option]], limits: Costs, groups: Groups, *, exact: int = _EXACT
) -> dict[str, Option]:
    """The choice of least total loss within ``limits``. ``groups``: for the name of each group its members; where its
    own option is taken, it stands in the result in place of theirs. ``BudgetError`` if nothing fits.

    Exact as ``optimal`` is; where more than ``exact`` options may still be best, the better one is taken of two: no
    group shares, and those share that gain by it at the prices of the relaxation.
    """
    taking = {name: members for name, members in groups.items() if options.get(name)}
    if not taking or not limits:
        return optimal(_sided(options, groups, frozenset()), limits)
    choices = {site: useful(list(group)) for site, group in options.items()}
    prices = _prices(choices, limits, taking)
    reduced = {s: [o.loss + float(np.dot(prices, o.costs)) for o in group] for s, group in choices.items()}
    least = {site: min(values) for site, values in reduced.items()}
    apart = {name: sum(least[member] for member in members) for name, members in taking.items()}
    gaining = frozenset(name for name in taking if least[name] < apart[name])
    known = _best([_tried(options, taking, side, limits) for side in {frozenset[str](), gaining}])
    if known is None:
        known = optimal(_sided(options, taking, frozenset(taking)), limits)
    owner = {member: name for name, members in taking.items() for member in members}
    floor = sum(min(least[g], apart[g]) for g in taking)
    floor += sum(value for site, value in least.items() if site not in owner and site not in taking)
    scale = sum(map(abs, least.values()))
    room = _loss(known) - (floor - float(np.dot(prices, limits))) + 1e-9 * (_loss(known) + scale)
    kept = {}
    for site, group in choices.items():
        name = owner.get(site, site if site in taking else None)
        above = 0.0 if name is None else (apart[name] if site in owner else least[name]) - min(apart[name], least[name])
        kept[site] = [o for o, r in zip(group, reduced[site], strict=True) if r - least[site] + above <= room]
    open_ = [name for name in taking if kept[name] and all(kept[member] for member in taking[name])]
    if not open_ or sum(map(len, kept.values())) > exact:
        return known
    flat, rows, costs, loss, _ = program(kept, limits, taking)
    found = solved(flat, rows, costs, loss, limits)
    if found is None:
        return known
    shared = frozenset(name for name in taking if name in found)
    again = fill(found, _sided(options, taking, shared), limits)
    return again if within(again, limits) and _loss(again) < _loss(known) else known


def _prices(choices: Mapping[str, Sequence[Option]], limits: Costs, groups: Groups) -> np.ndarray:
    from scipy.optimize import linprog

    _, rows, costs, loss, largest = program(choices, limits, groups)
    result = linprog(
        loss, A_ub=costs, b_ub=np.ones(len(limits)), A_eq=rows, b_eq=np.ones(rows.shape[0]), method="highs"
    )
    if result.status != 0:
        raise BudgetError(
            "the budget cannot be met: no combination of ranks satisfies all limits at once; allow more of one of them"
        )
    return np.maximum(-result.ineqlin.marginals, 0.0) * largest / np.maximum(np.asarray(limits, float), 1e-300)


def _sided(options: Mapping[str, Any], groups: Groups, shared: frozenset[str]) -> dict[str, Any]:
    """The options where the groups in ``shared`` share, and no others."""
    gone = {member for name in shared for member in groups[name]} | (set(groups) - shared)
    return {site: group for site, group in options.items() if site not in gone}


def _tried(
    options: Mapping[str, Sequence[Option]], groups: Groups, shared: frozenset[str], limits: Costs
) -> dict[str, Option] | None:
    try:
        return optimal(_sided(options, groups, shared), limits)
    except BudgetError:
        return None


def _best(found: Sequence[dict[str, Option] | None]) -> dict[str, Option] | None:
    return min((each for each in found if each is not None), key=_loss, default=None)


def _loss(picked: Mapping[str, Option]) -> float:
    return sum(option.loss for option in picked.values())
