"""Performance-preserving truncation (ISVT; LoRITa, appendix A): each step is taken where it raises the loss least."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.ranks.options import BudgetError, Costs, Option, within
from rankfold.compress.ranks.rules import Iterative
from rankfold.compress.ranks.sampling import draw
from rankfold.compress.trial import Trial
from rankfold.costs import evaluating
from rankfold.run.progress import Progress
from rankfold.sites import Form, opened

Candidates = Mapping[str, Sequence[Candidate]]
Choices = Mapping[str, Sequence[Option]]

SORT_EVERY = 16  # steps after which the samples are put in order of their loss again


@dataclass(frozen=True)
class Step:
    """``site`` became ``option``; ``loss`` is then the mean over the samples."""

    site: str
    option: Option
    loss: float


def iterate(
    root: nn.Module,
    candidates: Candidates,
    choices: Choices,
    limits: Costs,
    data: Any,
    rule: Iterative,
    tell: Progress,
) -> dict[str, Option]:
    """The choice that ``truncations`` ends with, on ``rule.samples`` samples drawn from ``data`` with ``rule.seed``.

    Progress is told in percent of the way to the limits. ``root`` is left as found.
    """
    picked = start(choices)
    whole = _excess(picked, limits)
    samples = draw(data, rule.samples, torch.Generator().manual_seed(rule.seed))

    def watch(step: Step) -> bool:
        picked[step.site] = step.option
        tell("truncating", 100 - math.ceil(100 * max(0.0, _excess(picked, limits)) / whole), 100)
        return True

    truncations(root, candidates, choices, limits, samples, rule, watch)
    # what costs no less than the layer as it is gains nothing by being truncated
    return {site: option if option in choices[site] else choices[site][0] for site, option in picked.items()}


def start(choices: Choices) -> dict[str, Option]:
    """Every site as it is: kept, or at the rank that was given for it."""
    return {site: group[0] for site, group in choices.items()}


def truncations(
    root: nn.Module,
    candidates: Candidates,
    choices: Choices,
    limits: Costs,
    samples: Sequence[Any],
    rule: Iterative,
    watch: Callable[[Step], bool],
) -> None:
    """Step by step ``rule.step`` parameters leave the site where that raises the loss least, until all limits hold.

    ``samples``: batches of one sample; the loss is that of ``Trial``. A site goes down in the form of its first
    candidate, to the largest rank that removes ``step`` parameters or meets the limits; where no site has ``step``
    parameters left to give, a site gives what it has. Ties go to the earlier site. Parameters are those that the layer
    stores, or with ``rule.counted`` "values" those of its factors from full rank on: there an option whose factors save
    nothing has the costs of the layer as it is. ``watch`` is called after every
    step and may end the work by returning False. ``root`` is left as found.

    Every decision is the one that full forward passes would lead to, up to ties within rounding. Raises
    ``BudgetError`` when no site has anything left to give. Cost: for each step half a forward pass for each site,
    less for sites whose loss soon exceeds the least; memory: the outputs of all modules on the samples, and a second
    weight for each site.
    """
    picked = start(choices)
    by_value = rule.counted == "values"
    ladders = {site: _ladder(candidates.get(site, ()), group, by_value) for site, group in choices.items()}
    with evaluating(root), opened(root), Trial(root, candidates, samples) as trial:
        for site, option in picked.items():
            if option.form is not Form.KEEP:
                trial.commit(site, option)
        # likeliest first: the sooner a low loss is known, the sooner the other sites are given up
        expected = dict.fromkeys(choices, 0.0)
        count = 0
        while not within(picked, limits):
            if count % SORT_EVERY == 0:
                trial.sort()
            ways = _ways(picked, ladders, candidates, limits, rule)
            if not ways:
                raise BudgetError(
                    "the budget cannot be met by the iterative rule: every layer that gains from truncation is "
                    "already at its lowest rank; allow more, or use the rule 'optimal'"
                )
            places = {site: place for place, site in enumerate(ways)}
            bound = math.inf
            for site in sorted(ways, key=expected.__getitem__):
                expected[site] = trial.loss(site, ways[site], bound)
                bound = min(bound, expected[site])
            site = min(ways, key=lambda s: (expected[s], places[s]))
            picked[site] = ways[site]
            trial.commit(site, picked[site])
            count += 1
            if not watch(Step(site, picked[site], bound / len(samples))):
                return


def _ladder(found: Sequence[Candidate], group: Sequence[Option], by_value: bool) -> list[Option]:
    """The options of the first candidate that cost less than keeping the site, highest rank first.

    ``by_value``: every option below full rank; those that do not cost less cost what the site does as it is.
    """
    if not found or group[0].form is not Form.KEEP:
        return []
    keep, form = group[0], found[0].form
    full = max((option.rank for option in group if option.form is form), default=0)
    ladder = []
    for option in group:
        if option.form is not form:
            continue
        if any(new < old for new, old in zip(option.costs, keep.costs, strict=True)):
            ladder.append(option)
        elif by_value and option.rank < full:
            ladder.append(replace(option, costs=keep.costs))
    return sorted(ladder, key=lambda option: -option.rank)


def _ways(
    picked: Mapping[str, Option],
    ladders: Mapping[str, Sequence[Option]],
    candidates: Candidates,
    limits: Costs,
    rule: Iterative,
) -> dict[str, Option]:
    """Where each site would go in the next step; sites that cannot go anywhere are missing."""
    totals = [sum(option.costs[axis] for option in picked.values()) for axis in range(len(limits))]
    ways, last = {}, {}
    for site, ladder in ladders.items():
        now = picked[site]
        lower = [option for option in ladder if now.form is Form.KEEP or option.rank < now.rank]
        if not lower:
            continue
        candidate = candidates[site][0]
        layer = candidate.site.layer
        if now.form is Form.KEEP and rule.counted == "values":
            here = layer.params(candidate.form, max(candidate.ranks), candidate.bias)
        else:
            here = layer.params(now.form, now.rank, layer.has_bias if now.form is Form.KEEP else candidate.bias)
        last[site] = lower[-1]
        for option in lower:
            enough = layer.params(option.form, option.rank, candidate.bias) <= here - rule.step
            if enough or all(
                total - old + new <= limit
                for total, old, new, limit in zip(totals, now.costs, option.costs, limits, strict=True)
            ):
                ways[site] = option
                break
    return ways or last


def _excess(picked: Mapping[str, Option], limits: Costs) -> float:
    """How far the costs are above the limits, as a fraction of the costs, in the worst resource."""
    excess = 0.0
    for axis, limit in enumerate(limits):
        total = sum(option.costs[axis] for option in picked.values())
        excess = max(excess, (total - limit) / total if total > 0 else 0.0)
    return excess
