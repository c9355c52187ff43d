"""What a plan says of every site, and what it costs altogether."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rankfold.compress.planning.candidates import Candidate
from rankfold.compress.planning.plan import Entry
from rankfold.compress.planning.profile import Profile
from rankfold.compress.ranks.options import Option
from rankfold.compress.shared import shares
from rankfold.costs import Cost, site_cost
from rankfold.sites import Form, Joint, Site, part_of

ADDED = "a bias is added, which takes up the mean error"

Choices = Mapping[str, Sequence[Option]]


def entries_of(known: Profile, choices: Choices, picked: Mapping[str, Option], multiple: int = 1) -> tuple[Entry, ...]:
    """``multiple``: of which ranks had to be, for the note of a layer that has no such rank."""
    entries = []
    sharing = _sharing(known, picked)
    for site in known.sites:
        if site.name in sharing:
            entries.append(sharing[site.name])
            continue
        option = picked[site.name]
        entry = _entry(known, site, option, choices[site.name], multiple)
        cost = known.counter.cost(site, option.form, entry.rank, entry.bias)
        notes = [entry.note, _added(site, entry)]
        if option.form is not Form.KEEP and _gains_nothing(cost, _dense(known, site)):
            notes.append("this rank was asked for, and it costs no less than the layer itself")
        entries.append(replace(entry, note="; ".join(filter(None, notes)), params=cost.params, flops=cost.flops))
    return tuple(entries)


def unpriced(known: Profile, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries, of which those of layers that the data never reach change no output: the price by which ranks were
    chosen there, that of an average layer, is none of what the plan is expected to lose."""
    return tuple(
        replace(entry, predicted_loss=0.0) if is_silent(known, known.sites[entry.site]) else entry for entry in entries
    )


def is_silent(known: Profile, site: Site) -> bool:
    """Whether the data never reach the site; without statistics of it the example tells."""
    if known.statistics is None and not known.unreached:
        return site.name not in known.counter.calls and not site.layer.lookup
    return site.name in known.unreached


def _added(site: Site, entry: Entry) -> str:
    return ADDED if entry.bias and not site.layer.has_bias else ""


def _sharing(known: Profile, picked: Mapping[str, Option]) -> dict[str, Entry]:
    """The entries of all sites that share a factor."""
    found = {}
    for group in known.sites.joint:
        option = picked.get(group.name)
        if option is None:
            continue
        entry = _entry(known, group, option, (), 1)
        candidate = known.candidate(group.name, option.form)
        assert candidate is not None  # the option was made from it
        _, rows = shares(group, candidate.decomposition.factors(option.rank))
        others = ", ".join(group.names[1:])
        for site, own in zip(group.members, rows, strict=True):
            first = site is group.members[0]
            note = (
                f"holds the factor that {others} share{'s' if len(rows) == 2 else ''}"
                if first
                else (f"shares the first factor of {group.names[0]}")
            )
            made = replace(
                entry, site=site.name, shape=site.shape, members=group.names, rows=own,
                note="; ".join(filter(None, (note, entry.note if first else "", _added(site, entry)))),
                predicted_loss=entry.predicted_loss if first else 0.0,
            )  # fmt: skip
            cost = cost_of(known, site, made)
            found[site.name] = replace(made, params=cost.params, flops=cost.flops)
    return found


def cost_of(known: Profile, site: Site, entry: Entry) -> Cost:
    """What a site costs as its entry says."""
    counter = known.counter
    if not entry.members:
        return counter.cost(site, entry.form, entry.rank, entry.bias)
    part = part_of([known.sites[name] for name in entry.members], site, entry.rows)
    size, calls = counter.element_sizes[site.name], counter.calls.get(site.name, ())
    return site_cost(part, entry.form, entry.rank, calls, counter.samples, size, entry.bias)


def _dense(known: Profile, site: Site) -> Cost:
    return known.counter.cost(site, Form.KEEP, 0, site.layer.has_bias)


def _entry(known: Profile, site: Site, option: Option, group: Sequence[Option], multiple: int) -> Entry:
    if option.form is Form.KEEP:
        note = site.note or known.unsolved.get(site.name) or _why_kept(site, known.candidates, group, multiple)
        return Entry(
            site.name, Form.KEEP, min(site.shape), site.shape, site.groups, bias=site.layer.has_bias, note=note
        )
    candidate = known.candidate(site.name, option.form)
    assert candidate is not None  # the option was made from it
    notes = [candidate.note]
    named = site.names[0] if isinstance(site, Joint) else site.name
    sampled = None if known.statistics is None else known.statistics.sites.get(named)
    few = candidate.few or (sampled is not None and sampled.moments.count - 1 < option.rank)
    if few and sampled is not None and not candidate.few:
        rows = f"{sampled.moments.count} row{'s' if sampled.moments.count != 1 else ''}"
        notes.append(f"rank {option.rank} was fitted to only {rows} of data: give more samples")
    elif not few and candidate.overfitted(option.rank):
        few = True
        notes.append(
            "few samples: on those that were held back the error is "
            f"{candidate.relative_error(option.rank):.2f}, far above that on the others"
        )
    if site.name in known.unreached:
        notes.append("never called on the calibration data: truncated without data")
    return Entry(
        site.name, option.form, option.rank, site.shape, site.groups, candidate.relative_error(option.rank),
        option.loss, bias=candidate.bias, ridge=candidate.ridge, note="; ".join(filter(None, notes)), few=few,
    )  # fmt: skip


def _why_kept(site: Site, candidates: Mapping[str, Sequence[Candidate]], group: Sequence[Option], multiple: int) -> str:
    if site.forms == {Form.KEEP}:
        return f"{site.kind}: layers of this kind are measured, and never factored"
    if not candidates.get(site.name):
        return f"this method cannot factor a {site.kind} with these settings"
    if min(site.shape) < multiple:
        return f"no rank of this layer is a multiple of {multiple}"
    keep, others = group[0], group[1:]  # no others where ranks were given for other sites alone
    if others and not any(new < old for o in others for new, old in zip(o.costs, keep.costs, strict=True)):
        return "nothing is gained by factoring: no rank that is allowed costs less than the layer itself"
    return ""


def _gains_nothing(cost: Cost, dense: Cost) -> bool:
    return cost.params >= dense.params and cost.flops >= dense.flops and cost.bytes >= dense.bytes


def after_of(known: Profile, entries: Sequence[Entry]) -> Cost:
    """What the model costs once the entries are carried out."""
    after, whole = known.cost, known.flops
    for site, entry in zip(known.sites, entries, strict=True):
        after = after - _dense(known, site) + cost_of(known, site, entry)
        calls = known.counter.calls.get(site.name, ())
        made = part_of([known.sites[n] for n in entry.members], site, entry.rows) if entry.members else site
        whole += made.layer.flops(entry.form, entry.rank, calls) - site.layer.flops(Form.KEEP, 0, calls)
    return replace(after, flops=whole // known.counter.samples)


def notes_of(known: Profile, entries: Sequence[Entry]) -> tuple[str, ...]:
    notes = list(known.notes)
    if known.unreached:
        notes.append(f"never called on the calibration data: {', '.join(known.unreached)}")
    calls = known.counter.calls
    silent = [s.name for s in known.sites if s.name not in calls and not s.layer.lookup and not s.note]
    if silent:
        notes.append(f"never called on the example input, so that their FLOPs are not counted: {', '.join(silent)}")
    return (*notes, *few_samples(entries))


def few_samples(entries: Sequence[Entry]) -> tuple[str, ...]:
    """What the notes of a plan say of sites that were fitted to too few samples, whoever found it; empty if none."""
    few = [entry.site for entry in entries if entry.few]
    if not few:
        return ()
    shown = f"{', '.join(few[:3])}{', …' if len(few) > 3 else ''}"
    return (f"too few samples for {len(few)} of {len(entries)} layers ({shown}): give more calibration samples",)
