"""Sequential projection: each layer is fitted to the original network, given what the compressed one feeds it.

"Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 3.1 with X̃ ≠ X, layer after layer: a
layer makes good, as far as it can, what those before it have lost.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.methods.method import Solution
from rankfold.compress.methods.project import DAMPING, Project
from rankfold.compress.methods.refit import Refit, multiplied, refit
from rankfold.sites import Factors, Form, Site


@dataclass(frozen=True)
class Sequential(Project):
    """Ranks as by ``Project``; in every further round from the errors that the fit before has met.

    ``rounds``: fits of all layers; the best by the divergence of the network's outputs on held-out samples is kept.
    ``kept``: layers that stay dense are fitted anew too, at no cost in size. ``one_shot``: factors that were not fitted
    layer after layer are kept where they are better on held-out samples.
    """

    damping: float = DAMPING
    rounds: int = 3
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
        return projected(refit(site, weight, known, metric), form, rank, bias, self.damping, self.forms)


def projected(
    full: Refit, form: Form, rank: int, bias: Tensor | None, damping: float, forms: frozenset[Form]
) -> Solution:
    """The refitted matrix at ``rank`` in ``form``, and the prices of all ranks in every form of ``forms``."""
    site = full.site
    offered = forms & site.forms
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
    factors = Factors(parts, full.shift(matrix, bias))
    return Solution(factors, full.error(matrix), losses, certificate, full.note)
