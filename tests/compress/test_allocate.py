"""Rank rules against brute force and naive references, on random problems of one to three resources."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.compress.ranks import allocate
from rankfold.compress.ranks.allocate import global_, local, optimal
from rankfold.compress.ranks.options import BudgetError, Option, check_feasible, fill, useful, within
from rankfold.linalg.frontier import relaxed
from rankfold.sites import Form


def problem(seed: int, sites: int, ranks: int, resources: int, spread: float, tightness: float):
    """Sites with falling errors and costs that rise with the rank; factored beyond half of the ranks costs more."""
    rng = np.random.default_rng(seed)
    options = {}
    for index in range(sites):
        dense = rng.integers(20, 200, resources)
        values = np.sort(rng.random(ranks))[::-1] ** spread
        energies = np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0) * 10.0 ** rng.uniform(-spread, spread)
        group = [Option(Form.KEEP, ranks, 0.0, tuple(map(float, dense)), 0.0)]
        for rank in range(1, ranks + 1):
            costs = tuple(float(c * rank * 2 // ranks + 1) for c in dense)
            group.append(Option(Form.FACTORED, rank, float(energies[rank]), costs, float(values[rank - 1] / values[0])))
        options[f"site{index}"] = group
    least = [sum(min(o.costs[a] for o in g) for g in options.values()) for a in range(resources)]
    most = [sum(g[0].costs[a] for g in options.values()) for a in range(resources)]
    limits = tuple(lo + tightness * (hi - lo) for lo, hi in zip(least, most, strict=True))
    return options, limits


problems = st.builds(
    problem,
    seed=st.integers(0, 2**31),
    sites=st.integers(1, 4),
    ranks=st.integers(1, 5),
    resources=st.integers(1, 3),
    spread=st.sampled_from([0.5, 2.0, 5.0]),
    tightness=st.floats(0.0, 1.2),
)


def total(picked):
    return sum(option.loss for option in picked.values())


def brute_force(options, limits):
    """The least total loss within the limits, or None."""
    best = None
    for choice in itertools.product(*options.values()):
        spent = [sum(o.costs[axis] for o in choice) for axis in range(len(limits))]
        if all(s <= limit for s, limit in zip(spent, limits, strict=True)):
            loss = sum(o.loss for o in choice)
            best = loss if best is None else min(best, loss)
    return best


def is_optimal(allocate, options, limits) -> bool:
    best = brute_force(options, limits)
    try:
        picked = allocate(options, limits)
    except BudgetError:
        return best is None
    return best is not None and within(picked, limits) and total(picked) <= best * (1 + 1e-5) + 1e-15


@given(problems)
def test_optimal_is_what_brute_force_finds(case):
    assert is_optimal(optimal, *case)


@given(problems)
def test_the_relaxation_for_large_problems_stays_within_and_near(case):
    options, limits = case
    best = brute_force(options, limits)
    if best is None:
        with pytest.raises(BudgetError):
            optimal(options, limits, exact=0)
        return
    picked = optimal(options, limits, exact=0)
    assert within(picked, limits)
    assert total(picked) <= best * (1 + 1e-5) + 1e-15  # with so few ranks the neighbourhood is everything


def greedy_by_energy(options, limits):
    """Deliberately wrong: each step the most loss saved for its cost, without looking back, and without keeping."""
    picked = {site: min(group, key=lambda o: o.costs) for site, group in options.items()}
    while True:
        best = None
        for site, group in options.items():
            for option in group:
                if option.form is Form.KEEP or option.rank != picked[site].rank + 1:
                    continue
                trial = {**picked, site: option}
                if within(trial, limits):
                    gain = (picked[site].loss - option.loss) / max(option.costs[0] - picked[site].costs[0], 1e-9)
                    if best is None or gain > best[0]:
                        best = (gain, trial)
        if best is None:
            if not within(picked, limits):
                raise BudgetError("nothing fits")
            return picked
        picked = best[1]


def without_keep(options, limits):
    """Deliberately wrong: dense is no choice."""
    reduced = {s: [o for o in g if o.form is not Form.KEEP] or g for s, g in options.items()}
    return optimal(reduced, limits)


def over_budget(options, limits):
    """Deliberately wrong: one in a hundred too much is not noticed."""
    return optimal(options, tuple(1.01 * limit for limit in limits))


@pytest.mark.parametrize("wrong", [greedy_by_energy, without_keep, over_budget])
def test_the_oracle_rejects_wrong_allocators(wrong):
    cases = [problem(seed, 4, 5, 1 + seed % 3, 2.0, 0.4 + 0.1 * (seed % 5)) for seed in range(60)]
    assert all(is_optimal(optimal, *case) for case in cases)
    assert not all(is_optimal(wrong, *case) for case in cases)


@given(problems)
def test_no_rank_step_that_helps_still_fits(case):
    options, limits = case
    if brute_force(options, limits) is None:
        return
    for rule in (optimal, lambda o, b: optimal(o, b, exact=0)):
        picked = rule(options, limits)
        for site, group in options.items():
            for option in group:
                if option.loss < picked[site].loss:
                    assert not within({**picked, site: option}, limits)


@given(problems)
def test_factoring_that_gains_nothing_is_not_done(case):
    options, limits = case
    if brute_force(options, limits) is None:
        return
    for site, option in optimal(options, limits).items():
        keep = options[site][0]
        assert option is keep or any(a < b for a, b in zip(option.costs, keep.costs, strict=True))


def test_an_exact_low_rank_is_not_padded_with_useless_directions():
    """Rank 2 is exact: with budget to spare, neither more ranks nor a factored form that costs more than dense."""
    group = [Option(Form.KEEP, 8, 0.0, (64.0,))]
    group += [Option(Form.FACTORED, r, 0.0 if r >= 2 else 1.0, (16.0 * r,), 1.0) for r in range(1, 9)]
    for rule in (optimal, lambda o, b: optimal(o, b, exact=0)):
        picked = rule({"a": group}, (1000.0,))["a"]
        assert (picked.form, picked.rank) == (Form.FACTORED, 2)


def by_table(options, limit):
    """The least total loss with one limit and whole costs: the textbook table over every sum of costs."""
    best = np.zeros(int(limit) + 1)
    for group in options.values():
        after = np.full_like(best, np.inf)
        for option in group:
            cost = int(option.costs[0])
            if cost < len(best):
                after[cost:] = np.minimum(after[cost:], best[: len(best) - cost] + option.loss)
        best = after
    return best[-1]


@given(st.integers(0, 2**31), st.sampled_from([0.5, 2.0]), st.floats(0.1, 0.9))
def test_one_limit_is_met_exactly_as_well_as_by_a_table_and_without_integer_programming(seed, spread, tightness):
    options, limits = problem(seed, 12, 20, 1, spread, tightness)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocate, "integer", None)
        picked = optimal(options, limits)
    assert within(picked, limits)
    assert total(picked) == pytest.approx(by_table(options, limits[0]), rel=1e-9)


def test_losses_of_any_size_are_told_apart():
    """A solver's absolute tolerance must not decide: the losses at stake are a billionth of the largest."""
    options = {}
    for index in range(3):
        group = [Option(Form.KEEP, 9, 0.0, (100.0,))]
        for rank in range(1, 9):
            loss = 1e3 if rank == 1 else 1e-6 * (9 - rank) * (1 + index)
            group.append(Option(Form.FACTORED, rank, loss, (10.0 * rank,)))
        options[str(index)] = group
    for limit in range(60, 300, 10):
        assert is_optimal(optimal, options, (float(limit),))


def test_a_loss_that_is_not_finite_is_avoided():
    options = {
        name: [
            Option(Form.KEEP, 4, 0.0, (100.0,)),
            Option(Form.FACTORED, 1, math.inf, (10.0,)),
            Option(Form.FACTORED, 2, 0.5 * scale, (20.0,)),
            Option(Form.FACTORED, 3, 0.1 * scale, (30.0,)),
        ]
        for name, scale in (("a", 1.0), ("b", 2.0))
    }
    picked = optimal(options, (50.0,))
    assert (picked["a"].rank, picked["b"].rank) == (2, 3)
    assert math.isfinite(total(optimal(options, (50.0,), exact=0)))
    only = optimal(options, (30.0,))  # nothing finite fits, and yet the budget is met
    assert within(only, (30.0,))


def test_infeasible_budgets_are_refused():
    options, _ = problem(0, 3, 4, 2, 1.0, 0.5)
    for rule in (optimal, local, global_):
        with pytest.raises(BudgetError, match="cannot be met"):
            rule(options, (1.0, 1.0))
        with pytest.raises(BudgetError, match="cannot be met"):
            rule(options, (-5.0, 1e9))
    with pytest.raises(BudgetError, match=r"limit 1: .*the layers cost .* is left for them: allow more"):
        check_feasible(options, (1.0, 1e9))


def test_limits_that_exclude_each_other_are_refused():
    """Each limit alone can be met, both together cannot."""
    group = [Option(Form.FACTORED, 1, 1.0, (1.0, 9.0)), Option(Form.SPATIAL, 1, 1.0, (9.0, 1.0))]
    group.insert(0, Option(Form.KEEP, 2, 0.0, (9.0, 9.0)))
    for exact in (0, 4000):
        with pytest.raises(BudgetError, match="cannot be met"):
            optimal({"a": group}, (5.0, 5.0), exact=exact)


def test_a_limit_met_exactly_counts_as_met():
    options, _ = problem(1, 3, 4, 1, 1.0, 0.5)
    least = sum(min(o.costs[0] for o in group) for group in options.values())
    assert within(optimal(options, (least,)), (least,))


@given(problems)
def test_useful_drops_only_what_another_option_beats(case):
    options, _ = case
    for group in options.values():
        kept = useful(list(group))
        for option in group:
            rivals = [
                o
                for o in kept
                if o.loss <= option.loss and all(a <= b for a, b in zip(o.costs, option.costs, strict=True))
            ]
            assert rivals  # itself, if it was kept


@given(problems)
def test_filling_never_raises_the_loss_or_breaks_a_limit(case):
    options, limits = case
    start = {site: min(group, key=lambda o: o.costs) for site, group in options.items()}
    if within(start, limits):
        filled = fill(start, options, limits)
        assert within(filled, limits)
        assert total(filled) <= total(start)


# ---- the solver's tolerance, and what is left of a budget ------------------------------------------------------------


def ladder(*steps: tuple[float, float], keep: float) -> list[Option]:
    """Keeping at the cost ``keep`` without loss, and (cost, loss) at ranks 1, 2, …"""
    ranks = (Option(Form.FACTORED, rank, loss, (cost,)) for rank, (cost, loss) in enumerate(steps, 1))
    return [Option(Form.KEEP, len(steps) + 1, 0.0, (keep,)), *ranks]


@pytest.mark.parametrize("excess", [1.0, 10.0, 300.0])
def test_a_choice_within_the_solver_s_tolerance_and_not_within_the_budget_is_taken_back(excess):
    """The best choice is beyond the limit by less than a millionth of it, which the solver takes for nothing."""
    half = 5e8 + excess / 2
    options = {
        "a": ladder((4e8, 2.0), (half, 1.0), keep=2e9),
        "b": ladder((4e8, 1.5), (half, 1.0), keep=2e9),
    }
    picked = optimal(options, (1e9,))
    assert within(picked, (1e9,))
    assert total(picked) == brute_force(options, (1e9,)) == 2.5


@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(1, 2))
def test_no_budget_of_any_size_is_exceeded(seed, sites, resources):
    """Limits that the best choice exceeds by a few units in a thousand million."""
    options, limits = problem(seed, sites, 4, resources, 2.0, 0.5)
    best = min(
        (c for c in itertools.product(*options.values()) if all(
            sum(o.costs[axis] for o in c) <= limit for axis, limit in enumerate(limits))),
        key=lambda c: sum(o.loss for o in c), default=None,
    )  # fmt: skip
    if best is None:
        return
    large = {
        site: [Option(o.form, o.rank, o.loss, tuple(1e7 * cost for cost in o.costs), o.level) for o in group]
        for site, group in options.items()
    }
    tight = tuple(1e7 * sum(o.costs[axis] for o in best) - 3.0 for axis in range(resources))
    try:
        assert within(optimal(large, tight), tight)
    except BudgetError:
        assert brute_force(large, tight) is None or resources > 1


def test_what_a_step_back_frees_is_spent():
    """From a rank that is given back, another site takes what it can use."""
    half = 5e8 + 5
    options = {
        "a": ladder((1e8, 1.1), (half, 1.0), keep=2e9),
        "b": ladder((half, 1.0), (8e8, 0.95), keep=2e9),
    }
    picked = optimal(options, (1e9,))
    assert (picked["a"].rank, picked["b"].rank) == (1, 2)
    assert total(picked) == brute_force(options, (1e9,))


def nothing(picked, options, limits):
    """Deliberately wrong: what is left stays."""
    return dict(picked)


def filled_up(spend, options, limits) -> bool:
    """From the cheapest choice on: whether no rank step that saves loss, and something beside keeping, still fits."""
    start = {site: min(group, key=lambda o: (o.costs, o.loss)) for site, group in options.items()}
    if not within(start, limits):
        return True
    found = spend(start, options, limits)
    for site, group in options.items():
        for option in group[1:]:
            saves = any(new < old for new, old in zip(option.costs, group[0].costs, strict=True))
            step = option.form is found[site].form and option.rank > found[site].rank
            if saves and step and option.loss < found[site].loss and within({**found, site: option}, limits):
                return False
    return within(found, limits)


@given(problems)
def test_filling_ends_where_no_rank_step_fits(case):
    assert filled_up(fill, *case)


def test_the_law_of_filling_rejects_one_that_does_nothing():
    cases = [problem(seed, 3, 5, 1 + seed % 2, 2.0, 0.6) for seed in range(20)]
    assert all(filled_up(fill, *case) for case in cases)
    assert not all(filled_up(nothing, *case) for case in cases)


# ---- the other rules, against naive references ---------------------------------------------------------------------


def naive_pick(options, wanted):
    """Each site at the rank that ``wanted`` names, or kept where that costs no less."""
    picked = {}
    for site, group in options.items():
        option = next(o for o in group if o.form is not Form.KEEP and o.rank == wanted(group))
        gains = any(a < b for a, b in zip(option.costs, group[0].costs, strict=True))
        picked[site] = option if gains else group[0]
    return picked


@given(problems)
def test_local_is_the_largest_common_fraction_that_fits(case):
    options, limits = case
    ranks = max(o.rank for o in options["site0"] if o.form is not Form.KEEP)
    fitting = [r for r in range(1, ranks + 1) if within(naive_pick(options, lambda g, r=r: r), limits)]
    if not fitting:
        with pytest.raises(BudgetError):
            local(options, limits)
        return
    assert local(options, limits) == naive_pick(options, lambda g: fitting[-1])


@given(problems, st.floats(0.05, 1.0))
def test_local_with_a_given_fraction_keeps_it_or_says_that_it_does_not_fit(case, fraction):
    options, limits = case
    ranks = max(o.rank for o in options["site0"] if o.form is not Form.KEEP)
    expected = naive_pick(options, lambda g: max(1, int(fraction * ranks + 1e-9)))
    if within(expected, limits):
        assert local(options, limits, fraction=fraction) == expected
    else:
        with pytest.raises(BudgetError, match="cannot be met"):
            local(options, limits, fraction=fraction)


@given(problems)
def test_global_keeps_the_largest_normalised_values(case):
    options, limits = case
    levels = sorted({o.level for g in options.values() for o in g if o.form is not Form.KEEP}, reverse=True)
    found = None
    for level in levels:
        picked = naive_pick(options, lambda g, x=level: max((o.rank for o in g[1:] if o.level >= x), default=1))
        if not within(picked, limits):
            break
        found = picked
    if found is None:
        with pytest.raises(BudgetError):
            global_(options, limits)
        return
    assert global_(options, limits) == found


def test_sites_that_cannot_be_factored_are_kept_by_every_rule():
    options, _ = problem(3, 2, 4, 1, 1.0, 0.5)
    options["embedding"] = [Option(Form.KEEP, 5, 0.0, (50.0,))]
    limit = (sum(g[0].costs[0] for g in options.values()) * 0.8,)
    for rule in (optimal, local, global_):
        picked = rule(options, limit)
        assert picked["embedding"].form is Form.KEEP
        assert within(picked, limit)


def test_sites_with_one_choice_left_are_left_alone_by_every_rule():
    """A rank given by hand leaves no keeping in the list."""
    options, _ = problem(3, 2, 4, 1, 1.0, 0.5)
    options["pinned"] = [Option(Form.FACTORED, 3, 2.0, (50.0,), 0.5)]
    limit = (sum(g[0].costs[0] for g in options.values()) * 0.9,)
    for rule in (optimal, local, global_):
        picked = rule(options, limit)
        assert picked["pinned"].rank == 3
        assert within(picked, limit)


def test_no_sites_need_no_choice():
    for rule in (optimal, local, global_):
        assert rule({}, (0.0, 5.0)) == {}
        with pytest.raises(BudgetError, match="cannot be met"):
            rule({}, (-1.0,))
    assert optimal({"a": [Option(Form.KEEP, 3, 0.0, ())]}, ())["a"].form is Form.KEEP


def test_large_problems_are_solved_close_to_the_relaxation():
    """Forty sites of 200 ranks: the loss is within one rank step of the bound that no choice can beat."""
    options, limits = problem(5, 40, 200, 2, 2.0, 0.4)
    picked = optimal(options, limits)
    assert within(picked, limits)
    assert total(picked) <= 1.005 * relaxation(options, limits)


def relaxation(options, limits):
    from scipy.optimize import linprog

    flat = [o for g in options.values() for o in g]
    owner = np.repeat(np.arange(len(options)), [len(g) for g in options.values()])
    one = (owner == np.arange(len(options))[:, None]).astype(float)
    costs = np.array([o.costs for o in flat]).T
    result = linprog([o.loss for o in flat], A_ub=costs, b_ub=limits, A_eq=one, b_eq=np.ones(len(options)))
    return result.fun


@given(problems.filter(lambda case: len(case[1]) == 1))
def test_one_limit_is_relaxed_as_by_linear_programming(case):
    options, limits = case
    picked, price = relaxed(
        [np.array([o.loss for o in group]) for group in options.values()],
        [np.array([o.costs[0] for o in group]) for group in options.values()],
        limits[0],
    )
    found = {site: group[index] for (site, group), index in zip(options.items(), picked, strict=True)}
    assert within(found, limits)
    bound = sum(min(o.loss + price * o.costs[0] for o in group) for group in options.values()) - price * limits[0]
    largest = max(o.loss for group in options.values() for o in group)  # the solver's tolerance is a fraction of it
    assert bound == pytest.approx(relaxation(options, limits), rel=1e-6, abs=1e-6 * (1 + largest))  # primal and dual
