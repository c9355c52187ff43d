"""Whether a plan fits a model: everything is checked before the first change."""

from __future__ import annotations

from dataclasses import replace

from rankfold.compress.planning.plan import Plan
from rankfold.sites import Form, SiteList, part_of


class ApplyError(ValueError):
    """A plan cannot be carried out on this model; names the site, what was asked and the remedy.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> plan = rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=torch.randn(1, 8))
        >>> entry = rf.Entry("nowhere", rf.Form.FACTORED, 2, (8, 8))
        >>> try:
        ...     rf.apply_(net, plan.with_entries((entry,)))
        ... except rf.ApplyError as error:
        ...     print("nowhere" in str(error))
        True
    """


def check_fits(plan: Plan, here: SiteList) -> None:
    seen: set[str] = set()
    _check_members(plan, here)
    here = as_planned(here, plan)
    for entry in plan.entries:
        try:
            site = here[entry.site]
        except KeyError as error:
            raise ApplyError(
                f"the plan names {entry.site!r}, which this model does not have: {error.args[0]}"
            ) from None
        if site.name in seen:
            raise ApplyError(f"{site.title}: the plan has two entries for it: remove one of them")
        seen.add(site.name)
        shape = entry.shape[::-1] if site.layer.lookup and entry.form is Form.KEEP else entry.shape
        if site.shape not in (entry.shape, shape) or entry.groups != site.groups:  # earlier versions read rows × width
            was = f"{entry.shape[0]}×{entry.shape[1]}" + (f", {entry.groups} groups" if entry.groups != 1 else "")
            raise ApplyError(f"{site.title}: the plan was made for a layer of {was}: make a new plan for this model")
        if not site.takes(entry.form):
            possible = ", ".join(sorted(site.forms))
            raise ApplyError(
                (
                    f"{site.title}: the layer cannot take the form {entry.form}; possible forms are {possible}. "
                    f"{site.note}"
                ).strip()
            )
        if entry.form is not Form.KEEP and not entry.form.least <= entry.rank <= site.max_rank(entry.form):
            allowed = f"{entry.form.least} to {site.max_rank(entry.form)}"
            raise ApplyError(
                f"{site.title}: rank {entry.rank} was asked for, and ranks from {allowed} are possible in the form "
                f"{entry.form}"
            )

        if entry.form is not Form.KEEP and entry.bias and not (site.layer.has_bias or site.layer.takes_bias):
            raise ApplyError(
                f'{site.title}: the layer has no place for a bias: set "bias" to false in its entry of the plan'
            )
        if entry.form is not Form.KEEP and site.layer.has_bias and not entry.bias:
            raise ApplyError(
                f'{site.title}: the layer has a bias, which its entry of the plan would drop: set "bias" to true there'
            )


def _check_members(plan: Plan, here: SiteList) -> None:
    """``ApplyError`` for layers that share a factor, whose entries do not agree about it."""
    entries = {entry.site: entry for entry in plan.entries}
    for entry in plan.entries:
        if not entry.members:
            if (
                entry.form is Form.SHARED
                and entry.site in {s.name for s in here}
                and not here[entry.site].layer.experts
            ):
                raise ApplyError(
                    f"{entry.site}: only groups of layers take the form shared: name the members of the group in the "
                    "plan's entry"
                )
            continue
        group = [entries.get(name) for name in entry.members]
        agreed = all(
            e is not None and (e.form, e.rank, e.members) == (Form.SHARED, entry.rank, entry.members) for e in group
        )
        rows = sum(e.rows for e in group if e is not None)
        if not agreed or entry.site not in entry.members or rows != entry.rank:
            raise ApplyError(
                f"{entry.site}: it shares a factor with "
                f"{', '.join(n for n in entry.members if n != entry.site)}, and their entries in the plan do "
                "not agree: all need the form shared, the same members and rank, and rows that add up to the "
                "rank. Make the plan again, with a smaller budget, or with rf.Ranks for layers of their own"
            )


def as_planned(here: SiteList, plan: Plan) -> SiteList:
    """The sites, of which those that share a factor are layers that do."""
    parts = {
        entry.site: part_of([here[name] for name in entry.members], here[entry.site], entry.rows)
        for entry in plan.changed
        if entry.members
    }
    return replace(here, items=tuple(parts.get(site.name, site) for site in here))
