"""The nuclear- and max-norm program as a method: low rank with no output larger than the original's largest.

"Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 4.4 and corollary 4.7, by ADMM with a
certified duality gap, on a sample of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs
from rankfold.compress.methods.method import Solution, balanced
from rankfold.compress.methods.project import DAMPING, Project, weighing
from rankfold.compress.methods.refit import refit
from rankfold.compress.methods.sampled_rows import layer_rows
from rankfold.compress.methods.sequential import projected, solution
from rankfold.linalg import project
from rankfold.linalg.programs.maxnorm import nuclear_max_norm
from rankfold.linalg.programs.nuclear import TiedError, nuclear_radius
from rankfold.sites import Form, Site


@dataclass(frozen=True)
class MaxNorm(Project):
    """Fits layer after layer like ``Sequential``, with the largest entry of the output bounded.

    A solution of higher rank than planned is cut to it, which its certificate says.

    Args:
        damping: of the second moments, as a part of their mean.
        ridge: weight of the anchor at the layer's own weight.
        name: of the method.
        forms: that it makes.
        needs_data: True.
        rounds: fits of all layers.
        bound: α as a part of the largest target, both less their mean.
        tolerance: of the relative duality gap.
        iterations: at most.
        kept: layers that stay dense are fitted anew too.
        rows: of each layer that are used.

    Source: "Theoretical Guarantees for Low-Rank Compression of Deep Neural Networks", theorem 1.

    Example:
        >>> rf.MaxNorm(bound=0.5).name
        'maxnorm'
    """

    damping: float = DAMPING
    rounds: int = 1
    bound: float = 1.0
    tolerance: float = 1e-4
    iterations: int = 1000
    kept: bool = False
    rows: int = 4096
    name: str = "maxnorm"
    forms: frozenset[Form] = frozenset({Form.FACTORED})
    needs_data: bool = True

    def solve(
        self, site: Site, form: Form, rank: int, weight: Tensor, bias: Tensor | None, known: Pairs,
        metric: Tensor | None,
    ) -> Solution:  # fmt: skip
        full = refit(site, weight, known, metric)
        found = layer_rows(known)
        if form is Form.DENSE or found is None:
            made = projected(full, form, rank, bias, self.damping, self.forms)
            return made if form is Form.DENSE else made.with_note("there are no single rows here: projected instead")
        x, t = found[0].double(), found[1].double()
        x, t = x - full.moments.inputs.mean, t - full.moments.target_mean
        bound = self.bound * float(t.abs().max())
        whole = x.mT @ x
        inside = project(full.matrix, inputs=whole)
        try:
            radius = nuclear_radius(inside.singular_values, rank)
            if not bound > 0:
                raise TiedError("its outputs do not vary on these samples")
        except TiedError as tied:  # a constant or zero layer, for instance
            return projected(full, form, rank, bias, self.damping, self.forms).with_note(f"{tied}: projected instead")
        fit = nuclear_max_norm(
            x, t, radius=radius, bound=bound,
            iterations=self.iterations, tolerance=self.tolerance,
        )  # fmt: skip
        # the rows are a sample; the directions that are kept are those that count on all the data
        by = weighing(full.metric_of(fit.weight), fit.weight, self.damping)
        left, right = project(fit.weight, inputs=full.statistics.covariance, **by).factors(rank)
        certificate = fit.message if fit.rank <= rank else f"{fit.message}; rank {fit.rank} cut to {rank}"
        return solution(full, form, balanced(right, left), bias, {}, certificate)
