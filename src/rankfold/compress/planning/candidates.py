"""Candidates and their options: every way to factor every site, what it would lose, and what it would cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rankfold.compress.methods.method import Decomposition, Method
from rankfold.compress.ranks.allocate import Option
from rankfold.compress.ranks.budget import Budget, KeepEnergy, Latency, Ranks, Resource
from rankfold.compress.sound import check_sound
from rankfold.compress.statistics import Statistics
from rankfold.costs import Cost, site_cost
from rankfold.linalg import NotConvergedError
from rankfold.run.progress import Progress
from rankfold.sites import Call, Form, Site, SiteList

Timing = Callable[[Site, Form, int], float]


@dataclass(frozen=True)
class Candidate:
    """One way to factor one site. ``bias``: the new layer carries one."""

    site: Site
    form: Form
    decomposition: Decomposition
    bias: bool

    @property
    def relative_errors(self) -> Tensor:
        """(k + 1,) errors at rank 0..k as fractions of the norm; zeros for a site whose output is zero."""
        errors = self.decomposition.errors
        return errors / errors[0] if errors[0] > 0 else torch.zeros_like(errors)


@dataclass(frozen=True)
class Counter:
    """Counts what a site costs in any form: from the calls of one traced example, or by the clock for latency."""

    calls: Mapping[str, Sequence[Call]]
    samples: int
    element_sizes: Mapping[str, int]
    timings: Mapping[int, Timing] = field(default_factory=dict)  # by batch: milliseconds of a site in a form at a rank

    def cost(self, site: Site, form: Form, rank: int, bias: bool) -> Cost:
        size = self.element_sizes[site.name]
        return site_cost(site, form, rank, self.calls.get(site.name, ()), self.samples, size, bias)

    def costs(self, budgets: Sequence[Budget], site: Site, form: Form, rank: int, bias: bool) -> tuple[float, ...]:
        cost, result = self.cost(site, form, rank, bias), []
        for budget in budgets:
            if isinstance(budget, Latency):
                result.append(self.timings[budget.batch](site, form, rank))
            else:
                result.append(float(getattr(cost, budget.kind)))
        return tuple(result)


def resources(budgets: Sequence[Budget]) -> tuple[Resource, ...]:
    return tuple(b for b in budgets if isinstance(b, Resource))


def decompose(
    root: nn.Module,
    sites: SiteList,
    method: Method,
    statistics: Statistics | None,
    every_form: bool,
    progress: Progress,
) -> tuple[dict[str, list[Candidate]], dict[str, str]]:
    """Every reducible site in every form that the method offers there, or in one; attention must be split.

    And, for each site with a form whose matrix no driver decomposes, the reason why that form is not among them.
    Raises ``ValueError`` naming the site for weights that are not finite or not materialised.
    """
    found: dict[str, list[Candidate]] = {}
    unsolved: dict[str, str] = {}
    todo = sites.reducible
    for done, site in enumerate(todo):
        known = None if statistics is None else statistics.sites.get(site.name)
        weight, bias = site.weight(root), site.bias(root)
        found[site.name] = []
        forms = sorted(method.forms & site.forms - {Form.DENSE})
        if forms:
            check_sound(root, [site])
        for form in forms if every_form else forms[:1]:
            try:
                decomposition = method.decompose(site, form, weight, known, bias)
                if decomposition is None:
                    continue
                decomposition.errors  # noqa: B018  # decomposes now, so that a bad weight is named here
            except NotConvergedError as error:
                unsolved[site.name] = f"not decomposed: {error}"
                continue
            except (ValueError, ArithmeticError) as error:
                raise ValueError(
                    f"{site.title}: {error}; mend the weights, or leave the site out with where="
                ) from error
            carries = site.layer.has_bias or (known is not None and known.absorber is None)
            found[site.name].append(Candidate(site, form, decomposition, carries))
        progress("decomposing", done + 1, len(todo))
    return found, unsolved


def options(
    sites: SiteList,
    candidates: Mapping[str, Sequence[Candidate]],
    prices: Mapping[tuple[str, Form], Tensor],
    budgets: Sequence[Budget],
    resource: Sequence[Budget],
    counter: Counter,
) -> dict[str, list[Option]]:
    """The choices of every site: keeping it, and every candidate at every rank, less what the budgets rule out.

    ``prices``: for each candidate the predicted loss at rank 0..k. ``resource``: what the costs of an option count.
    """
    floor = max((b.keep for b in budgets if isinstance(b, KeepEnergy)), default=0.0)
    pins = {site: rank for b in budgets if isinstance(b, Ranks) for site, rank in b.ranks.items()}
    pinned = any(isinstance(b, Ranks) for b in budgets)
    result: dict[str, list[Option]] = {}
    for site in sites:
        keep = Option(
            Form.KEEP,
            min(site.shape),
            0.0,
            counter.costs(resource, site, Form.KEEP, 0, site.layer.has_bias),
            0.0,
        )
        group = [keep]
        for candidate in candidates.get(site.name, ()):
            loss = prices[site.name, candidate.form].tolist()
            kept = (1 - candidate.relative_errors.square()).tolist()
            levels = candidate.decomposition.levels.tolist()
            for rank in candidate.decomposition.ranks:
                if kept[rank] < floor - 1e-12:
                    continue
                costs = counter.costs(resource, site, candidate.form, rank, candidate.bias)
                group.append(Option(candidate.form, rank, loss[rank], costs, levels[rank - 1]))
        if site.name in pins:
            group = [_pin(site, group, pins[site.name])]
        elif pinned:
            group = [keep]
        result[site.name] = group
    return result


def _pin(site: Site, group: Sequence[Option], rank: int) -> Option:
    fitting = [option for option in group if option.form is not Form.KEEP and option.rank == rank]
    if not fitting:
        ranks = sorted({option.rank for option in group if option.form is not Form.KEEP})
        allowed = "none: this method cannot factor it, or an energy excludes it"
        if ranks:
            every = len(ranks) == ranks[-1] - ranks[0] + 1
            allowed = f"{ranks[0]} to {ranks[-1]}" if every else ", ".join(map(str, ranks))
        raise ValueError(f"{site.title}: rank {rank} was asked; possible here: {allowed}. {site.note}".strip())
    return min(fitting, key=lambda option: option.loss)
