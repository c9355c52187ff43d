"""Narrower bottlenecks in a network: what each factored layer can become, and making it so, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.applying.apply import declare_
from rankfold.compress.applying.layer import build
from rankfold.compress.methods.method import relative
from rankfold.compress.planning.plan import Entry, Plan
from rankfold.compress.slicing.bottlenecks import Bottleneck, Bottlenecks, belongs, factor_mark
from rankfold.linalg.on_data.bottleneck import Narrowing, narrow, spread, triangle
from rankfold.sites import (
    Factors,
    Form,
    Site,
    SiteList,
    leave_fused_kernels_,
    narrow_,
    narrowable_sites,
    narrower,
    pair,
    positions,
    replace_,
    unwrap,
    weights_of,
)


class SliceError(ValueError):
    """A network cannot be sliced as asked; names the layer or the budget, and the remedy.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8))
        >>> plan = rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=torch.randn(1, 8))
        >>> try:
        ...     rf.slice_(rf.Stored(rf.apply_(net, plan), plan, {}), "params=0.3")
        ... except rf.SliceError:
        ...     print("saved without bottlenecks")
        saved without bottlenecks
    """


@dataclass(frozen=True)
class _Moved:
    """Of each output, over all groups: its mean without bias, what of that is lost, and the kept share of variance."""

    mean: Tensor
    shift: Tensor
    variances: Tensor


class Narrowed:
    """One factored layer and everything narrower that it can become; a ``Decomposition`` whose full rank is exact.

    The mean of the activations is free where the layer has a bias or a BatchNorm behind it that can carry one.
    """

    def __init__(self, module: Any, known: Bottleneck) -> None:
        self.right, self.left = (factor.double().cpu() for factor in pair(module))
        self.positions, self.known = positions(module), known
        self.free = module.bias is not None or known.norm is not None
        mean = known.mean.unsqueeze(-1)
        self.root = known.root if self.free else triangle(torch.cat([known.root, mean], -1))
        self.weights = known.weights(self.left)
        self.comparable = known.comparable

    @cached_property
    def narrowing(self) -> Narrowing:
        return narrow(self.weights, self.root, self.positions)

    @property
    def errors(self) -> Tensor:
        return self.narrowing.errors

    @property
    def levels(self) -> Tensor:
        return relative(self.errors)[:-1]

    @property
    def ranks(self) -> range:
        return range(1, len(self.errors))

    def maps(self, rank: int) -> tuple[Tensor, Tensor]:
        """(inwards (…, rank, r), outwards (…, q, q')), scaled so that both factors are alike in norm."""
        inwards, outwards = self.narrowing.maps(rank)
        right, left = inwards @ self.right, self.left @ outwards
        rows = right.norm(dim=-1)
        columns = left.unflatten(-1, (rank, self.positions)).norm(dim=(-3, -1))
        sound = (rows > 0) & (columns > 0)
        scale = torch.where(sound, columns / rows, 1.0).sqrt()
        across = scale.repeat_interleave(self.positions, -1)
        return inwards * scale.unsqueeze(-1), outwards / across.unsqueeze(-2)

    def _change(self, rank: int, weights: Tensor) -> float:
        inwards, outwards = self.narrowing.maps(rank)
        lost = self.root - outwards @ (spread(inwards, self.positions) @ self.root)
        return float((weights @ lost).square().sum())

    def loss(self, rank: int) -> float:
        """The squared change that ``errors`` bounds, of these very factors."""
        return self._change(rank, self.weights)

    def relative_error(self, rank: int) -> float:
        energy = float((self.left @ self.root).square().sum())
        return (self._change(rank, self.left) / energy) ** 0.5 if energy > 0 else 0.0

    def factors(self, rank: int) -> Factors:
        inwards, outwards = self.maps(rank)
        return Factors((inwards @ self.right, self.left @ outwards), self.moved(rank).shift)

    def moved(self, rank: int) -> _Moved:
        inwards, outwards = self.maps(rank)
        across = spread(inwards, self.positions)
        new, mean = self.left @ outwards, self.known.mean.unsqueeze(-1)
        shift = self.left @ mean - new @ (across @ mean) if self.free else torch.zeros_like(self.left[..., :1])
        before = (self.left @ self.known.root).square().sum(-1)
        after = (new @ (across @ self.known.root)).square().sum(-1)
        ratio = torch.where(before > 0, after / before, 1.0)
        return _Moved((self.left @ mean).flatten(), shift.flatten(), ratio.flatten())

    def narrowed(self, rank: int) -> Bottleneck:
        """The bottleneck of the layer at ``rank``, on the same data."""
        inwards, outwards = self.maps(rank)
        across = spread(inwards, self.positions)
        weighting = self.known.weighting
        return replace(
            self.known,
            root=triangle(across @ self.known.root),
            mean=(across @ self.known.mean.unsqueeze(-1)).squeeze(-1),
            weighting=None if weighting is None else triangle(outwards.mT @ weighting),
        )


def slice_(model: nn.Module, plan: Plan, known: Bottlenecks, made: Plan) -> Bottlenecks:
    """Make ``model`` narrower in place, as ``made`` (by ``plan_slice``) says; returns the bottlenecks that it then has.

    Layers stay the same objects, with their hooks, dtype and device; their parameters are new ones, which optimizers
    built before do not know. The mean of what is dropped goes into the layer's bias, or into the BatchNorm behind it;
    such a BatchNorm also takes up that less varies.
    Raises ``SliceError`` before the first change.
    """
    root = unwrap(model)
    found, _ = sliceable(root, plan, known)
    ready = []
    for entry in made.entries:
        before = plan[entry.site]
        if (entry.form, entry.rank) == (before.form, before.rank):
            continue
        same = entry.form is before.form or (before.form is Form.KEEP and entry.form is Form.FACTORED)
        if entry.site not in found or not same or not 1 <= entry.rank < before.rank:
            raise SliceError(
                f"{entry.site}: {entry.form} of rank {entry.rank} cannot be cut out of {before.form} of rank "
                f"{before.rank}: make the slice again from this network"
            )
        module: Any = root.get_submodule(entry.site)
        narrowed = Narrowed(module, known.sites[entry.site])
        factors = narrowed.factors(entry.rank)
        if before.form is Form.KEEP:
            new = build(module, found[entry.site], entry)
            found[entry.site].layer.write_(new, entry.form, factors)
            tensors = weights_of(new)
        else:
            new, tensors = module, narrower(module, *factors.parts)
        if not all(bool(p.double().isfinite().all()) for p in tensors):
            raise SliceError(
                f"{found[entry.site].title}: the factors overflow {tensors[0].dtype}: convert the model to float32"
            )
        ready.append((entry.site, new, tensors, narrowed.moved(entry.rank), narrowed.narrowed(entry.rank)))
    sites = dict(known.sites)
    leave_fused_kernels_(root, [name for name, *_ in ready])
    for name, new, tensors, moved, bottleneck in ready:
        module = root.get_submodule(name)
        if new is module:
            narrow_(module, tensors)
        else:
            _take_bias_(module, new)
            replace_(root, {module: new})
        _settle_(new, None if bottleneck.norm is None else root.get_submodule(bottleneck.norm), moved)
        sites[name] = bottleneck
    declare_(root, SiteList(tuple(found.values())), tuple(made[name] for name, *_ in ready))
    return replace(known, sites=sites, mark=factor_mark(root))


@torch.no_grad()
def _take_bias_(old: Any, new: Any) -> None:
    if old.bias is not None:
        new.bias.copy_(old.bias)


@torch.no_grad()
def _settle_(module: Any, norm: nn.Module | None, moved: _Moved) -> None:
    """Carry the mean of what was dropped; and let the BatchNorm behind see the layer as it saw it before.

    Its running mean stays as many standard deviations from the layer's mean: ``reestimate_`` without data, for what
    this layer itself has lost.
    """
    bias = 0.0 if module.bias is None else module.bias.double().cpu()
    before = moved.mean + bias
    after = before - moved.shift
    if module.bias is not None:
        module.bias.add_(moved.shift.to(module.bias))
        after = before
    if norm is not None:
        mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        ratio = moved.variances
        mean.copy_(after + (mean.double().cpu() - before) * ratio.sqrt())
        variance.mul_(ratio.to(variance))


def sliceable(root: nn.Module, plan: Plan, known: Bottlenecks) -> tuple[dict[str, Site], dict[str, list[str]]]:
    """The sites of ``plan`` with a bottleneck that is known, and changed ones without one, by reason."""
    if not belongs(known.mark, root):
        raise SliceError(
            "these bottlenecks were measured on other weights: measure them again, rankfold.bottlenecks(model, data)"
        )
    here, tensors = {site.name: site for site in narrowable_sites(root)}, root.state_dict().keys()
    found: dict[str, Site] = {}
    reasons: dict[str, list[str]] = {}
    for entry in plan.entries:
        if entry.form is Form.KEEP:
            if entry.site in here and entry.site in known.sites:
                _check_rank(root, entry, known.sites[entry.site])
                found[entry.site] = here[entry.site]
        elif entry.form in (Form.TUCKER, Form.CP):
            reasons.setdefault(f"the ranks of {entry.form} depend on one another", []).append(entry.site)
        elif entry.form is Form.DENSE:
            reasons.setdefault("multiplied out, so that there is no bottleneck", []).append(entry.site)
        elif entry.site not in here and entry.form is Form.SHARED:
            reasons.setdefault("layers that share a factor keep their rank", []).append(entry.site)
        elif entry.site not in here and f"{entry.site}.{entry.form.parameter}" in tensors:
            reasons.setdefault("embeddings, experts and what is stored as whole numbers keep their rank", []).append(
                entry.site
            )
        elif entry.site not in here:
            raise SliceError(f"{entry.site}: it is {entry.form} in the plan and not in the model: apply the plan first")
        elif entry.site not in known.sites:
            reasons.setdefault("never called on the calibration data", []).append(entry.site)
        else:
            _check_rank(root, entry, known.sites[entry.site])
            found[entry.site] = here[entry.site]
    if not found:
        raise SliceError("no layer of this network can be sliced: " + (listed(reasons) or "none was factored"))
    return found, reasons


def _check_rank(root: nn.Module, entry: Entry, known: Bottleneck) -> None:
    module: Any = root.get_submodule(entry.site)
    right, left = pair(module)
    if right.shape[-2] != entry.rank:
        raise SliceError(
            f"{entry.site}: it has rank {entry.rank} in the plan and {right.shape[-2]} in the model: give the plan "
            "that the model was made by"
        )
    outputs = known.outputs is None or known.outputs.shape[-1] == left.shape[-2]
    weighting = known.weighting is None or known.weighting.shape == known.root.shape
    if known.root.shape != (*left.shape[:-2], left.shape[-1], left.shape[-1]) or not outputs or not weighting:
        raise SliceError(
            f"{entry.site}: its bottleneck was measured on another network, with shape {tuple(known.root.shape)} "
            f"for rank {entry.rank}: measure again (rankfold.bottlenecks)"
        )


def listed(reasons: Mapping[str, Sequence[str]]) -> str:
    """``a, b (why); c (why else)``."""
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in reasons.items())
