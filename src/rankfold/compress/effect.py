"""What a change of one weight does to the model's outputs, in closed form: tr(D E H Eᵀ).

E is the change of the weight, H the second moment of one row of the layer's inputs and D the metric of the model's
outputs (``rankfold.compress.metric``). Statistics hold what is smaller: the moment of the outputs W H Wᵀ where those
are fewer, WᵀDW in place of D where the inputs are. Then the change is read as A W or as W B first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from rankfold.forms.layer import Side
from rankfold.run.progress import Progress
from rankfold.sites import Form, Site

if TYPE_CHECKING:  # methods ask for the effect of their own factors
    from rankfold.compress.measured import SiteStatistics, Statistics
    from rankfold.compress.planning.candidates import Candidate

_OUTSIDE = 1e-6  # of a change's norm: what may be lost when it is read as A W
AT = 12  # ranks of one candidate at which its effect is computed; a power law of its error between them


def effect(change: Tensor, weight: Tensor, moment: Tensor, metric: Tensor, side: Side) -> float | None:
    """tr(D E H Eᵀ) for E = ``change`` of ``weight``, (m, n) or (groups, m, n).

    ``moment`` H (…, n, n), or W H Wᵀ (…, m, m) with ``side`` "output"; ``metric`` D (…, m, m), its diagonal (…, m), or
    WᵀDW (n, n) where m > n and ``side`` is "input". None where a moment of outputs does not tell: the change leaves the
    row space of the weight. Cost: O(mn(m + n)), a least-squares problem where the change is read in other coordinates.
    """
    change, weight, metric = change.to(moment), weight.to(moment), metric.to(moment)
    m, n = change.shape[-2:]
    if side == "output":
        across = _solved(weight.mT, change.mT).mT  # E = A W
        if float((change - across @ weight).norm()) > _OUTSIDE * float(change.norm()):
            return None
        change = across
    elif metric.dim() > 1 and metric.shape[-1] == n < m:
        change = _solved(weight, change)  # E = W B
    weighted = metric @ change if metric.dim() == change.dim() else metric.unsqueeze(-1) * change
    return max(float((weighted * (change @ moment)).sum()), 0.0)


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """The least-squares solution X of A X = B, of the smallest norm where A is of a smaller rank."""
    if a.device.type == "cpu":
        return torch.linalg.lstsq(a, b, driver="gelsd").solution
    return torch.linalg.pinv(a, rtol=1e-12) @ b


def effects(
    root: nn.Module, candidates: Sequence[Candidate], statistics: Statistics, progress: Progress
) -> Mapping[tuple[str, Form], Tensor] | None:
    """For each candidate the squared change of the model's outputs at rank 0..k, (k + 1,), in the unit of the metric:
    computed at ``AT`` ranks, a power law of the candidate's own error between them.

    None where some cannot be told: the model has no gradients, or a layer in a form of one's own has no ``weight``.
    Sites that the data never reached are priced as an average one of their relative energy. Attention must be split.
    Cost: ``AT`` products of factors and as many of ``effect`` for each decomposition; no forward pass.
    """
    prices: dict[tuple[str, Form], Tensor] = {}
    silent: list[Candidate] = []
    known: dict[int, Tensor] = {}  # forms that share one decomposition share its effect
    for done, candidate in enumerate(candidates):
        site = candidate.site
        if site.name not in statistics.sites:
            silent.append(candidate)
            continue
        made = id(candidate.decomposition)
        if made not in known:
            told = _of_candidate(root, candidate, statistics.sites[site.name])
            if told is None:
                return None
            known[made] = told
        prices[site.name, candidate.form] = known[made]
        progress("pricing", done + 1, len(candidates))
    average = sum(float(price[0]) for price in prices.values()) / max(len(prices), 1)
    return prices | {(c.site.name, c.form): c.relative_errors.square() * average for c in silent}


def _of_candidate(root: nn.Module, candidate: Candidate, known: SiteStatistics) -> Tensor | None:
    if known.metric is None:
        return None
    site, errors = candidate.site, candidate.relative_errors.numpy()
    matrix = site.layer.geometry(Form.FACTORED).matrix
    old, moment = site.weight(root).detach().double(), _moment(site, known, site.bias(root))
    points = []
    for rank in spread_ranks(errors, candidate.ranks, AT):
        new = product(root, candidate, rank)
        if new is None:
            return None
        lost = effect(matrix(old - new), matrix(old), moment, known.metric, site.layer.side)
        if lost is None:
            return None
        points.append((float(errors[rank]), lost))
    return torch.from_numpy(between(errors, points))


def _moment(site: Site, known: SiteStatistics, bias: Tensor | None) -> Tensor:
    """Second moment of a row, about the mean where a BatchNorm after the layer makes up for it; no new bias does."""
    moments = known.moments
    about = moments.covariance_sum / max(moments.count, 1)
    if known.absorber is not None or not moments.count:
        return about
    mean = moments.mean
    if site.layer.side == "output" and bias is not None:
        mean = mean - bias.detach().to(mean).reshape(mean.shape)
    return about + mean.unsqueeze(-1) * mean.unsqueeze(-2)


@torch.no_grad()
def product(root: nn.Module, candidate: Candidate, rank: int) -> Tensor | None:
    """The weight that the layer of this rank stands for, shaped like the original's, float64; None where the layer of
    a form has no ``weight``."""
    site = candidate.site
    form = candidate.form.decomposed
    form = form if form.offered(site.layer) and candidate.form.shares else candidate.form
    made = site.layer.skeleton(root.get_submodule(site.name), form, rank, bias=False).double()
    site.layer.write_(made, form, candidate.decomposition.factors(rank))
    weight = getattr(made, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    return weight.clone().detach()  # a factored weight is multiplied out here


def spread_ranks(errors: np.ndarray, ranks: Sequence[int], count: int, small: float = 0.02) -> list[int]:
    """``count`` of the ranks, spread over the logarithm of their error down to ``small``; those without error are left
    out."""
    worth = [rank for rank in ranks if errors[rank] > 1e-9]
    if len(worth) <= count:
        return worth
    logs = np.log([errors[rank] for rank in worth])
    targets = np.linspace(logs[0], max(logs[-1], np.log(small)), count)
    return sorted({worth[int(np.abs(logs - target).argmin())] for target in targets})


def between(errors: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Prices at every error (k + 1,) from known (error, price) points: a power law between neighbours.

    Outside the points the price goes with the square of the error, as it does for small errors of a smooth loss.
    """
    floor = 1e-12
    if not points:
        return np.zeros_like(errors)
    known = sorted((np.log(error), np.log(max(value, floor))) for error, value in points)
    x = np.array([k for k, _ in known])
    y = np.maximum.accumulate([v for _, v in known])
    logs = np.log(np.maximum(errors, 1e-300))
    inside = np.interp(logs, x, y)
    outside = np.where(
        logs < x[0], y[0] + 2 * (logs - x[0]), np.where(logs > x[-1], y[-1] + 2 * (logs - x[-1]), inside)
    )
    return np.where(errors > 0, np.exp(outside), 0.0)
