"""The choice of least loss within the limits as an integer program, and what of it can be left out beforehand."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any

import numpy as np

from rankfold.compress.ranks.options import BudgetError, Costs, Option, fill, total, within
from rankfold.linalg.frontier import relaxed


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
    best = total(fill(known, choices, limits))
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


def near_relaxation(choices: Mapping[str, Sequence[Option]], limits: Costs, width: int = 6) -> dict[str, list[Option]]:
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


def integer(choices: Mapping[str, Sequence[Option]], limits: Costs) -> dict[str, Option]:
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
