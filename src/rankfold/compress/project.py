"""Data-driven projection: the rank-r layer whose output is nearest on the calibration data, with the bias set free.

Recovery-guarantees paper, theorem 3.1 with X̃ = X; the form without any inverse is math of output-covariance PCA:
``Z = Q_r Q_rᵀ W`` with Q_r the leading eigenvectors of the centred output covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rankfold.compress.method import Decomposition, relative
from rankfold.compress.statistics import SiteStatistics
from rankfold.compress.truncate import Truncate
from rankfold.linalg import Projection, bias_from_inputs, bias_from_outputs, project, tails
from rankfold.sites import Factors, Form, Site


@dataclass(frozen=True)
class Project:
    """Where a site has no statistics (the data never reached it) this is singular value truncation."""

    name: str = "project"
    forms: frozenset[Form] = frozenset({Form.FACTORED})
    needs_data: bool = True

    def decompose(
        self,
        site: Site,
        form: Form,
        weight: Tensor,
        statistics: SiteStatistics | None,
        bias: Tensor | None = None,
    ) -> Decomposition:
        if statistics is None:
            return Truncate().decompose(site, form, weight, None, bias)
        return Projected(site, site.layer.geometry(form).matrix(weight), statistics, bias)


class Projected:
    def __init__(self, site: Site, matrix: Tensor, statistics: SiteStatistics, bias: Tensor | None) -> None:
        self.side, self.matrix, self.statistics, self.bias = site.layer.side, matrix, statistics, bias

    @cached_property
    def projection(self) -> Projection:
        moments = self.statistics.moments
        if self.side == "output":
            return project(self.matrix, outputs=moments.covariance_sum)
        return project(self.matrix, inputs=moments.covariance_sum)

    @cached_property
    def _values(self) -> Tensor:
        """Singular values of the centred outputs; over the groups of a grouped convolution, root of summed squares."""
        values = self.projection.singular_values
        return values if values.dim() == 1 else values.square().sum(0).sqrt()

    @property
    def errors(self) -> Tensor:
        return tails(self._values)

    @property
    def levels(self) -> Tensor:
        return relative(self._values)

    @property
    def ranks(self) -> range:
        return range(1, len(self._values) + 1)

    def factors(self, rank: int) -> Factors:
        left, right = self.projection.factors(rank)
        mean = self.statistics.moments.mean
        if self.side == "input":
            shift = bias_from_inputs(self.matrix, left, right, mean)
        else:
            bias = torch.zeros_like(mean) if self.bias is None else self.bias.to(mean).reshape(mean.shape)
            shift = bias_from_outputs(left, mean, bias) - bias
        return Factors((right, left), shift.flatten())
