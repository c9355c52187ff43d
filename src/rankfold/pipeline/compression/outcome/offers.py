"""Plans for many budgets from one profile, as the report offers them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rankfold.compress.methods.method import fits_layers
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.budget import Multiples
from rankfold.compress.ranks.options import BudgetError
from rankfold.compress.ranks.rules import Iterative, rule_named
from rankfold.objectives.units import in_words
from rankfold.pipeline.quality.value import BY
from rankfold.report import Offer, OfferedLayer
from rankfold.sites import Form

MANY = 45  # budgets, of a network of up to LARGE sites; fewer of larger ones, in proportion
LARGE = 32
FEWEST = 12
_FROM, _TO = 0.98, 0.05  # of what is sought


def offers(known: Profile, plan: Plan, sought: str = "flops") -> list[Offer]:
    """Plans up to 98 % of what is ``sought`` ("flops" or "params") from where the first can be met, made as ``plan``
    was, and ``plan`` itself; no two that decide alike.

    None for methods that fit layer after layer and for the iterative rule, whose plans cost more than a look. Of a
    language model those in nats, without a trial. Decomposes nothing and runs no model.
    """
    if fits_layers(known.method) or isinstance(rule_named(plan.rule), Iterative):
        return []
    if known.statistics is not None:
        known = replace(known, statistics=known.statistics.decided)
    besides = [budget for budget in plan.budgets if isinstance(budget, Multiples)]
    found = _offered(known, plan.rule, besides, plan.decided, BY[sought])
    return sorted((*found, _offer(plan)), key=lambda offer: getattr(offer, sought))


def loss_unit(plan: Plan) -> str:
    """In what the predicted loss of a plan is expressed, in words."""
    unit = plan.calibration.get("unit")
    return f"{'the share of its energy' if unit is None else in_words(unit)}, summed over the layers"


def _offered(known: Profile, rule: str, besides: list[Multiples], chosen: str | None, by: Any) -> Iterator[Offer]:
    seen = {chosen or ""}
    count = max(FEWEST, min(MANY, MANY * LARGE // max(len(known.sites.reducible), 1)))
    for index in range(count):
        try:
            plan = known.plan((by(_FROM - (_FROM - _TO) * index / (count - 1)), *besides), rule)
        except BudgetError:
            return
        if plan.decided not in seen:
            seen.add(plan.decided or "")
            yield _offer(plan)


def _offer(plan: Plan) -> Offer:
    before, after = plan.before, plan.after
    return Offer(
        after.flops / max(before.flops, 1), after.params / max(before.params, 1), after.bytes / max(before.bytes, 1),
        sum(entry.predicted_loss for entry in plan.entries), tuple(map(_layer, plan.entries)),
    )  # fmt: skip


def _layer(entry: Entry) -> OfferedLayer:
    changed = entry.form is not Form.KEEP
    error = entry.predicted_error if changed else None
    return OfferedLayer(str(entry.form), entry.rank if changed else None, error, entry.params, entry.flops)
