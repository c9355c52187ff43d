"""Carry a plan out on a model: every changed site gets its new layer, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Decomposition, Method, fits_layers
from rankfold.compress.methods.rounding import decomposed
from rankfold.compress.planning.candidates import with_ridge
from rankfold.compress.planning.fitted import Fitted
from rankfold.compress.planning.lawful import ApplyError, check_alike, check_counted, check_members, written_
from rankfold.compress.planning.plan import Entry, Plan, check_fingerprint
from rankfold.compress.shared import shares, statistics_of
from rankfold.layers.shared import join_
from rankfold.run.progress import Progress, showing
from rankfold.sites import (
    Factors,
    Form,
    Joint,
    Site,
    SiteList,
    carry_hooks_,
    joint,
    leave_fused_kernels_,
    opened,
    part_of,
    pretrained_parts,
    replace_,
    settle_,
    sites,
    unwrap,
)
from rankfold.train.earlier import warn_of_earlier_optimizers

if TYPE_CHECKING:
    from rankfold.compress.planning.profile import Profile


@showing
def apply_(
    model: nn.Module,
    plan: Plan,
    profile: Profile | None = None,
    *,
    method: Method | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Replace every changed site of ``model`` by its factored layer, in place.

    Layers keep dtype, device, mode, hooks and ``requires_grad``. Optimizers that were built before do not know the new
    parameters: a living one that holds a weight which has left the model is named in a ``UserWarning``.

    Args:
        model: the one that the plan was made for, or a copy of it.
        plan: from ``rankfold.plan``, a profile, or a file.
        profile: the one that the plan was made from; then nothing is searched or decomposed again.
        method: the one that the plan was made with, where it is your own and not registered.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        ``model``.

    Raises:
        ValueError: the plan was made for another model.
        ApplyError: a site is missing, a form or rank is impossible there, or factors overflow half precision. All of it
            is checked before the first change.

    Cost: with the profile, the factors; without it, one decomposition for each changed site. Memory: the new layers,
    all of which are made before the first takes its place.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 16)), torch.randn(64, 16)
        >>> known = rf.profile(net, x)
        >>> small = rf.apply_(copy.deepcopy(net), known.plan("params=0.7"), known)
        >>> sum(p.numel() for p in small.parameters()) <= 0.7 * sum(p.numel() for p in net.parameters())
        True
    """
    root = unwrap(model)
    check_fingerprint(plan, root)
    here = profile.sites if profile is not None and profile.fingerprint == plan.fingerprint else sites(root)
    _check(plan, here)
    source = _source(root, plan, here, profile, method)
    changed = first_to_last(plan)
    here = as_planned(here, plan)
    ready: list[tuple[str, nn.Module, Fitted]] = []
    made: dict[str, nn.Module] = {}
    with opened(root):
        for done, entry in enumerate(changed):
            site = here[entry.site]
            fitted = source(site, entry)
            made[site.name] = filled(root, site, entry, fitted, made)
            ready.append((site.name, made[site.name], fitted))
            if progress is not None:
                progress(site.name, done + 1, len(changed))
    before = dict(root.named_parameters())
    prepare_(root, changed)
    for name, new, fitted in ready:
        place_(root, name, new, fitted)
    declare_(root, here, changed)
    staying = {id(parameter) for parameter in root.parameters()}
    gone = {name: parameter for name, parameter in before.items() if id(parameter) not in staying}
    del before
    warn_of_earlier_optimizers(gone, "which is no longer in the model: factors have taken its place", "apply_")
    return model


def declare_(root: nn.Module, here: SiteList, changed: tuple[Entry, ...]) -> None:
    """Tell the models of transformers in ``root`` what became of their layers: whoever saves them saves that."""
    if next(pretrained_parts(root), None) is None:
        return
    from rankfold import hub  # imports transformers, which is there already

    decisions = [
        hub.Decision(
            entry.site,
            here[entry.site].parameter,
            entry.form,
            entry.rank,
            entry.bias,
            alike=entry.form is Form.DENSE
            and here[entry.site].layer.has_bias == entry.bias
            and not getattr(here[entry.site].layer, "stored_transposed", False),
            first=entry.members[0] if entry.members else "",
            rows=entry.rows,
        )
        for entry in changed
    ]
    hub.declare_(root, decisions)


def place_(root: nn.Module, name: str, new: nn.Module, fitted: Fitted) -> None:
    """Put a filled layer into its place; where it has no bias, a BatchNorm right behind takes up the shift.

    That BatchNorm subtracts its running mean: moving the mean is the bias, for free.
    """
    shift = fitted.factors.shift
    if _bias(new) is None and fitted.absorber is not None and shift is not None:
        with torch.no_grad():
            mean = root.get_submodule(fitted.absorber).get_buffer("running_mean")
            mean.sub_(shift.to(mean))
    replace_(root, root.get_submodule(name), new)


def shape_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give ``model`` the layers of ``plan``, not filled: what a saved state dict is loaded into, or what is timed.

    ``ApplyError`` if the plan does not fit this architecture; the weights do not matter.
    """
    root = unwrap(model)
    here = sites(root)
    _check(plan, here)
    here = as_planned(here, plan)
    prepare_(root, plan.changed)
    made: dict[str, nn.Module] = {}
    for entry in first_to_last(plan):
        old = root.get_submodule(entry.site)
        made[entry.site] = build(old, here[entry.site], entry, made)
        replace_(root, old, made[entry.site])
    declare_(root, here, plan.changed)
    return model


def prepare_(root: nn.Module, changed: tuple[Entry, ...]) -> None:
    """Take apart the attention modules that hold changed sites, and leave the fused kernels around them."""
    names = [entry.site for entry in changed]
    settle_(root, names)
    leave_fused_kernels_(root, names)


def first_to_last(plan: Plan) -> tuple[Entry, ...]:
    """The changed entries, of a group that shares a factor the one first that holds it."""
    return tuple(sorted(plan.changed, key=lambda entry: bool(entry.members) and entry.site != entry.members[0]))


def as_planned(here: SiteList, plan: Plan) -> SiteList:
    """The sites, of which those that share a factor are layers that do."""
    parts = {
        entry.site: part_of([here[name] for name in entry.members], here[entry.site], entry.rows)
        for entry in plan.changed
        if entry.members
    }
    return replace(here, items=tuple(parts.get(site.name, site) for site in here))


def _check(plan: Plan, here: SiteList) -> None:
    seen: set[str] = set()
    check_members(plan, here)
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


def _source(
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
    if (entry.form is Form.DENSE) != (len(parts) == 1):
        return None
    return entry.rank if entry.form is Form.DENSE else parts[0].shape[-2]


def filled(
    root: nn.Module, site: Site, entry: Entry, fitted: Fitted, made: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    """The new layer of a site with its factors; nothing in ``root`` changes; the model must be ``opened``. ``made``:
    new layers by site, among them the one whose factor this one shares.

    ``ApplyError`` if they overflow half precision.
    """
    old: Any = root.get_submodule(site.name)
    new = build(old, site, entry, made or {})
    written_(site, entry.form, entry.rank, new, fitted.factors)
    _fill_bias_(old, new, fitted.factors)
    if not all(bool(x.double().isfinite().all()) for x in (*new.parameters(), *new.buffers())):
        kind = site.layer.weight(old).dtype
        raise ApplyError(f"{site.title}: the factors overflow {kind}: convert the model to float32 or bfloat16 first")
    check_alike(old, new, site, entry.form, entry.rank, fitted.factors)
    return new


def build(old: Any, site: Site, entry: Entry, made: Mapping[str, nn.Module] = MappingProxyType({})) -> nn.Module:
    """The empty new layer for ``entry``, with the old one's mode, hooks and ``requires_grad``."""
    new = site.layer.skeleton(old, entry.form, entry.rank, entry.bias)
    check_counted(new, site, entry.form, entry.rank, entry.bias)
    if entry.members:
        join_(new, made.get(entry.members[0], new), entry.members.index(entry.site), len(entry.members))
    new.train(old.training)
    carry_hooks_(old, new)
    new.requires_grad_(bool(site.layer.weight(old).requires_grad))
    bias, before = _bias(new), _bias(old)
    if bias is not None and before is not None:
        bias.requires_grad_(bool(before.requires_grad))
    return new


def _bias(layer: nn.Module) -> Any:
    return getattr(layer, "bias", None)


@torch.no_grad()
def _fill_bias_(old: Any, new: Any, factors: Factors) -> None:
    bias: Tensor | None = _bias(new)
    if bias is not None:
        # in float64: float8 cannot be added
        before: Tensor | None = _bias(old)
        start = torch.zeros_like(bias, dtype=torch.float64) if before is None else before.double()
        bias.copy_(start if factors.shift is None else start + factors.shift.to(start))
