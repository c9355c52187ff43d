"""A factor that several layers share, seen from their statistics: the group's own, and what each layer gets of a pair.

Of layers with one input x the error is Σ_i tr[D_i (W_i − Z_i) H (W_i − Z_i)ᵀ], that of the matrices below one another
in the metric of the blocks D_i: the closed form of one layer holds as it is, and of the metric only Σ_i W_iᵀ D_i W_i is
needed where there are more outputs than inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rankfold.compress.measured import SiteStatistics, Statistics
from rankfold.compress.planning.fitted import Fitted
from rankfold.linalg import pivoted
from rankfold.sites import Factors, Joint, Site


def statistics_of(statistics: Statistics | None, site: Site, weight: Callable[[], Tensor]) -> SiteStatistics | None:
    """Of a site, or of a group from those of its members; None where they are not known. ``weight``: of the site."""
    if statistics is None or not isinstance(site, Joint):
        return None if statistics is None else statistics.sites.get(site.name)
    known = [statistics.sites.get(member.name) for member in site.members]
    every = [each for each in known if each is not None]
    if len(every) < len(known):
        return None
    first, n = every[0], site.shape[1]
    if first.moments.size != n or (first.side or site.members[0].layer.side) != "input":
        return None  # they were taken for another purpose
    free = all(each.free and each.absorber is None for each in every)
    weights = weight().split(list(site.layer.members))
    metric = _metric([each.metric for each in every], weights)
    return replace(first, absorber=None, metric=metric, coarse=None, free=free, side="input")


def _metric(metrics: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """Σ WᵀDW (n, n) of metrics D (m, m), diagonals (m,) or WᵀDW themselves; their blocks where outputs are few."""
    given = [metric.double() for metric in metrics if metric is not None]
    if len(given) < len(metrics):
        return None
    outputs, n = sum(len(weight) for weight in weights), weights[0].shape[1]
    if outputs <= n:
        return torch.block_diag(*(each.diag() if each.dim() == 1 else each for each in given))
    return torch.stack([_inside(d, w.to(d)) for d, w in zip(given, weights, strict=True)]).sum(0)


def _inside(metric: Tensor, weight: Tensor) -> Tensor:
    if metric.dim() == 1:
        return weight.mT @ (metric.unsqueeze(1) * weight)
    return weight.mT @ metric @ weight if len(metric) == len(weight) else metric


def shares(joint: Joint, factors: Factors) -> tuple[list[Fitted], list[int]]:
    """What each layer of a group gets of the pair for all of them, and how many of the stored rows are its own.

    The r rows of the product that are stored are the right factor of all; the left one of a layer is its part of
    [I; C] in the order of the outputs.
    """
    right, left = factors.parts
    found, sizes, rank = pivoted(left, right), list(joint.layer.members), right.shape[0]
    whole = torch.cat([torch.eye(rank, dtype=found.rest.dtype, device=found.rest.device), found.rest])[found.order]
    shifts = [None] * len(sizes) if factors.shift is None else factors.shift.split(sizes)
    fitted = [
        Fitted(Factors((found.rows, part), shift)) for part, shift in zip(whole.split(sizes), shifts, strict=True)
    ]
    return fitted, [int((part < rank).sum()) for part in found.order.split(sizes)]
