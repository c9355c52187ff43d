"""Singular value truncation of the weight (Eckart–Young); no data. With a rank rule: LSVT, GSVT, ISVT of LoRITa."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rankfold.compress.measured import SiteStatistics
from rankfold.compress.methods.method import relative
from rankfold.linalg import svd, tails
from rankfold.sites import Factors, Form, Site


@dataclass(frozen=True)
class Truncate:
    """``W ≈ (U_r √Σ_r)(√Σ_r V_rᵀ)``: the best rank-r weight in Frobenius norm, in balanced factors."""

    name: str = "truncate"
    forms: frozenset[Form] = frozenset({Form.FACTORED, Form.SPATIAL, Form.DENSE})
    needs_data: bool = False

    def decompose(
        self,
        site: Site,
        form: Form,
        weight: Tensor,
        statistics: SiteStatistics | None = None,
        bias: Tensor | None = None,
    ) -> Truncated:
        return Truncated(form, site.layer.geometry(form).matrix(weight))


@dataclass(frozen=True)
class Truncated:
    form: Form
    matrix: Tensor  # (m, n) or (groups, m, n)
    comparable: bool = False

    @cached_property
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        return svd(self.matrix)

    @cached_property
    def _values(self) -> Tensor:
        values = self.svd[1]
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

    def relative_error(self, rank: int) -> float:
        return float(relative(self.errors)[rank])

    def weighed(self, matrix: Tensor) -> float:
        return float(matrix.norm())

    def sensitivities(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """In the Frobenius norm every entry counts alike."""
        u, s, vh = self.svd
        (m, n), one = self.matrix.shape, torch.ones_like(s)
        return s.unsqueeze(-1) * vh, u, (s.square(), n * one[0]), (one, m * one[0])

    def factors(self, rank: int) -> Factors:
        u, s, vh = self.svd
        root = s[..., :rank].sqrt()
        left, right = u[..., :rank] * root.unsqueeze(-2), root.unsqueeze(-1) * vh[..., :rank, :]
        return Factors((left @ right,)) if self.form is Form.DENSE else Factors((right, left))
