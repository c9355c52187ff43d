"""Two plans for a language model, in nats and by the change of all outputs: the one that is nearer on a few tokens.

Where little is lost nats per token rank layers better, where much is lost the change of all outputs does: how much
that is differs between networks. So both plans are carried out, each on a copy, and asked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rankfold.batches import copied, forward, samples_of, size_of, tensors_in
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.planning.forecast import SEEN, UNSEEN
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.planning.profile import Profile
from rankfold.compress.sensitivity import output_changes
from rankfold.costs import evaluating
from rankfold.objectives import Teacher
from rankfold.objectives.units import TOKEN

TOKENS = 512  # that both plans are tried on
CERTAIN = 0.05  # nats per token up to which nothing is tried: there the two differ by a tenth, either way
RELIABLE = 1.0  # nats per token up to which a forecast is believed where nothing can be tried


def nearer(known: Profile, first: Plan, other: Plan) -> Plan:
    """``first``, made in nats, or ``other``, made from ``known.coarser``: the one with less divergence on some tokens
    of the calibration data. Its forecast is in nats, whichever it is. Cost: two copies of the model, one at a time.

    Without data to try them on ``first`` is taken as long as its forecast is believable.
    """
    batch = _some(known)
    if batch is None:
        return first if (first.forecast or 0.0) <= RELIABLE else _in_nats(known, other)
    lost = [_divergence(known, plan, batch) for plan in (first, other)]
    taken = first if lost[0] <= lost[1] else _in_nats(known, other)
    return replace(taken, calibration={**taken.calibration, "probe": min(lost)})


def _some(known: Profile) -> Any:
    """Some samples with ``TOKENS`` tokens or more; None without data."""
    if known.data is None or known.model is None:
        return None
    batch = next((batch for _, batch in known.calibration.of(known.data).batches()), None)
    if batch is None:
        return None
    size = size_of(batch)
    length = max(next(tensors_in(batch)).numel() // size, 1)
    return samples_of(batch, size, slice(min(size, -(-TOKENS // length))))


def _divergence(known: Profile, plan: Plan, batch: Any) -> float:
    model = known.needed_model()
    small = apply_(copied(model), plan, known.of(plan))
    with evaluating(model), evaluating(small):
        found = (known.objective or Teacher()).divergence(forward(small, batch), forward(model, batch), batch)
    lost = float(found.mean())
    return lost if lost == lost else float("inf")


def _in_nats(known: Profile, plan: Plan) -> Plan:
    """What was decided by the change of all outputs, with what each site is expected to cost in nats."""
    assert known.statistics is not None
    prices = output_changes([each for group in known.candidates.values() for each in group])
    coarse = known.of(plan)

    def priced(entry: Entry) -> Entry:
        if entry.members:
            price = prices.get(("+".join(entry.members), entry.form))
            if price is None or entry.site != entry.members[0]:
                return entry
            return replace(entry, predicted_loss=float(price[entry.rank]))
        candidate = coarse.candidate(entry.site, entry.form)
        metric = known.statistics.sites[entry.site].metric if entry.site in known.statistics.sites else None  # type: ignore[union-attr]
        cost = getattr(getattr(candidate, "decomposition", None), "cost_in", None)
        if cost is not None and metric is not None:
            # what positions have in common is known of the factors in nats alone, at a like error
            ratio = _coherence_at(known.candidate(entry.site, entry.form), candidate, entry.rank)
            return replace(entry, predicted_loss=ratio * cost(metric, entry.rank))
        price = prices.get((entry.site, entry.form))
        return entry if price is None else replace(entry, predicted_loss=float(price[entry.rank]))

    told = {key: value for key, value in plan.calibration.items() if key not in (SEEN, UNSEEN)}
    return replace(plan.with_entries(tuple(map(priced, plan.entries))), calibration=told | {"unit": TOKEN})


def _coherence_at(known: Candidate | None, candidate: Candidate | None, rank: int) -> float:
    """The coherence of ``known`` where its error is that of ``candidate`` at ``rank``; 1 where there is none."""
    if known is None or candidate is None or known.coherence is None:
        return 1.0
    like = (known.relative_errors - candidate.relative_errors[rank]).abs().argmin()
    return float(known.coherence[like])
