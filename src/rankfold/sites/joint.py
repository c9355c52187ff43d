"""Which sites read one tensor, and could share what they make of it first: found in a traced forward, never by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from rankfold.forms import Form, Share
from rankfold.sites.kinds.linear import LinearLayer
from rankfold.sites.site import Joint, Site, SiteList


def joint(members: Sequence[Site]) -> Joint:
    """The group of these sites, all of one input."""
    sizes, n = tuple(site.shape[0] for site in members), members[0].shape[1]
    layer = LinearLayer("Linear", (sum(sizes), n), members[0].layer.has_bias, whole=True, members=sizes)
    return Joint(
        "+".join(site.name for site in members), members[0].parameter, layer,
        frozenset({Form.KEEP, Form.SHARED}), members=tuple(members),
    )  # fmt: skip


def part_of(members: Sequence[Site], site: Site, rows: int) -> Site:
    """One ``site`` of a group as a layer that shares the group's factor, which gives ``rows`` of its outputs."""
    share = Share(sum(each.shape[0] for each in members), rows, site.name == members[0].name)
    layer: Any = site.layer
    return replace(site, layer=replace(layer, share=share), forms=frozenset({Form.KEEP, Form.SHARED}))


def with_joint(
    root: nn.Module, found: SiteList, read: Mapping[str, Sequence[Hashable]]
) -> tuple[SiteList, tuple[str, ...]]:
    """``found`` with its groups, whose first members are observed at their inputs; and what was left out, with reasons.

    ``read``: what each call of a site was given, equal for one tensor (``rankfold.costs.Traced``). The model must be
    ``opened``. Joined are linear layers of one dtype and device, all with a bias or all without.
    """
    groups: dict[Any, list[Site]] = defaultdict(list)
    notes: dict[str, list[str]] = defaultdict(list)
    for site in found.reducible:
        if not isinstance(site.layer, LinearLayer) or site.layer.lookup or Form.PIVOTED not in site.layer.forms:
            continue
        calls = read.get(site.name, ())
        why = _why_not(site, calls)
        if why is not None:
            notes[why].append(site.name)
        elif calls:
            weight = site.weight(root)
            groups[calls[0], weight.dtype, weight.device, site.layer.has_bias].append(site)
    together = [joint(group) for group in groups.values() if len(group) > 1]
    first = {each.members[0].name for each in together}
    items = tuple(replace(site, layer=_at_inputs(site)) if site.name in first else site for site in found)
    return replace(found, items=items, joint=tuple(together)), tuple(
        f"{_first(names)}: no factor is shared with other layers: {why}" for why, names in notes.items()
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _at_inputs(site: Site) -> Any:
    return site.layer if site.layer.side == "input" else site.layer.wholly()


def _why_not(site: Site, calls: Sequence[Hashable]) -> str | None:
    if len(calls) > 1:
        return f"it is called {len(calls)} times"
    if site.aliases:
        return f"it has several names ({site.aliases[0]})"
    if site.tied_to:
        return f"its weight is also that of {site.tied_to[0]}"
    if site.layer.stored_transposed:
        return "its weight is stored transposed"
    return None
