"""Candidates and their options: every way to factor every site, what it would lose, and what it would cost."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.finite import check_finite
from rankfold.compress.measured import SiteStatistics, Statistics
from rankfold.compress.methods.method import Decomposition, Forecast, Forecasting, Method, fits_layers
from rankfold.compress.methods.rounding import AfterRounding, decomposed
from rankfold.compress.planning.lawful import check_decomposition
from rankfold.compress.ranks.asked import multiple_of
from rankfold.compress.ranks.budget import Budget, KeepEnergy, Latency, Ranks, Resource
from rankfold.compress.ranks.options import Option
from rankfold.compress.shared import statistics_of
from rankfold.costs import Cost, site_cost
from rankfold.linalg import NotConvergedError
from rankfold.run.progress import Progress
from rankfold.sites import Call, Form, Joint, Site, SiteList

Timing = Callable[[Site, Form, int], float]

_FAR = 1.5  # times the error that was fitted
_FEW = 4  # rows for each direction of a site below which one sample alone says nothing of others


@dataclass(frozen=True)
class Candidate:
    """One way to factor one site. ``bias``: the new layer carries one. ``forecast``: its errors on held-out samples,
    where some were held back; ``note``: what a person should know; ``ridge``: of the method, where held-out samples
    have chosen one; ``coherence``: (k + 1,) by what its price at every rank is multiplied, since the positions of a
    sample belong together (``rankfold.compress.coherence``), where that was measured; ``few``: there was a single
    sample, so that it was made without data."""

    site: Site
    form: Form
    decomposition: Decomposition
    bias: bool
    forecast: Forecast | None = None
    note: str = ""
    ridge: float = 0.0
    coherence: Tensor | None = None
    few: bool = False

    @property
    def ranks(self) -> Sequence[int]:
        """Those worth considering that the form allows, ascending."""
        most = self.form.max_rank(self.site.layer)
        return [rank for rank in self.decomposition.ranks if rank <= most]

    @property
    def errors(self) -> Tensor:
        """(k + 1,) absolute errors at rank 0..k, on held-out samples where there are any."""
        return self.decomposition.errors if self.forecast is None else self.forecast.errors

    @property
    def relative_errors(self) -> Tensor:
        """(k + 1,) errors at rank 0..k as fractions of the norm; zeros for a site whose output is zero."""
        errors = self.errors
        return self.share * errors / errors[0] if errors[0] > 0 else torch.zeros_like(errors)

    @property
    def share(self) -> float:
        """The error at rank 0 as a fraction of the norm: 1 but where something else than the factors is kept."""
        return float(getattr(self.decomposition, "share", 1.0))

    def overfitted(self, rank: int) -> bool:
        """Whether the error on held-out samples is far above the one on the samples that were fitted to."""
        if self.forecast is None:
            return False
        held, fitted = self.forecast.errors, self.decomposition.errors
        there, here = (float(errors[rank] / errors[0]) if errors[0] > 0 else 0.0 for errors in (held, fitted))
        return there > max(_FAR * here, here + 0.05)

    def relative_error(self, rank: int) -> float:
        """Of the layer's output (of its weight without data) at ``rank``, as a fraction of its norm."""
        if self.forecast is None:
            return self.decomposition.relative_error(rank)
        return float(self.forecast.relative[rank])


@dataclass(frozen=True)
class Decomposed:
    """``candidates`` of every reducible site; ``unsolved``: why a form of a site is missing; ``count``: decompositions
    made in all, ``weighed``: those of them that only served to compare candidates on held-out samples."""

    candidates: dict[str, list[Candidate]]
    unsolved: dict[str, str]
    count: int = 0
    weighed: int = 0


@dataclass(frozen=True)
class Counter:
    """Counts what a site costs in any form: from the calls of one traced example, or by the clock for latency."""

    calls: Mapping[str, Sequence[Call]]
    samples: int
    element_sizes: Mapping[str, int]
    # by batch and phase: milliseconds of a site in a form at a rank
    timings: dict[tuple[int, str], Timing] = field(default_factory=dict)
    known: dict[tuple[int, Form, int, bool], Cost] = field(default_factory=dict, repr=False)
    kinds: dict[Hashable, int] = field(default_factory=dict, repr=False)
    numbers: dict[str, int] = field(default_factory=dict, repr=False)  # of the kind of each site

    def cost(self, site: Site, form: Form, rank: int, bias: bool) -> Cost:
        kind = self.numbers.get(site.name)
        key = (self._kind(site) if kind is None else kind, form, rank, bias)
        if key not in self.known:
            size, calls = self.element_sizes[site.name], self.calls.get(site.name, ())
            self.known[key] = site_cost(site, form, rank, calls, self.samples, size, bias)
        return self.known[key]

    def _kind(self, site: Site) -> int:
        """One number for all layers with the same settings and calls, such as those of all blocks: so what is kept does
        not grow with the depth."""
        told: Hashable = (site.layer, self.element_sizes[site.name], tuple(self.calls.get(site.name, ())))
        try:
            number = self.kinds.setdefault(told, len(self.kinds))
        except TypeError:  # a layer of somebody's own that cannot be told by its settings
            number = self.kinds.setdefault(site.name, len(self.kinds))
        self.numbers[site.name] = number
        return number

    def costs(self, budgets: Sequence[Resource], site: Site, form: Form, rank: int, bias: bool) -> tuple[float, ...]:
        cost = self.cost(site, form, rank, bias)
        return tuple(
            self.timings[budget.batch, budget.phase](site, form, rank)
            if isinstance(budget, Latency)
            else budget.of(cost)
            for budget in budgets
        )

    def kept(self, budgets: Sequence[Resource], site: Site) -> tuple[float, ...]:
        return self.costs(budgets, site, Form.KEEP, 0, site.layer.has_bias)


def decompose(
    root: nn.Module, sites: SiteList, method: Method, statistics: Statistics | None, progress: Progress
) -> Decomposed:
    """Every reducible site in every form that the method offers there; the model must be ``opened``.

    Where samples were held back, the candidates that a method weighs are made from the others and compared on them; the
    best one is made again from all. Raises ``ValueError`` naming the site for weights that are not finite or not
    materialised.
    """
    found = Decomposed({}, {})
    counts = [0, 0]
    every = (*sites.reducible, *sites.joint)
    for done, site in enumerate(every):
        known = statistics_of(statistics, site, partial(site.weight, root))
        if known is None and isinstance(site, Joint):
            continue
        note = "" if known is None or not known.idle else _idle(known.idle)
        few = known is not None and known.parts is None and known.moments.count < _FEW * known.moments.size
        if few:
            known, note = None, "truncated without data, as there is only one sample of it"
        made: dict[Form, tuple[Decomposition | None, Forecast | None, float]] = {}  # forms may share one
        forms = forms_by(method, site)
        if forms:
            check_finite([(site, site.weight(root), site.bias(root))])
        group = found.candidates[site.name] = []
        for form in forms:
            base = form if form.over_base else form.decomposed
            try:
                if base not in made:
                    made[base] = _weighed(root, site, base, method, known, counts)
            except NotConvergedError as error:
                found.unsolved[site.name] = f"not decomposed: {error}"
                continue
            except (ValueError, ArithmeticError) as error:
                raise ValueError(
                    f"{site.title}: {error}: repair or reload its weights, or leave the layer out with where= "
                    "(--exclude)"
                ) from error
            decomposition, forecast, ridge = made[base]
            if decomposition is not None and not form.exact:
                decomposition = rounds = AfterRounding(decomposition)
                forecast = None if forecast is None else rounds.told(forecast)
            if decomposition is not None:
                check_decomposition(method, site, form, decomposition)
                carries = site.layer.has_bias or (known is not None and known.free and known.absorber is None)
                said = "; ".join(filter(None, (note, getattr(decomposition, "note", ""))))
                group.append(Candidate(site, form, decomposition, carries, forecast, said, ridge, few=few))
        progress("decomposing", done + 1, len(every))
    return replace(found, count=counts[0], weighed=counts[1])


def forms_by(method: Method, site: Site | Joint) -> list[Form]:
    """The forms in which ``method`` can factor a site."""
    offered = site.forms - {Form.KEEP, Form.DENSE}
    if fits_layers(method):  # "all" names them too
        offered = frozenset(form for form in offered if not form.over_base)
    return sorted(form for form in offered if form.decomposed in method.forms)


def _idle(experts: Sequence[int]) -> str:
    shown = f"{', '.join(map(str, experts[:8]))}{', …' if len(experts) > 8 else ''}"
    return (
        f"these experts were given no token: {shown}. They keep what the other experts need: give more data, or "
        "other data"
    )


def _weighed(
    root: nn.Module, site: Site, form: Form, method: Method, known: SiteStatistics | None, counts: list[int]
) -> tuple[Decomposition | None, Forecast | None, float]:
    """The decomposition from all samples, what it is worth on those that another was not made from, and its ridge."""
    weight, bias = site.weight(root), site.bias(root)
    fitted = None if known is None else known.fitted
    best: tuple[float, Any, Forecast] | None = None
    if known is not None and fitted is not None:
        moment = known.held_out
        assert moment is not None
        alternatives = getattr(method, "alternatives", None)
        for each in (method,) if alternatives is None else alternatives(fitted):
            tried = decomposed(each, site, form, weight, fitted, bias)
            if not isinstance(tried, Forecasting):
                break
            forecast = tried.forecast(moment)
            counts[0], counts[1] = counts[0] + 1, counts[1] + 1
            score = float(forecast.errors.square().sum())
            if best is None or score < best[0]:
                best = score, each, forecast
    chosen = method if best is None else best[1]
    whole = None if known is None else replace(known, parts=None)  # a decomposition holds on to what it was made from
    decomposition = decomposed(chosen, site, form, weight, whole, bias)
    ridge = float(getattr(chosen, "ridge", 0.0)) if chosen is not method else 0.0
    if decomposition is None:
        return None, None, ridge
    decomposition.errors  # noqa: B018  # decomposes now, so that a bad weight is named here
    counts[0] += 1
    return decomposition, None if best is None else best[2], ridge


def with_ridge(method: Method, ridge: float) -> Method:
    """``method`` with the ridge that held-out samples have chosen; 0 for its own."""
    return replace(method, ridge=ridge) if ridge else method  # type: ignore[type-var]  # only a method with one has any


def options(
    sites: SiteList,
    candidates: Mapping[str, Sequence[Candidate]],
    prices: Mapping[tuple[str, Form], Tensor],
    budgets: Sequence[Budget],
    resource: Sequence[Resource],
    counter: Counter,
) -> dict[str, list[Option]]:
    """The choices of every site: keeping it, and every candidate at every rank, less what the budgets rule out. Those
    of a group of ``sites.joint`` stand under its own name, and keep nothing: they are in place of all of its members'.

    ``prices``: for each candidate the predicted loss at rank 0..k. ``resource``: what the costs of an option count.
    """
    floor = max((b.keep for b in budgets if isinstance(b, KeepEnergy)), default=0.0)
    pins = {site: rank for b in budgets if isinstance(b, Ranks) for site, rank in b.ranks.items()}
    pinned, multiple = any(isinstance(b, Ranks) for b in budgets), multiple_of(budgets)
    result: dict[str, list[Option]] = {}
    for site in sites:
        keep = Option(Form.KEEP, min(site.shape), 0.0, counter.kept(resource, site), 0.0)
        group = [keep]
        for candidate in candidates.get(site.name, ()):
            group += _ladder(candidate, prices, resource, counter, floor, multiple)
        if site.name in pins:
            group = [_pin(site, group, pins[site.name], multiple)]
        elif pinned:
            group = [keep]
        result[site.name] = group
    for site in () if pinned else sites.joint:
        for candidate in candidates.get(site.name, ()):
            result[site.name] = _ladder(candidate, prices, resource, counter, floor, multiple)
    return result


def _ladder(
    candidate: Candidate,
    prices: Mapping[tuple[str, Form], Tensor],
    resource: Sequence[Resource],
    counter: Counter,
    floor: float,
    multiple: int,
) -> list[Option]:
    site, form = candidate.site, candidate.form
    loss = prices[site.name, form].tolist()
    kept = (1 - candidate.relative_errors.square()).tolist()
    levels = candidate.decomposition.levels.tolist()
    return [
        Option(
            form, rank, loss[rank], counter.costs(resource, site, form, rank, candidate.bias),
            levels[rank - 1] if rank else 1.0,
        )
        for rank in candidate.ranks
        if kept[rank] >= floor - 1e-12 and divisible(site, form, rank, multiple)
    ]  # fmt: skip


def divisible(site: Site, form: Form, rank: int, multiple: int) -> bool:
    """Whether every size between the parts of the layer in ``form`` is a multiple of ``multiple``."""
    return not any(size % multiple for size in form.ranks_of(site.layer, rank))


def _pin(site: Site, group: Sequence[Option], rank: int, multiple: int) -> Option:
    fitting = [option for option in group if option.form is not Form.KEEP and option.rank == rank]
    if not fitting:
        ranks = sorted({option.rank for option in group if option.form is not Form.KEEP})
        allowed = "none" if site.note else "none: this method cannot factor it, or an energy excludes it"
        if ranks:
            every = len(ranks) == ranks[-1] - ranks[0] + 1
            allowed = f"{ranks[0]} to {ranks[-1]}" if every else ", ".join(map(str, ranks))
        only = f" in multiples of {multiple}" if multiple > 1 else ""
        note = f": {site.note}" if site.note else ""
        raise ValueError(f"{site.title}: rank {rank} was asked for; possible ranks{only} are {allowed}{note}")
    return min(fitting, key=lambda option: option.loss)
