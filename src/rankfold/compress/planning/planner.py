"""Making a plan: measure every site, decide ranks within the budget, write it down. The model is not changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import arguments, batches_of, check_rereadable, moved, size_of, tensors_in
from rankfold.compress.layerwise.fitting import fit
from rankfold.compress.layerwise.survey import Survey, survey
from rankfold.compress.layerwise.sweep import Samples
from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Method, sweeps
from rankfold.compress.planning.candidates import Counter, decompose, options, resources
from rankfold.compress.planning.entries import Candidates, Choices, after_of, entries_of, notes_of
from rankfold.compress.planning.plan import Plan, decisions, fingerprint
from rankfold.compress.ranks.allocate import Option, check_feasible, global_, local, optimal
from rankfold.compress.ranks.budget import Budget, Latency, Params, Ranks, Resource, describe, parse_budget
from rankfold.compress.ranks.iterative import iterate
from rankfold.compress.ranks.latency import meet_latency
from rankfold.compress.ranks.rules import Global, Iterative, Local, Optimal, RankRule, rule_named
from rankfold.compress.ranks.timing import site_timing
from rankfold.compress.sensitivity import output_changes, price, relative_energy
from rankfold.compress.statistics import Statistics, calibrate
from rankfold.costs import Cost, Example, latencies, storage, trace
from rankfold.sites import FOLD_FIRST, Form, SiteList, sites, split_attention, unwrap
from rankfold.train.parallel import Team, joined

Progress = Callable[[str, int, int], None]
Budgets = str | Budget | Sequence[str | Budget]
Prices = Mapping[tuple[str, Form], Tensor]
Solve = Callable[[tuple[float, ...]], dict[str, Option]]


@dataclass(frozen=True)
class Calibration:
    """Which part of the data is used: its first ``samples`` samples in batches of ``batch_size``.

    ``name`` of the data is written into the plan, for whoever reads it. ``statistics`` of an earlier plan for the same
    model (``plan.statistics``) save taking them again. For methods that sweep: ``memory`` in bytes that second moments
    and their decompositions may take (None: as it comes), and ``distributed``: every process of torchrun takes its
    share of the data, and all end with the same plan.
    """

    samples: int = 2048
    batch_size: int = 128
    name: str = ""
    statistics: Statistics | None = None
    memory: int | None = None
    distributed: bool = False

    def __post_init__(self) -> None:
        if self.memory is not None and (isinstance(self.memory, str) or not self.memory > 0):
            raise ValueError(f"memory is a number of bytes, such as 2_000_000_000, got {self.memory!r}")


def plan(
    model: nn.Module,
    budget: Budgets,
    method: str | Method = "project",
    data: Any = None,
    *,
    rule: str | RankRule = "optimal",
    example: Any = None,
    where: Any = None,
    calibration: Calibration | None = None,
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Decide what becomes of every site of ``model`` within ``budget``.

    ``budget``: one or several of ``Params``, ``Flops``, ``Bytes``, ``Latency``, ``KeepEnergy``, ``Ranks`` or their text
    (``"flops=0.5"``); all must hold. ``data``: a loader, data set or batches (see ``rankfold.batches.batches_of``);
    needed by methods that use data and by the iterative rule. ``example``: one input, for counting; taken from the
    data otherwise. ``where`` narrows the sites (see ``rankfold.sites.sites``). ``directory``: where methods that sweep
    keep what is finished; the same call takes up an interrupted one. ``progress(what, done, total)`` is called as the
    work goes on.

    Raises ``BudgetError`` when nothing fits, ``ValueError`` for data that is missing, empty or not finite, for weights
    that are not finite, naming the site, and for over-parametrised models, which are folded first.
    Cost: one pass over the calibration data, one decomposition for each site, and the probes of the rank rule.
    """
    root, tell = unwrap(model), progress or (lambda what, done, total: None)
    budgets, calibration = _budgets(budget), calibration or Calibration()
    method, rule = method_named(method), rule_named(rule)
    found = sites(root, where)
    _check_names(budgets, found)
    composed = [site.name for site in found if site.note == FOLD_FIRST]
    if composed:
        raise ValueError(
            f"{len(composed)} weights are products of factors (the first is {composed[0]}): fold before planning, "
            "rankfold.fold_(model)"
        )
    if data is None and (method.needs_data or isinstance(rule, Iterative)):
        needs = f"method {method.name!r}" if method.needs_data else "the iterative rule"
        raise ValueError(f"{needs} needs data: give data=, or use method='truncate' with another rule")
    check_rereadable(data)
    first = _example(root, data) if example is None else Example.of(example)
    params, size = storage(root)
    whole, calls = trace(root, replace(first, samples=1), found)  # FLOPs of the example with all its samples
    before = Cost(params, whole // first.samples, size)
    sweeping = sweeps(method)
    if sweeping and isinstance(rule, Iterative):
        raise ValueError(f"method {method.name!r} sweeps after ranks are chosen: take another rule than the iterative")
    place = None if directory is None else Path(directory) / _digest(root, found, data, method, rule, calibration)
    seen = Samples(data, calibration.samples, calibration.batch_size, calibration.memory)
    statistics = None if sweeping or not method.needs_data else calibration.statistics
    if method.needs_data and statistics is None and not sweeping:
        statistics = calibrate(
            root, data, found, samples=calibration.samples, batch_size=calibration.batch_size, progress=tell
        )
    mark = fingerprint(root)
    if statistics is not None and statistics.model not in ("", mark):
        raise ValueError(
            "the statistics were taken of another model (or of other weights): leave Calibration(statistics=…) out, so "
            "that they are taken again"
        )
    with split_attention(root), _team(root, calibration) as team:
        seen = replace(seen, team=team)
        sizes = {site.name: site.weight(root).element_size() for site in found}
        every_form = isinstance(rule, Optimal)
        if sweeping:
            known = survey(root, found, method, seen, every_form, directory=place, progress=tell)
        else:
            known = Survey(
                *decompose(root, found, method, statistics, every_form, tell), {}, {}, _unreached(statistics)
            )
        candidates = known.candidates
        batches = {budget.batch for budget in budgets if isinstance(budget, Latency)}
        timings = {batch: site_timing(root, found, candidates, first, batch, tell) for batch in batches}
        counter = Counter(calls, first.samples, sizes, timings)
        prices = _prices(root, candidates, None if sweeping else data, rule, tell)
        asked = resources(budgets)
        resource = asked or (Params(1.0),)
    # from here on with its attention whole, as the model is used: the iterative rule takes it apart by itself
    limits = _limits(resource, before, found, counter, root, first)

    def choices_at(prices: Prices) -> dict[str, list[Option]]:
        return options(found, candidates, prices, budgets, resource, counter)

    def solver(choices: Choices) -> Solve:
        return _solver(root, candidates, choices, rule, asked, before, data, tell)

    def write(choices: Choices, picked: Mapping[str, Option], notes: Sequence[str] = ()) -> Plan:
        entries = entries_of(found, known, choices, picked, counter, statistics)
        return Plan(
            entries, budgets, method.name, rule.name, mark, before, after_of(before, whole, found, entries, counter),
            {"data": calibration.name, "samples": _count(seen, statistics, sweeping), "rule": asdict(rule)},
            found.left_out, (*notes, *notes_of(known, counter, found)),
            decided=decisions(entries), statistics=statistics,
        )  # fmt: skip

    def choose(met: Prices) -> Plan:
        choices = choices_at({**prices, **met})
        return write(choices, solver(choices)(limits))

    if batches:
        choices = choices_at(prices)
        made = meet_latency(root, partial(write, choices), solver(choices), limits, resource, first, tell)
    else:
        made = choose({})
    if not sweeps(method):
        return made
    with _team(root, calibration) as team:
        return fit(
            root, made, None if batches else choose, found, method, replace(seen, team=team), known, directory=place,
            progress=tell,
        )  # fmt: skip


def _digest(root: nn.Module, found: SiteList, data: Any, method: Method, rule: RankRule, how: Calibration) -> str:
    """A name for everything that a survey and its sweeps depend on; of the data, for its first batch."""
    hashed = sha256()
    for batch in batches_of(data, how.batch_size, how.batch_size):
        for tensor in tensors_in(arguments(batch, root)):
            hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    names = [site.name for site in found.reducible]
    asked = (fingerprint(root), names, method, rule, how.samples, how.batch_size, how.memory)
    hashed.update(repr(asked).encode())
    return hashed.hexdigest()[:16]


def _team(root: nn.Module, calibration: Calibration) -> AbstractContextManager[Team]:
    if not calibration.distributed:
        return nullcontext(Team())
    return joined(next((p.device for p in root.parameters()), torch.device("cpu")))


def _unreached(statistics: Statistics | None) -> tuple[str, ...]:
    return () if statistics is None else statistics.unreached


def _count(seen: Samples, statistics: Statistics | None, sweeping: bool) -> int:
    if not sweeping:
        return statistics.samples if statistics else 0
    return sum(size_of(batch) for batch in batches_of(seen.data, seen.batch_size, seen.samples))


def _budgets(budget: Budgets) -> tuple[Budget, ...]:
    given = [budget] if isinstance(budget, str) or not isinstance(budget, Sequence) else list(budget)
    budgets = tuple(parse_budget(item) if isinstance(item, str) else item for item in given)
    if not budgets:
        raise ValueError("no budget was given: for example 'flops=0.5'")
    return budgets


def _check_names(budgets: Sequence[Budget], found: SiteList) -> None:
    for budget in budgets:
        for name in budget.ranks if isinstance(budget, Ranks) else ():
            try:
                found[name]
            except KeyError as error:
                raise ValueError(f"a rank was given for {name!r}: {error.args[0]}") from None


def _example(root: nn.Module, data: Any) -> Example:
    if data is None:
        raise ValueError("one input of the model is needed to count its cost: give example= or data=")
    for batch in batches_of(data, 2, 2):
        args, kwargs = arguments(batch, root)
        place = next((p for p in root.parameters() if p.is_floating_point()), None)
        if place is not None and not place.is_meta:
            args, kwargs = moved(args, place.device, place.dtype), moved(kwargs, place.device, place.dtype)
        return Example.of(kwargs if kwargs else args)
    raise ValueError("the data is empty: give at least one batch")


def _prices(root: nn.Module, candidates: Candidates, data: Any, rule: RankRule, tell: Progress) -> Prices:
    """What each candidate loses at each rank, in one unit: the model's own outputs, where data can say."""
    flat = [candidate for group in candidates.values() for candidate in group]
    if any(candidate.decomposition.comparable for candidate in flat):
        return output_changes(flat)
    if isinstance(rule, Optimal) and rule.probes and data is not None:
        return price(root, flat, data, rule, tell)
    return relative_energy(flat)


def _solver(
    root: nn.Module,
    candidates: Candidates,
    choices: Choices,
    rule: RankRule,
    asked: Sequence[Resource],
    before: Cost,
    data: Any,
    tell: Progress,
) -> Solve:
    """How ranks are chosen for given limits."""

    def smallest(axis: int, lacking: float) -> str:
        budget = asked[axis]
        if isinstance(budget, Latency):
            return ""
        fraction = ceil(1e4 * (budget.keep + lacking / getattr(before, budget.kind))) / 1e4  # four digits, never less
        return f"{budget.kind}={fraction:g} is the smallest that can be reached: allow that" if fraction <= 1 else ""

    def solve(limits: tuple[float, ...]) -> dict[str, Option]:
        if not asked:  # only energies or ranks were asked: the cheapest that satisfies them
            return {name: min(group, key=lambda o: (o.costs, o.loss)) for name, group in choices.items()}
        check_feasible(choices, limits, [describe(budget) for budget in asked], smallest)
        if isinstance(rule, Local):
            return local(choices, limits, rule.fraction, rule.rank)
        if isinstance(rule, Global):
            return global_(choices, limits)
        if isinstance(rule, Iterative):
            return iterate(root, candidates, choices, limits, data, rule, tell)
        return optimal(choices, limits)

    return solve


def _limits(
    resource: Sequence[Resource], before: Cost, found: SiteList, counter: Counter, root: nn.Module, first: Example
) -> tuple[float, ...]:
    """What the sites together may cost: the budget less what the rest of the model costs whatever is decided."""
    limits = []
    dense = [counter.costs(resource, site, Form.KEEP, 0, site.layer.has_bias) for site in found]
    for axis, budget in enumerate(resource):
        if isinstance(budget, Latency):
            total = latencies({"dense": root}, first, batch=budget.batch)["dense"]
        else:
            total = float(getattr(before, budget.kind))
        limits.append(budget.keep * total - (total - sum(costs[axis] for costs in dense)))
    return tuple(limits)
