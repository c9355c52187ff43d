"""Slices: a factored network made narrower inside its bottlenecks, to any smaller budget, without data.

A layer n → r → m becomes n → r' → m: its first factor keeps r' combinations of its r activations, and the second is
fitted to them (``rankfold.linalg.on_data.bottleneck``). What that costs at every r' follows from the bottlenecks that
were measured on the finished network, in one unit for all layers: the expected squared change of the model's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.planning.candidates import Candidate, divisible
from rankfold.compress.planning.plan import Entry, Plan, decisions
from rankfold.compress.ranks import asked
from rankfold.compress.ranks.allocate import optimal
from rankfold.compress.ranks.asked import multiple_of
from rankfold.compress.ranks.budget import Budget, KeepEnergy, Latency, OfSites, Params, Ranks, Resource
from rankfold.compress.ranks.options import BudgetError, Option
from rankfold.compress.sensitivity import output_changes, relative_energy
from rankfold.compress.slicing.bottlenecks import Bottlenecks
from rankfold.compress.slicing.narrowed import Narrowed, SliceError, listed, sliceable
from rankfold.costs import Cost, Example, storage, trace
from rankfold.sites import Form, Site, SiteList, unwrap, weights_of

RULE = "sliced"


def plan_slice(
    model: nn.Module,
    plan: Plan,
    known: Bottlenecks,
    budget: str | Budget | Sequence[str | Budget],
    *,
    example: Any = None,
) -> Plan:
    """Decide how narrow each factored layer of ``model`` becomes within ``budget``; nothing changes yet, no data.

    ``model``: the network that ``plan`` was applied to; ``known``: its bottlenecks. ``budget``: fractions of the
    *original* network, as in ``rankfold.plan``; latency excepted. Ranks never grow, kept layers stay. ``example``: one
    input, needed only where the plan was edited after its FLOPs were counted.

    In the plan that comes back ``predicted_error`` and ``predicted_loss`` are those of the earlier plan and of the
    slice together. Raises ``SliceError`` and ``BudgetError`` with one line. Cost: one singular value decomposition of
    each bottleneck.
    """
    root = unwrap(model)
    budgets = parsed(budget)
    found, reasons = sliceable(root, plan, known)
    _check_pins(budgets, plan, found)
    made = {name: Narrowed(root.get_submodule(name), known.sites[name]) for name in found}
    costs = _Costs.of(root, plan, found, example)
    prices = _prices(plan, found, made)
    bounds = tuple(b for b in budgets if isinstance(b, Resource))
    resource = bounds or (Params(1.0),)
    choices = {
        name: _options(found[name], plan[name], made[name], prices[name], budgets, resource, costs) for name in found
    }
    if bounds:
        picked = optimal(choices, _limits(plan, costs, choices, bounds))
    else:
        picked = {name: min(group, key=lambda o: (o.costs, o.loss)) for name, group in choices.items()}
    entries = tuple(
        _entry(entry, found[name], picked[name].rank, made[name], prices[name], plan, costs) if name in found else entry
        for name, entry in ((entry.site, entry) for entry in plan.entries)
    )
    changes = entries != plan.entries
    return replace(
        plan,
        entries=entries,
        budgets=budgets,
        rule=RULE if changes else plan.rule,
        after=costs.after(plan, entries),
        notes=_notes(plan, costs.now, reasons) if changes else plan.notes,
        decided=decisions(entries),
        statistics=None,
        statistics_sha256="",
    )


def parsed(budget: str | Budget | Sequence[str | Budget]) -> tuple[Budget, ...]:
    """Those of a plan, as far as a slice can meet them; whatever else was given is refused before anything changes."""
    try:
        budgets = asked.parsed(budget)
    except ValueError as error:
        raise SliceError(str(error)) from None
    if any(isinstance(item, OfSites) for item in budgets):
        raise SliceError("the budget of a slice is always a share of the whole original network: leave of=sites out")
    if any(isinstance(item, Latency) for item in budgets):
        raise SliceError(
            "a slice cannot be planned by latency: give a budget of flops or params, then measure the result "
            "(rankfold evaluate)"
        )
    return budgets


def _prices(plan: Plan, found: Mapping[str, Site], made: Mapping[str, Narrowed]) -> dict[str, Tensor]:
    """What each rank loses, (r + 1,): changes of the model's outputs, or shares of energy where no gradients came."""
    candidates = [Candidate(site, plan[name].form, made[name], plan[name].bias) for name, site in found.items()]
    comparable = any(candidate.decomposition.comparable for candidate in candidates)
    prices = output_changes(candidates) if comparable else relative_energy(candidates)
    return {name: price for (name, _), price in prices.items()}


def _options(
    site: Site,
    entry: Entry,
    narrowed: Narrowed,
    price: Tensor,
    budgets: Sequence[Budget],
    resource: Sequence[Resource],
    costs: _Costs,
) -> list[Option]:
    """The layer at every rank that the budgets allow; the last one is the layer as it is."""
    floor = max((b.keep for b in budgets if isinstance(b, KeepEnergy)), default=0.0)
    pins = {name: rank for b in budgets if isinstance(b, Ranks) for name, rank in b.ranks.items()}
    multiple = multiple_of(budgets)
    errors = narrowed.errors
    lost = (errors / errors[0]).square() if errors[0] > 0 else torch.zeros_like(errors)
    group = []
    for rank in narrowed.ranks:
        last = rank == entry.rank
        pinned = any(isinstance(b, Ranks) for b in budgets) and rank != pins.get(entry.site, entry.rank)
        if pinned or (not last and 1 - float(lost[rank]) < floor - 1e-12):
            continue
        form = _form(entry, rank)
        if not last and not divisible(site, form, rank, multiple):
            continue
        cost = costs.cost(site, form, rank)
        loss = 0.0 if last else float(price[rank])
        group.append(Option(form, rank, loss, tuple(float(getattr(cost, b.kind)) for b in resource)))
    return group


def _form(entry: Entry, rank: int) -> Form:
    """A kept layer becomes a pair of factors where it becomes narrower."""
    return Form.FACTORED if entry.form is Form.KEEP and rank != entry.rank else entry.form


def _check_pins(budgets: Sequence[Budget], plan: Plan, found: Mapping[str, Site]) -> None:
    for budget in budgets:
        for name, rank in budget.ranks.items() if isinstance(budget, Ranks) else ():
            if name not in found:
                raise SliceError(
                    f"a rank was given for {name!r}, which cannot be sliced: the layers that can are {', '.join(found)}"
                )
            if rank > plan[name].rank:
                raise SliceError(
                    f"{name}: rank {rank} was asked for, and ranks from 1 to {plan[name].rank} are possible"
                )


def _limits(
    plan: Plan, costs: _Costs, choices: Mapping[str, Sequence[Option]], bounds: Sequence[Resource]
) -> tuple[float, ...]:
    """What the sliced layers together may cost; ``BudgetError`` if no slice is that small."""
    limits = []
    for axis, budget in enumerate(bounds):
        whole = float(getattr(plan.before, budget.kind))
        rest = getattr(costs.now, budget.kind) - sum(
            float(getattr(costs.cost(costs.sites[name], plan[name].form, plan[name].rank), budget.kind))
            for name in choices
        )
        limit = budget.keep * whole - rest
        least = sum(min(option.costs[axis] for option in group) for group in choices.values())
        if least > limit * (1 + 1e-12):
            fraction = ceil(1e4 * (rest + least) / whole) / 1e4 if whole else 1.0
            raise BudgetError(
                f"{budget.describe()} is too small for a slice of this network, which takes "
                f"{budget.kind}={fraction:g} with every bottleneck at its narrowest: ask for that, or compress "
                "the original again"
            )
        limits.append(limit)
    return tuple(limits)


def _entry(entry: Entry, site: Site, rank: int, narrowed: Narrowed, price: Tensor, plan: Plan, costs: _Costs) -> Entry:
    """The entry at ``rank``: kept shares of energy multiply, changes of the outputs add up."""
    if rank == entry.rank:
        return entry
    kept = (1 - min(entry.predicted_error, 1.0) ** 2) * (1 - min(narrowed.relative_error(rank), 1.0) ** 2)
    loss = narrowed.loss(rank) if narrowed.comparable else float(price[rank])
    form = _form(entry, rank)
    cost = costs.cost(site, form, rank)
    return replace(
        entry,
        form=form,
        rank=rank,
        bias=site.layer.has_bias,
        note=entry.note if form is entry.form else "",
        predicted_error=(1 - kept) ** 0.5,
        predicted_loss=_loss_before(plan, entry) + loss,
        params=cost.params,
        flops=cost.flops,
    )


def _loss_before(plan: Plan, entry: Entry) -> float:
    """What the layer had lost already; 0 for a plan without data, which counts in another unit."""
    return entry.predicted_loss if plan.calibration.get("samples") or plan.rule == RULE else 0.0


def slice_costs(plan: Plan, made: Plan) -> dict[str, tuple[float, float]]:
    """What the slice from ``plan`` to ``made`` alone costs each layer that it changes.

    The relative error of the layer's output, and the predicted squared change of the model's outputs for one sample.
    """
    costs = {}
    for before, after in zip(plan.entries, made.entries, strict=True):
        if after.rank != before.rank:
            kept = (1 - after.predicted_error**2) / max(1 - before.predicted_error**2, 1e-300)
            change = after.predicted_loss - _loss_before(plan, before)
            costs[after.site] = (max(0.0, 1 - kept) ** 0.5, max(0.0, change))
    return costs


def _notes(plan: Plan, now: Cost, reasons: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    shares = " and ".join(
        f"{100 * getattr(now, kind) / getattr(plan.before, kind):.1f} % of the {name}"
        for kind, name in (("flops", "FLOPs"), ("params", "parameters"))
        if getattr(plan.before, kind)
    )
    told = (
        f"this network was sliced from one with {shares} of the original: its factors are in its own file, and not "
        "in this plan"
    )
    earlier = tuple(note for note in plan.notes if not note.startswith(("sliced from", "not sliced:")))
    return (*earlier, told, *([f"not sliced: {listed(reasons)}"] if reasons else []))


@dataclass(frozen=True)
class _Costs:
    """What the network costs now, and what one site costs at any rank: all of it in proportion to its weights."""

    now: Cost
    flops: Mapping[str, int]  # of a site as it is, for one sample
    sizes: Mapping[str, int]  # bytes of one weight
    ranks: Mapping[str, int]
    sites: Mapping[str, Site]
    kept: Mapping[str, bool]  # dense as it is

    @classmethod
    def of(cls, root: nn.Module, plan: Plan, found: Mapping[str, Site], example: Any) -> _Costs:
        params, size = storage(root)
        flops = plan.after.flops
        each = {name: plan[name].flops for name in found}
        if plan.edited:
            if example is None:
                raise SliceError(
                    "the plan was edited since its FLOPs were counted: give example=, one input of the model"
                )
            first = Example.of(example)
            flops, calls = trace(root, first, SiteList(tuple(found.values())))
            each = {
                name: site.layer.flops(plan[name].form, plan[name].rank, calls.get(name, ())) // first.samples
                for name, site in found.items()
            }
        sizes = {name: weights_of(root.get_submodule(name))[0].element_size() for name in found}
        kept = {name: plan[name].form is Form.KEEP for name in found}
        return cls(Cost(params, flops, size), each, sizes, {name: plan[name].rank for name in found}, found, kept)

    def cost(self, site: Site, form: Form, rank: int) -> Cost:
        params = site.layer.params(form, rank, site.layer.has_bias)
        flops = self.flops[site.name]
        if self.kept[site.name] and form is not Form.KEEP:
            m, n = site.shape
            flops = flops * rank * (m + n) // (m * n)
        elif not self.kept[site.name]:
            now, then = (site.layer.params(form, r, False) for r in (rank, self.ranks[site.name]))
            flops = flops * now // then
        return Cost(params, flops, params * self.sizes[site.name])

    def after(self, plan: Plan, entries: Sequence[Entry]) -> Cost:
        total = self.now
        for entry in entries:
            if entry.site in self.sites:
                site, before = self.sites[entry.site], plan[entry.site]
                total = total - self.cost(site, before.form, before.rank) + self.cost(site, entry.form, entry.rank)
        return total
