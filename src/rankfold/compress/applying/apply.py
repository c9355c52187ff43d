"""Carry a plan out on a model: every changed site gets its new layer, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from rankfold.compress.applying.check import as_planned, check_fits
from rankfold.compress.applying.layer import build, filled, place_
from rankfold.compress.applying.sources import source_of
from rankfold.compress.methods.method import Method
from rankfold.compress.planning.fitted import Fitted
from rankfold.compress.planning.plan import Entry, Plan, check_fingerprint
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress, showing
from rankfold.sites import (
    Form,
    SiteList,
    leave_fused_kernels_,
    opened,
    pretrained_parts,
    replace_,
    settle_,
    sites,
    unwrap,
)
from rankfold.sites.earlier import warn_of_replaced

if TYPE_CHECKING:
    from rankfold.compress.planning.profile import Profile


@showing
@ordinarily
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
    check_fits(plan, here)
    source = source_of(root, plan, here, profile, method)
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
    place_(root, ready)
    declare_(root, here, changed)
    warn_of_replaced(before, root, "apply_")
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


def shape_(model: nn.Module, plan: Plan) -> nn.Module:
    """Give ``model`` the layers of ``plan``, not filled: what a saved state dict is loaded into, or what is timed.

    ``ApplyError`` if the plan does not fit this architecture; the weights do not matter.
    """
    root = unwrap(model)
    here = sites(root)
    check_fits(plan, here)
    here = as_planned(here, plan)
    prepare_(root, plan.changed)
    made: dict[str, nn.Module] = {}
    for entry in first_to_last(plan):
        made[entry.site] = build(root.get_submodule(entry.site), here[entry.site], entry, made)
    replace_(root, {root.get_submodule(name): new for name, new in made.items()})
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
