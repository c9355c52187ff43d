"""Sequential projection: each layer is fitted to the original network, given what the compressed one feeds it.

"Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 3.1 with X̃ ≠ X, layer after layer: a
layer makes good, as far as it can, what those before it have lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.methods.method import Solution
from rankfold.compress.methods.project import DAMPING, Project
from rankfold.compress.methods.refit import Refit, decomposed, multiplied, refit
from rankfold.sites import Factors, Form, Site


@dataclass(frozen=True)
class Sequential(Project):
    """Fits layer after layer: each corrects what the compressed layers before it have lost. Ranks as by ``project``.

    Args:
        damping: of the second moments, as a part of their mean.
        ridge: weight of the anchor at the layer's own weight.
        name: of the method.
        forms: that it makes.
        needs_data: True.
        rounds: fits of all layers, in every further one with ranks from the errors that the fit before has met; the
            best by the divergence of the network's outputs on held-out samples is kept.
        kept: layers that stay dense are fitted anew too, at no cost in size.
        rows: of each layer that are used; 0 for all.
        one_shot: factors that were not fitted layer after layer are kept where they are better on held-out samples, in
            each layer and in all together.

    Cost: for each round, one pass of each block of the network, and one decomposition for each site.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(128, 16)
        >>> rf.plan(net, "params=0.7", rf.Sequential(), x).method
        'sequential'
    """

    damping: float = DAMPING
    rounds: int = 1
    kept: bool = True
    rows: int = 0
    name: str = "sequential"
    forms: frozenset[Form] = frozenset({Form.FACTORED, Form.SPATIAL})
    needs_data: bool = True
    one_shot: bool = True

    def solve(
        self, site: Site, form: Form, rank: int, weight: Tensor, bias: Tensor | None, known: Pairs,
        metric: Tensor | None,
    ) -> Solution:  # fmt: skip
        full = refit(site, weight, known, metric)
        forms = self.forms if self.rounds > 1 else frozenset({form})
        made = projected(full, form, rank, bias, self.damping, forms)
        return weighed(full, made, form, rank, bias, known, self.damping) if self.one_shot else made


def weighed(
    full: Refit, made: Solution, form: Form, rank: int, bias: Tensor | None, known: Pairs, damping: float
) -> Solution:
    """``made``, or what the original alone gives from the same samples, whichever errs less on others: in place of a
    dense layer the layer itself."""
    if known.judged is None:
        return made
    site, weight = full.site, full.weight
    if form is Form.DENSE:
        alone = Factors((full.anchor,))
    elif known.before is None:
        return made
    else:
        given = replace(full.statistics, moments=known.before, metric=full.judge.metric)
        alone = decomposed(site, form, weight, full.anchor, given, damping).factors(rank)
    mine, other = multiplied(site, form, weight, made.factors.parts), multiplied(site, form, weight, alone.parts)
    made = replace(made, alone=None if form is Form.DENSE else alone)
    if full.excess(mine, made.factors.shift, bias) < full.excess(other, alone.shift, bias):
        return made
    free = None
    if full.statistics.free:
        free = torch.zeros_like(full.moments.target_mean).flatten()
        for part in (alone.shift, bias):
            free = free if part is None else free + part.double()
    return replace(
        made, factors=alone, error=full.error(other, free), certificate="one shot errs less on held-out samples"
    )


def projected(
    full: Refit, form: Form, rank: int, bias: Tensor | None, damping: float, forms: frozenset[Form]
) -> Solution:
    """The refitted matrix at ``rank`` in ``form``, and the prices of all ranks in every form of ``forms``."""
    site = full.site
    offered = forms & {each.decomposed for each in site.forms}
    if site.layer.side != "input":
        offered = offered - {Form.SPATIAL}
    tried = {each: full.decomposition(each, damping) for each in sorted(offered)}
    losses = {each: found.errors.square() for each, found in tried.items() if found.comparable}
    parts = (full.matrix,) if form is Form.DENSE else tried[form].factors(rank).parts
    return solution(full, form, parts, bias, losses, f"ridge {full.ridge.value:.2g}")


def solution(
    full: Refit,
    form: Form,
    parts: tuple[Tensor, ...],
    bias: Tensor | None,
    losses: dict[Form, Tensor],
    certificate: str,
) -> Solution:
    """Factors with their free bias, and how far they are from the target."""
    matrix = multiplied(full.site, form, full.weight, parts)
    factors = Factors(parts, full.shift(matrix, bias) if full.statistics.free else None)
    return Solution(factors, full.error(matrix), losses, certificate, full.note, few=bool(full.note))
