"""Where the factors of a plan come from: the plan itself, its profile, or decompositions that are made now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from rankfold.compress.applying.check import ApplyError
from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Decomposition, Method, fits_layers
from rankfold.compress.methods.rounding import decomposed
from rankfold.compress.planning.candidates import with_ridge
from rankfold.compress.planning.fitted import Fitted
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.shared import shares, statistics_of
from rankfold.sites import Form, Joint, Site, SiteList, joint, opened

if TYPE_CHECKING:
    from rankfold.compress.planning.profile import Profile


def source_of(
    root: nn.Module, plan: Plan, here: SiteList, profile: Profile | None, method: Method | None
) -> Callable[[Site, Entry], Fitted]:
    """Where the factors come from: the plan's own, a profile, or decompositions made now; checked before any change."""
    if plan.factors is not None:
        factors = plan.factors
        _check_fitted(root, plan, factors, here)
        return lambda site, entry: factors[site.name]
    if profile is not None:
        return _from_profile(root, plan, here, profile)
    method = method_named(plan.method if method is None else method)
    if method.needs_data and plan.changed and plan.statistics is None:
        kind, what = (
            ("factors", "were fitted layer after layer") if fits_layers(method) else ("statistics", "need moments")
        )
        raise ApplyError(
            f"the factors of method {plan.method!r} {what}, and this plan has none: keep the file "
            f"*.{kind}.safetensors beside the plan, or make the plan again with data"
        )
    return _decomposed(root, plan, here, method)


def _from_profile(root: nn.Module, plan: Plan, here: SiteList, profile: Profile) -> Callable[[Site, Entry], Fitted]:
    if profile.fingerprint != plan.fingerprint:
        raise ApplyError(
            "the profile was made of another model than the plan: leave profile= out, or make the plan from this "
            "profile"
        )
    profile = profile.of(plan)

    known_groups: dict[tuple[str, ...], list[Fitted]] = {}

    def of(site: Site, entry: Entry) -> Fitted:
        if entry.members:
            if entry.members not in known_groups:
                group = profile.candidate("+".join(entry.members), entry.form)
                if group is None:
                    raise ApplyError(
                        f"{site.title}: the profile does not hold this group of layers: leave profile= out"
                    )
                known_groups[entry.members] = split(group.site, entry, group.decomposition)
            return known_groups[entry.members][entry.members.index(entry.site)]
        candidate = profile.candidate(entry.site, entry.form) or profile.candidate_like(entry.site, entry.form)
        if candidate is None:
            raise ApplyError(
                f"{site.title}: the profile does not hold the form {entry.form} of this layer: leave profile= out"
            )
        known = None if profile.statistics is None else profile.statistics.sites.get(site.name)
        return Fitted(candidate.decomposition.factors(entry.rank), None if known is None else known.absorber)

    _check_materialised(root, plan, here)
    return of


def _check_materialised(root: nn.Module, plan: Plan, here: SiteList) -> None:
    with opened(root):
        for entry in plan.changed:
            if here[entry.site].weight(root).is_meta:
                raise ApplyError(
                    f"{here[entry.site].title}: its weights are on the meta device, without values: load them first"
                )


def _decomposed(root: nn.Module, plan: Plan, here: SiteList, method: Method) -> Callable[[Site, Entry], Fitted]:
    made: dict[str, tuple[Decomposition, str | None]] = {}
    shared: dict[str, Fitted] = {}
    _check_materialised(root, plan, here)
    with opened(root):
        for entry in plan.changed:
            if entry.members:
                if entry.site == entry.members[0]:
                    parts = _decomposed_together(root, plan, entry, here, method)
                    shared |= dict(zip(entry.members, parts, strict=True))
                continue
            site, base = here[entry.site], entry.form.decomposed
            known = None if plan.statistics is None else plan.statistics.sites.get(site.name)
            found = None
            if base in method.forms:
                own = with_ridge(method, entry.ridge)
                try:
                    found = decomposed(own, site, entry.form, site.weight(root), known, site.bias(root))
                except ValueError as error:
                    raise ApplyError(f"{site.title}: {error}") from error
            if found is None:
                raise ApplyError(
                    f"{site.title}: method {method.name!r} does not make the form {entry.form} of this layer"
                )
            made[site.name] = found, None if known is None else known.absorber
    return lambda site, entry: (
        shared.get(site.name) or Fitted(made[site.name][0].factors(entry.rank), made[site.name][1])
    )


def _decomposed_together(root: nn.Module, plan: Plan, entry: Entry, here: SiteList, method: Method) -> list[Fitted]:
    group = joint([here[name] for name in entry.members])
    known = statistics_of(plan.statistics, group, partial(group.weight, root))
    own = with_ridge(method, entry.ridge)
    found = None if known is None else decomposed(own, group, entry.form, group.weight(root), known, group.bias(root))
    if found is None:
        raise ApplyError(
            f"{group.name}: the plan holds no statistics, from which a shared factor is made: make the plan again "
            "with data"
        )
    return split(group, entry, found)


def split(group: Site, entry: Entry, decomposition: Decomposition) -> list[Fitted]:
    """What each layer of a group gets of the factors of all."""
    assert isinstance(group, Joint)
    return shares(group, decomposition.factors(entry.rank))[0]


def _check_fitted(root: nn.Module, plan: Plan, fitted: Mapping[str, Fitted], here: SiteList) -> None:
    _check_materialised(root, plan, here)
    for entry in plan.changed:
        rank = _rank_of(fitted[entry.site], entry) if entry.site in fitted else None
        if rank != entry.rank:
            was = "kept" if rank is None else f"fitted at rank {rank}"
            raise ApplyError(
                f"{here[entry.site].title}: its entry asks for {entry.form} of rank {entry.rank}, and the fit "
                f"left it {was}: make the plan again with data and this rank (rankfold.Ranks), or use "
                "method='project', whose plans can be edited"
            )


def _rank_of(fitted: Fitted, entry: Entry) -> int | None:
    parts = fitted.factors.parts
    if (entry.form is Form.DENSE) != (len(parts) == 1) or parts[0].dim() < 2:
        return None
    return entry.rank if entry.form is Form.DENSE else parts[0].shape[-2]
