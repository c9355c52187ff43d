"""From a profile and a budget to a plan: prices, options, the rule's choice, and what is written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rankfold.compress.affordable import bytes_together, is_affordable
from rankfold.compress.coherence import coherences
from rankfold.compress.effect import effects
from rankfold.compress.layerwise.rounds import fit
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.compress.planning.candidates import Candidate, options
from rankfold.compress.planning.entries import after_of, entries_of, is_silent, notes_of, unpriced
from rankfold.compress.planning.forecast import SEEN, UNSEEN
from rankfold.compress.planning.lawful import check_picked, check_summed
from rankfold.compress.planning.obstacle import obstacle
from rankfold.compress.planning.plan import Entry, Plan, decisions
from rankfold.compress.planning.probe import CERTAIN, nearer
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.asked import amount, check_together, multiple_of, of_sites, parsed, resources
from rankfold.compress.ranks.budget import (
    Budget,
    Bytes,
    Flops,
    Latency,
    Multiples,
    OfSites,
    Params,
    Ranks,
    Resource,
)
from rankfold.compress.ranks.latency import meet_latency
from rankfold.compress.ranks.options import Option, alone, check_feasible
from rankfold.compress.ranks.rules import Choices, Iterative, Optimal, RankRule, described, rule_named
from rankfold.compress.ranks.timing import site_timing
from rankfold.compress.sensitivity import coherent, either, output_changes, price, relative_energy
from rankfold.compress.statistics import calibrate
from rankfold.costs import Cost, latencies
from rankfold.costs.decoding import phased
from rankfold.costs.table import LatencyTable
from rankfold.objectives import Teacher
from rankfold.objectives.units import CHANGE, TOKEN
from rankfold.observe import Samples
from rankfold.sites import Form, Joint, Site, SiteList, opened

Prices = Mapping[tuple[str, Form], Tensor]


def decide(known: Profile, budget: Any, rule: str | RankRule) -> Plan:
    """The plan of ``known`` for ``budget``; see ``Profile.plan``.

    Of a language model two are made, in nats per token and by the change of all outputs, unless next to nothing is
    lost; the one that is nearer to the original on a few tokens is taken. Then layers are fitted one after another,
    where the method does so.
    """
    made, choose = _decided(known, budget, rule)
    if made.forecast is not None and made.forecast > CERTAIN and known.coarser is not None:
        other, again = _decided(known.coarser, budget, rule)
        made = nearer(known, made, replace(other, calibration={**other.calibration, "metric": "outputs"}))
        if made.calibration.get("metric") == "outputs":
            known, choose = known.coarser, again
    return fit(known, made, choose) if fits_layers(known.method) else made


def _decided(known: Profile, budget: Any, rule: str | RankRule) -> tuple[Plan, Choose | None]:
    """A plan, and how to choose ranks anew for other prices, where that is possible."""
    rule, budgets = rule_named(rule), parsed(budget)
    check_asked(budgets, rule, known)
    _time(known, budgets)
    asked = _Asked(known, budgets, rule, *_prices(known, rule))
    if any(isinstance(each, Latency) for each in budgets):
        choices = asked.choices({})
        made = meet_latency(
            known.needed_model(), partial(asked.write, choices), partial(asked.solve, choices), asked.limits,
            asked.resource, known.needed_example(), known.tell,
        )  # fmt: skip
        said = [getattr(timing, "said", "") for timing in known.counter.timings.values()]
        return replace(made, notes=(*made.notes, *filter(None, dict.fromkeys(said)))), None
    return asked.plan({}), asked.plan


def check_asked(budgets: Sequence[Budget], rule: RankRule, known: Profile) -> None:
    """``ValueError`` for a request that no measurement could meet: budgets that do not go together, names that are no
    layer's, a rule that is none for the method, or for want of data."""
    check_together(budgets)
    for each in budgets:
        checked_names(tuple(each.ranks) if isinstance(each, Ranks) else (), known.sites)
    check_rule(rule, known.method, known.data)


def check_rule(rule: RankRule, method: Method, data: Any) -> None:
    """``ValueError`` for a rule that the method, or the want of data, leaves nothing to choose by."""
    if not isinstance(rule, Iterative):
        return
    if fits_layers(method):
        raise ValueError(
            f"method {method.name!r} fits layers only after their ranks are chosen, so that the iterative "
            "rule cannot choose them: use another rule, such as 'optimal' (--ranks optimal)"
        )
    if data is None:
        raise ValueError(
            "the iterative rule needs data: give data=, or use another rule, such as 'optimal' (--ranks optimal)"
        )


def check_reachable(known: Profile, budgets: Sequence[Budget], rule: RankRule) -> None:
    """``BudgetError`` where the cheapest candidates of ``known`` together are beyond one of the budgets, ``ValueError``
    for fixed ranks that a layer does not have."""
    flat = [candidate for group in known.candidates.values() for candidate in group]
    asked = _Asked(known, tuple(budgets), rule, relative_energy(flat), "")
    if asked.asked:
        asked.check(asked.choices({}), asked.limits)
    elif any(isinstance(each, Ranks) for each in budgets):
        asked.choices({})


def _time(known: Profile, budgets: Sequence[Budget]) -> None:
    """What every candidate takes, once for each batch size and phase that a budget names: from the machine's table, or
    measured."""
    for each in budgets:
        if isinstance(each, Latency) and (each.batch, each.phase) not in known.counter.timings:
            root, example = known.needed_model(), known.needed_example()
            phased(root, example, each.phase, each.batch)  # refuses a phase that the model does not have
            table = LatencyTable.kept(next((p.device for p in root.parameters()), torch.device("cpu")))
            with opened(root):
                known.counter.timings[each.batch, each.phase] = site_timing(
                    root, known.sites, known.candidates, example, each.batch, known.tell, phase=each.phase, table=table
                )


def _prices(known: Profile, rule: RankRule) -> tuple[Prices, str]:
    """What each candidate loses at each rank, in one unit: the model's own outputs, where data can say. And which unit:
    a key of ``rankfold.objectives.units``, or "" where the prices are energies of the layers themselves."""
    flat = [candidate for group in known.candidates.values() for candidate in group]
    if any(candidate.decomposition.comparable for candidate in flat):
        return known.once("output changes", partial(output_changes, flat)), TOKEN if known.nats else CHANGE
    if (
        isinstance(rule, Optimal)
        and rule.probes
        and (known.data is not None or known.probed)
        and not fits_layers(known.method)
    ):
        key = (rule.probes, rule.samples)
        if key not in known.prices:
            root, data = known.needed_model(), known.needed_data()
            with opened(root):
                told, unit = _from_statistics(known, flat, rule), CHANGE
                if told is None:
                    told, unit = price(root, flat, data, rule, known.tell, known.objective), _diverging(known)
                known.prices[key] = told, unit
        return known.prices[key]
    return known.once("energies", partial(relative_energy, flat)), ""


def _diverging(known: Profile) -> str:
    return (known.objective or Teacher()).diverges_in


def _from_statistics(known: Profile, candidates: Sequence[Candidate], rule: Optimal) -> Prices | None:
    """What each candidate does to the outputs, from one pass over ``rule.samples`` samples; None where that does not
    tell or does not fit into memory. Nothing is inverted, so that few samples do. Layers are compared by the change of
    all outputs, of language models too: truncation without data changes too much for a metric in nats."""
    root, data = known.needed_model(), known.needed_data()
    if isinstance(data, Iterator) or not is_affordable(bytes_together(known.sites.reducible)):
        return None
    statistics = calibrate(
        root, data, known.sites, samples=rule.samples, objective=known.objective, tokenwise=False, progress=known.tell
    )
    told = effects(root, candidates, statistics, known.tell)
    if told is None:
        return None
    seen = Samples(data, rule.samples, known.calibration.batch_size)
    ratios = coherences(
        root, seen, candidates, told, known.objective or Teacher(), spread=statistics.spread, progress=known.tell
    )
    return {key: price * ratios[key].to(price) if key in ratios else price for key, price in told.items()}


_ALIKE = (Params, Flops, Bytes, Multiples, OfSites)  # what options cost does not depend on a fraction of these


@dataclass(frozen=True, eq=False)
class _Asked:
    """One question to a profile."""

    known: Profile
    budgets: tuple[Budget, ...]
    rule: RankRule
    prices: Prices
    unit: str  # of the prices

    @property
    def asked(self) -> tuple[Resource, ...]:
        """What bounds the cost, as fractions of the whole model."""
        found = resources(self.budgets)
        if not self._of_sites:
            return found
        return tuple(of_sites(each, self.known.cost, self.factorable) for each in found)

    @property
    def factorable(self) -> Cost:
        """What the layers that can be factored cost as they are; tables that are looked up are not counted."""
        return self._as_they_are(self._factorable)

    def _as_they_are(self, sites: Sequence[Site]) -> Cost:
        cost = self.known.counter.cost
        return sum((cost(site, Form.KEEP, 0, site.layer.has_bias) for site in sites), Cost(0, 0, 0))

    @property
    def _factorable(self) -> Sequence[Site]:
        return [site for site in self.known.sites.reducible if not site.layer.lookup]

    @property
    def _of_sites(self) -> bool:
        """Whether fractions are of those layers."""
        return any(isinstance(each, OfSites) for each in self.budgets)

    @property
    def resource(self) -> tuple[Resource, ...]:
        """What options are counted in, where nothing was asked in parameters."""
        return self.asked or (Params(1.0),)

    @property
    def limits(self) -> tuple[float, ...]:
        """What the sites together may cost: the budget less what the rest of the model costs whatever is decided."""
        known, limits = self.known, []
        dense = [known.counter.kept(self.resource, site) for site in known.sites]
        for axis, budget in enumerate(self.resource):
            total = self._whole(budget)
            limits.append(budget.keep * total - (total - sum(costs[axis] for costs in dense)))
        return tuple(limits)

    def _whole(self, budget: Resource) -> float:
        if not isinstance(budget, Latency):
            return amount(budget, self.known.cost)
        root, example = self.known.needed_model(), self.known.needed_example()
        running, given = phased(root, example, budget.phase, budget.batch)
        return latencies({"dense": running}, given, batch=budget.batch)["dense"]

    def plan(self, met: Prices) -> Plan:
        """The plan for other prices of some candidates, those that a fit has met."""
        choices = self.choices(met)
        return self.write(choices, {name: alone(option) for name, option in self.solve(choices, self.limits).items()})

    def choices(self, met: Prices) -> dict[str, list[Option]]:
        """The options of every site, made once for all budgets that differ in their fractions alone."""
        fitted = fits_layers(self.known.method)  # few plans, beside which memory counts
        if met or fitted or any(type(each) not in _ALIKE for each in self.budgets):
            return self._choices(met)
        rule = getattr(self.rule, "across_forms", False), getattr(self.rule, "across_groups", False)
        kinds = tuple((type(each), getattr(each, "multiple", 1)) for each in self.budgets)
        key = (*rule, *kinds, id(self.prices))  # held beside the options, so that nothing else gets this number
        return self.known.once(key, lambda: (self.prices, self._choices({})))[1]

    def _choices(self, met: Prices) -> dict[str, list[Option]]:
        known = self.known
        candidates = known.candidates
        if not getattr(self.rule, "across_forms", False):  # such a rule compares ranks, not forms
            candidates = {name: group[:1] for name, group in candidates.items()}
        if self._of_sites:  # counts no embeddings, and so leaves them alone
            candidates = {name: [] if known.sites[name].layer.lookup else group for name, group in candidates.items()}
        if not getattr(self.rule, "across_groups", False) or any(isinstance(each, Latency) for each in self.budgets):
            candidates = {name: [] if isinstance(known.sites[name], Joint) else c for name, c in candidates.items()}
        prices = {**self.prices, **met}
        return options(known.sites, candidates, prices, self.budgets, self.resource, known.counter)

    def solve(self, choices: Choices, limits: tuple[float, ...]) -> dict[str, Option]:
        if not self.asked:  # only energies or ranks were asked: the cheapest that satisfies them
            alone = {name: group for name, group in choices.items() if not isinstance(self.known.sites[name], Joint)}
            return {name: min(group, key=lambda o: (o.costs, o.loss)) for name, group in alone.items()}
        names = self.check(choices, limits)
        picked = self.rule.choose(choices, limits, self.known)
        groups = [each for each in self.known.sites.joint if each.name in picked]
        taken = {name for each in groups for name in each.names}
        left = {each.name for each in self.known.sites.joint} - {each.name for each in groups} | taken
        offered = {name: group for name, group in choices.items() if name not in left}
        return check_picked(self.rule.name, picked, offered, limits, names)

    def check(self, choices: Choices, limits: tuple[float, ...]) -> list[str]:
        """The names of what bounds the cost; ``BudgetError`` where one of them alone excludes every choice."""
        names = [each.describe() for each in self.asked]
        if self._of_sites:
            names = [f"{b.kind} ≤ {b.keep:g} of the layers that can be factored" for b in resources(self.budgets)]
        check_feasible(self._apart(choices), limits, names, partial(self._obstacle, choices))
        return names

    def _apart(self, choices: Choices) -> Choices:
        """The choices, where those of a group and of its members are one: what each resource takes at least."""
        found = dict(choices)
        for each in self.known.sites.joint:
            shared = found.pop(each.name, None)
            if shared:
                own = [found.pop(name) for name in each.names]
                least = tuple(sum(min(costs) for costs in axis) for axis in zip(*map(_by_axis, own), strict=True))
                found[each.name] = [*shared, Option(Form.KEEP, 0, 0.0, least)]
        return found

    def _obstacle(self, choices: Choices, axis: int, lacking: float) -> str:
        """What stands in the way of the budget of ``axis``, which the cheapest choice exceeds by ``lacking``."""
        budget, known = resources(self.budgets)[axis], self.known
        choices = {name: group for name, group in choices.items() if not isinstance(known.sites[name], Joint)}
        if not self._of_sites:
            return obstacle(known, choices, axis, budget, self._whole(budget), lacking, asked=self.budgets)
        theirs = {site.name: choices[site.name] for site in self._factorable}
        return obstacle(known, theirs, axis, budget, amount(budget, self.factorable), lacking, True, self.budgets)

    def write(self, choices: Choices, picked: Mapping[str, Option], notes: Sequence[str] = ()) -> Plan:
        known = self.known
        entries = entries_of(known, choices, picked, multiple_of(self.budgets))
        entries = unpriced(known, entries) if self.unit else entries
        after = after_of(known, entries)
        check_summed([each for each in self.asked if not isinstance(each, Latency)], known.cost, after)
        calibration = {"data": known.calibration.name, "samples": known.samples, "rule": described(self.rule)}
        if known.objective is not None:
            calibration["objective"] = known.objective.name
        statistics = known.statistics
        if self.unit:
            calibration |= {"unit": self.unit, **_either(known, entries)}
        return Plan(
            entries, self.budgets, known.method.name, self.rule.name, known.fingerprint, known.cost,
            after, calibration, known.sites.left_out, (*notes, *notes_of(known, entries)),
            decided=decisions(entries), statistics=None if statistics is None else statistics.decided,
            factorable=self._as_they_are(self._counted(entries)),
        )  # fmt: skip

    def _counted(self, entries: Sequence[Entry]) -> Sequence[Site]:
        """The layers of which the plan's savings are a share: tables too where it takes from them."""
        sites = self.known.sites
        tables = any(sites[each.site].layer.lookup for each in entries if each.form is not Form.KEEP)
        return sites.reducible if tables else self._factorable


Choose = Callable[[Prices], Plan]


def _either(known: Profile, entries: Sequence[Entry]) -> dict[str, float]:
    """What the entries cost by the samples that were fitted to, and by those held back; nothing where none were."""
    found = []
    for entry in entries:
        name = "+".join(entry.members) if entry.members else entry.site
        candidate = None if entry.form is Form.KEEP else known.candidate(name, entry.form)
        if candidate is None or (entry.members and entry.site != entry.members[0]):
            continue
        if is_silent(known, known.sites[entry.site]):
            continue
        if candidate.forecast is None or not candidate.decomposition.comparable:
            return {}
        found.append([float(coherent(candidate, each)[entry.rank]) for each in either(candidate)])
    return dict(zip((SEEN, UNSEEN), map(sum, zip(*found, strict=True)), strict=True)) if found else {}


def _by_axis(group: Sequence[Option]) -> list[tuple[float, ...]]:
    return list(zip(*(option.costs for option in group), strict=True))


def checked_names(names: Sequence[str], found: SiteList) -> None:
    """``ValueError`` for a name that is no site's."""
    for name in names:
        try:
            found[name]
        except KeyError as error:
            raise ValueError(f"a rank was given for a layer {name!r}: {error.args[0]}") from None
