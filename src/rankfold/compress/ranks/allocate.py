"""Rank rules that need no further forward passes: optimal, local and global.

Every rule sees the same thing: for each site a list of options (keep among them) with a predicted loss and a cost
vector, and one limit for each resource. Costs are those of the site; the rest of the model is in the limits already.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from rankfold.linalg.frontier import frontier, relaxed
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
        choices = _near_relaxation(choices, limits)
    picked = _integer(choices, limits)
    bound = _total(picked)
    # the solver's tolerance is a fraction of the largest loss: leave out what no better choice can contain
    while max(option.loss for group in choices.values() for option in group) > 10 * bound > 0:
        choices = {site: [option for option in group if option.loss <= bound] for site, group in choices.items()}
        picked = _integer(choices, limits)
        bound = min(bound, _total(picked))
    return fill(picked, options, limits)


def _total(picked: Mapping[str, Option]) -> float:
    return sum(option.loss for option in picked.values())


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


def program(
    choices: Mapping[str, Sequence[Option]], limits: Costs, groups: Mapping[str, Sequence[str]] | None = None
) -> tuple[Any, ...]:
    """(options, rows, costs, loss, largest loss) of the program: minimise loss·x, costs·x ≤ 1, rows·x = 1, x binary.

    ``groups``: for the name of each the sites in place of which an option of it is taken.
    """
    from scipy.sparse import csr_array

    groups = groups or {}
    rows = {site: index for index, site in enumerate(site for site in choices if site not in groups)}
    flat: list[tuple[str, Option]] = []
    places: list[tuple[int, int]] = []
    for site, group in choices.items():
        for option in group:
            places += [(rows[member], len(flat)) for member in groups.get(site, (site,))]
            flat.append((site, option))
    at = np.array(places).reshape(-1, 2).T
    matrix = csr_array((np.ones(at.shape[1]), (at[0], at[1])), shape=(len(rows), len(flat)))
    scale = np.maximum(np.asarray(limits, float), 1e-300)
    costs = np.array([option.costs for _, option in flat]).T / scale[:, None]
    loss = np.array([option.loss for _, option in flat])
    finite = np.isfinite(loss)
    loss[~finite] = 10 * loss[finite].sum() + 1  # worse than anything finite
    largest = max(loss.max(), 1e-300)
    return flat, matrix, costs, loss / largest, largest


def _integers(rows: Any, costs: Any, loss: Any) -> Any:
    """Which options are taken, as numbers near 0 and 1: one for each of ``rows``, costs of at most 1, the least loss;
    None where there is no such choice, or none was found in half a minute."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    with _silenced():
        return milp(
            loss,
            integrality=np.ones(len(loss)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(rows, 1, 1), LinearConstraint(costs, -np.inf, 1.0)],
            options={"time_limit": 30.0, "mip_rel_gap": 1e-6},
        ).x


def solved(
    flat: Sequence[tuple[str, Option]], rows: Any, costs: Any, loss: Any, limits: Costs
) -> dict[str, Option] | None:
    """What of a ``program`` is taken, by site or group; None where that is not within the limits."""
    taken = _integers(rows, costs, loss)
    if taken is None:
        return None
    picked = {site: option for (site, option), share in zip(flat, taken, strict=True) if share > 0.5}
    return picked if within(picked, limits) else None


def _program(choices: Mapping[str, Sequence[Option]], limits: Costs) -> tuple[Any, ...]:
    flat, rows, costs, loss, _ = program(choices, limits)
    owner = np.repeat(np.arange(len(choices)), [len(group) for group in choices.values()])
    return [option for _, option in flat], owner, rows, costs, loss


def promising(
    choices: Mapping[str, Sequence[Option]], limits: Costs
) -> tuple[dict[str, list[Option]], np.ndarray, float]:
    """``choices`` less every option that no best choice contains; prices λ of the costs; and how far a best choice lies
    above its least loss + λ·cost, at most (infinite where that is not known).

    For λ ≥ 0, no choice within the limits has a loss below Σ_site min(loss + λ·cost) − λ·limit, and one that takes an
    option whose loss + λ·cost is δ above its site's least has a loss of δ more: where that is more than the loss of a
    choice already known, the option is in no better one. λ: dual prices of the linear relaxation, for which few options
    remain. The known choice: of each site the cheapest that the relaxation mixes, filled.
    """
    everything = {site: list(group) for site, group in choices.items()}
    unknown = everything, np.zeros(len(limits)), float("inf")
    if not all(isfinite(option.loss) for group in choices.values() for option in group):
        return unknown
    found = _relaxed_to_one(choices, limits) if len(limits) == 1 else _relaxed(choices, limits)
    if found is None or not within(found[0], limits):
        return unknown
    known, prices = found
    reduced = {
        site: np.array([option.loss + float(np.dot(prices, option.costs)) for option in group])
        for site, group in choices.items()
    }
    least = np.array([values.min() for values in reduced.values()])
    best = _total(fill(known, choices, limits))
    # what is subtracted is known to rounding only
    room = best - (least.sum() - float(prices @ np.asarray(limits))) + 1e-9 * (best + float(np.abs(least).sum()))
    kept = {
        site: [option for option, value in zip(group, reduced[site], strict=True) if value - lowest <= room]
        for (site, group), lowest in zip(choices.items(), least, strict=True)
    }
    return kept, prices, float(room)


def _relaxed_to_one(
    choices: Mapping[str, Sequence[Option]], limits: Costs
) -> tuple[dict[str, Option], np.ndarray] | None:
    """What the relaxation takes of each site, rounded down, and the price; without a program, of which each option
    would be a column."""
    losses, costs = (
        [np.array([get(o) for o in group]) for group in choices.values()]
        for get in (lambda o: o.loss, lambda o: o.costs[0])
    )
    found = relaxed(losses, costs, limits[0])
    if found is None:
        return None
    indices, price = found
    return {site: group[i] for (site, group), i in zip(choices.items(), indices, strict=True)}, np.array([price])


def _relaxed(choices: Mapping[str, Sequence[Option]], limits: Costs) -> tuple[dict[str, Option], np.ndarray] | None:
    from scipy.optimize import linprog

    flat, owner, one, costs, loss = _program(choices, limits)
    ones = np.ones(len(choices))
    result = linprog(loss, A_ub=costs, b_ub=np.ones(len(limits)), A_eq=one, b_eq=ones, method="highs")
    if result.status != 0:
        return None
    largest = max(option.loss for option in flat)  # by which losses are divided in the program
    scale = np.maximum(np.asarray(limits, float), 1e-300)
    prices = np.maximum(-result.ineqlin.marginals, 0.0) * (largest if largest > 0 else 1.0) / scale
    spent = np.where(result.x > 1e-9, prices @ np.array([option.costs for option in flat]).T, np.inf)
    cheapest = np.lexsort((spent, owner))[np.flatnonzero(np.diff(owner, prepend=-1))]
    return {site: flat[index] for site, index in zip(choices, cheapest, strict=True)}, prices


def _near_relaxation(choices: Mapping[str, Sequence[Option]], limits: Costs, width: int = 6) -> dict[str, list[Option]]:
    from scipy.optimize import linprog

    _, owner, one, costs, loss = _program(choices, limits)
    ones = np.ones(len(choices))
    result = linprog(loss, A_ub=costs, b_ub=np.ones(len(limits)), A_eq=one, b_eq=ones, method="highs")
    if result.status == 2:
        raise BudgetError(
            "the budget cannot be met: no combination of ranks satisfies all limits at once; allow more of one of them"
        )
    near = {}
    for index, (site, group) in enumerate(choices.items()):
        share = result.x[owner == index]
        support = [int(index) for index in np.flatnonzero(share > 1e-9)]
        chosen = {j for s in support for j in range(max(0, s - width), min(len(group), s + width + 1))}
        cheapest = {int(np.argmin([option.costs[axis] for option in group])) for axis in range(len(limits))}
        near[site] = [group[j] for j in sorted(chosen | cheapest | {0})]
    return near


def _integer(choices: Mapping[str, Sequence[Option]], limits: Costs) -> dict[str, Option]:
    flat, owner, one, costs, loss = _program(choices, limits)
    taken = _integers(one, costs, loss)
    if taken is None:
        raise BudgetError(
            "the budget cannot be met: no combination of ranks satisfies all limits at once; allow more of one of them"
        )
    picked = {}
    for index, site in enumerate(choices):
        members = np.flatnonzero(owner == index)
        picked[site] = flat[members[np.argmax(taken[members])]]
    if not within(picked, limits):  # a solver's tolerance of 1e-6 is not ours: give back the cheapest rank step
        picked = _step_back(picked, choices, limits)
    return picked


@contextmanager
def _silenced() -> Iterator[None]:
    """HiGHS leaves a debugging line on the process's standard output, which belongs to the caller: send it nowhere."""
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else (lambda stream: None)
    try:
        kept = os.dup(1)
    except OSError:  # no standard output to protect
        yield
        return
    with open(os.devnull, "wb") as nowhere:
        flush(None)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            flush(None)  # what C code still holds goes where it was sent
            os.dup2(kept, 1)
            os.close(kept)


def within(picked: Mapping[str, Option], limits: Costs) -> bool:
    return all(sum(o.costs[axis] for o in picked.values()) <= limit for axis, limit in enumerate(limits))


def _step_back(picked: dict[str, Option], choices: Mapping[str, Sequence[Option]], limits: Costs) -> dict[str, Option]:
    while not within(picked, limits):
        over = [axis for axis, x in enumerate(limits) if sum(o.costs[axis] for o in picked.values()) > x]
        steps = [
            (option.loss - picked[site].loss, site, option)
            for site, group in choices.items()
            for option in group
            if all(option.costs[axis] < picked[site].costs[axis] for axis in over)
        ]
        if not steps:
            raise BudgetError(
                "the budget cannot be met: no combination of ranks satisfies all limits at once; allow more of one "
                "of them"
            )
        _, site, option = min(steps, key=lambda step: step[0])
        picked = {**picked, site: option}
    return picked


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
    return [option for option in group if keep is None or option is keep or _saves(option, keep)]


def _saves(option: Option, keep: Option) -> bool:
    return any(new < old for new, old in zip(option.costs, keep.costs, strict=True))


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
    return option if keep is None or _saves(option, keep) else keep


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
