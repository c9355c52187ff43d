"""What a plan says of every site, and what it costs altogether."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankfold.compress.layerwise.survey import Survey
from rankfold.compress.planning.candidates import Candidate, Counter
from rankfold.compress.planning.plan import Entry
from rankfold.compress.ranks.allocate import Option
from rankfold.compress.statistics import Statistics
from rankfold.costs import Cost
from rankfold.sites import Form, Site, SiteList

Candidates = Mapping[str, list[Candidate]]
Choices = Mapping[str, list[Option]]


def entries_of(
    found: SiteList,
    known: Survey,
    choices: Choices,
    picked: Mapping[str, Option],
    counter: Counter,
    statistics: Statistics | None,
) -> tuple[Entry, ...]:
    sampled = {} if statistics is None else statistics.sites
    entries = []
    for site in found:
        option = picked[site.name]
        if option.form is Form.KEEP:
            bias, rank, error, note = (
                site.layer.has_bias,
                min(site.shape),
                0.0,
                site.note or known.unsolved.get(site.name) or _why_kept(site, known.candidates, choices[site.name]),
            )
        else:
            candidate = next(c for c in known.candidates[site.name] if c.form is option.form)
            bias, rank, note = candidate.bias, option.rank, ""
            error = candidate.decomposition.relative_error(rank)
            rows = sampled[site.name].moments.count if site.name in sampled else rank
            if rows < rank:
                note = f"rank {rank} was fitted to {rows} rows of data: give more samples"
            if site.name in known.unreached:
                note = "never called on the calibration data: truncated without data"
        cost = counter.cost(site, option.form, rank, bias)
        if option.form is not Form.KEEP and _gains_nothing(cost, counter.cost(site, Form.KEEP, 0, site.layer.has_bias)):
            note = "; ".join(filter(None, (note, "this rank was asked for; it costs no less than the layer itself")))
        entry = Entry(site.name, option.form, rank, site.shape, site.groups, error, option.loss, bias=bias, note=note)
        entries.append(replace(entry, params=cost.params, flops=cost.flops))
    return tuple(entries)


def _why_kept(site: Site, candidates: Candidates, group: Sequence[Option]) -> str:
    if site.forms == {Form.KEEP}:
        return f"{site.kind}: measured, never factored"
    if not candidates.get(site.name):
        return f"this method does not factor a {site.kind} of this setting"
    keep, others = group[0], group[1:]  # no others where ranks were given for other sites alone
    if others and not any(new < old for o in others for new, old in zip(o.costs, keep.costs, strict=True)):
        return "factoring gains nothing here: no rank that is allowed costs less than the layer itself"
    return ""


def _gains_nothing(cost: Cost, dense: Cost) -> bool:
    return cost.params >= dense.params and cost.flops >= dense.flops and cost.bytes >= dense.bytes


def after_of(before: Cost, whole: int, found: SiteList, entries: Sequence[Entry], counter: Counter) -> Cost:
    """``whole``: FLOPs of the dense model for all samples of the example, so that only their sum is rounded."""
    after = before
    for site, entry in zip(found, entries, strict=True):
        after = after - counter.cost(site, Form.KEEP, 0, site.layer.has_bias)
        after = after + counter.cost(site, entry.form, entry.rank, entry.bias)
        calls = counter.calls.get(site.name, ())
        whole += site.layer.flops(entry.form, entry.rank, calls) - site.layer.flops(Form.KEEP, 0, calls)
    return replace(after, flops=whole // counter.samples)


def notes_of(known: Survey, counter: Counter, found: SiteList) -> tuple[str, ...]:
    notes = []
    if known.unreached:
        notes.append(f"never called on the calibration data: {', '.join(known.unreached)}")
    silent = [s.name for s in found if s.name not in counter.calls and s.kind != "Embedding" and not s.note]
    if silent:
        notes.append(f"never called on the example input, so without FLOPs: {', '.join(silent)}")
    return tuple(notes)
