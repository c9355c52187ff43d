"""The nuclear-norm ball as a method: each layer fitted with its singular values shrunk instead of cut.

"Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", section 4.1 without its bound on single
entries, solved exactly. The radius is the one that leaves the rank that was planned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.methods.method import Solution, balanced
from rankfold.compress.methods.project import DAMPING, InMetric, Project, weighing
from rankfold.compress.methods.refit import Refit, refit
from rankfold.compress.methods.sequential import projected, solution
from rankfold.linalg import project
from rankfold.linalg.programs.nuclear import NuclearFit, TiedError, nuclear_radius, shrink_to_ball
from rankfold.sites import Form, Site


@dataclass(frozen=True)
class NuclearBall(Project):
    """Fits layer after layer like ``Sequential``, within a ball of the nuclear norm.

    Args:
        damping: of the second moments, as a part of their mean.
        ridge: weight of the anchor at the layer's own weight.
        name: of the method.
        forms: that it makes.
        needs_data: True.
        rounds: fits of all layers.
        debias: give the singular values back after the rank is found; then nothing differs from ``Sequential``.
        kept: layers that stay dense are fitted anew too.
        rows: of each layer that are used; 0 for all.

    Source: "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 2.

    Example:
        >>> rf.NuclearBall().name
        'nuclear'
    """

    damping: float = DAMPING
    rounds: int = 1
    debias: bool = False
    kept: bool = False
    rows: int = 0
    name: str = "nuclear"
    forms: frozenset[Form] = frozenset({Form.FACTORED})
    needs_data: bool = True

    def solve(
        self, site: Site, form: Form, rank: int, weight: Tensor, bias: Tensor | None, known: Pairs,
        metric: Tensor | None,
    ) -> Solution:  # fmt: skip
        full = refit(site, weight, known, metric)
        if form is Form.DENSE:
            return projected(full, form, rank, bias, self.damping, self.forms)
        try:
            fits = [_shrunk(*each, rank, self.debias) for each in _groups(full, self.damping)]
        except TiedError as tied:  # a constant or zero layer, for instance
            return projected(full, form, rank, bias, self.damping, self.forms).with_note(f"{tied}: projected instead")
        inner = min(rank, max(fit.rank for fit in fits))
        parts = balanced(
            *(torch.stack([_padded(getattr(fit, side), axis, rank) for fit in fits]) for side, axis in _SIDES)
        )
        if site.groups == 1:
            parts = parts[0][0], parts[1][0]
        ended = "given back" if self.debias else f"less {max(fit.threshold for fit in fits):.3g}"
        certificate = f"exact in the nuclear-norm ball that leaves rank {inner}: singular values {ended}"
        return solution(full, form, parts, bias, {}, certificate)


_SIDES = (("right", -2), ("left", -1))


def _groups(full: Refit, damping: float) -> list[tuple[Tensor, Tensor, InMetric]]:
    """(matrix, inputs' moment, how its errors are weighed) of each group."""
    gram, by = full.statistics.covariance, weighing(full.statistics.metric, full.matrix, damping)
    if full.matrix.dim() == 2:
        return [(full.matrix, gram, by)]
    metric = by.get("metric")  # of layers in groups no other is gathered
    parts = range(len(full.matrix))
    return [(full.matrix[g], gram[g], {"metric": None if metric is None else metric[g]}) for g in parts]


def _shrunk(matrix: Tensor, gram: Tensor, by: InMetric, rank: int, debias: bool) -> NuclearFit:
    projection = project(matrix, inputs=gram, **by)
    fit = shrink_to_ball(projection, nuclear_radius(projection.singular_values, rank))
    return fit.debias() if debias else fit


def _padded(factor: Tensor, axis: int, rank: int) -> Tensor:
    """Up to the planned rank, where tied singular values left fewer."""
    lacking = rank - factor.shape[axis]
    shape = (lacking, factor.shape[1]) if axis == -2 else (factor.shape[0], lacking)
    return torch.cat([factor, factor.new_zeros(shape)], axis) if lacking else factor
