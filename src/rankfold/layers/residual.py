"""Linear layers of low rank over an int4 base: what four bits lose is made good where it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.layers.linear import LowRankConv1D, LowRankLinear
from rankfold.layers.rounded import WholeNumbers
from rankfold.layers.weights.matrices import Matrix
from rankfold.layers.weights.rule import Factors
from rankfold.layers.weights.weight import weight_of
from rankfold.linalg.rounding import spread, unpacked


class Int4(WholeNumbers):
    """A matrix (m, n) of whole numbers from −8 to 7 with one scale for each ``group`` of a row.

    Buffers: ``codes`` (m, ⌈n / 2⌉) uint8, two numbers to a byte, and ``scale`` (m, ⌈n / group⌉).
    """

    if TYPE_CHECKING:
        codes: Tensor
        scale: Tensor

    def __init__(self, in_features: int, out_features: int, group: int, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group = in_features, out_features, group
        device = factory.get("device")
        half, count = -(-in_features // 2), -(-in_features // group)
        self.register_buffer("codes", torch.empty(out_features, half, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.empty(out_features, count, **factory))

    @property
    def numbers(self) -> int:
        return self.in_features * self.out_features

    def dense(self) -> Tensor:
        return spread(unpacked(self.codes, self.in_features), self.scale, self.group)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.dense())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group={self.group}"


@dataclass(frozen=True, eq=False)
class OverBase(Matrix):
    """W (m, n) = left·right + base; ``across``: the transposed weight."""

    base: Int4
    across: bool = False

    def _based(self, like: Tensor) -> Tensor:
        found = self.base.dense().to(like)
        return found.mT if self.across else found

    def dense(self, factors: Factors) -> Tensor:
        return super().dense(factors) + self._based(factors[0])

    def turned(self) -> OverBase:
        return OverBase(self.base, not self.across)

    def onward(self, x: Tensor, factors: Factors, bias: Tensor | None = None) -> Tensor:
        return super().onward(x, factors, bias) + F.linear(x, self._based(factors[0]))

    def back(self, x: Tensor, factors: Factors) -> Tensor:
        return super().back(x, factors) + x @ self._based(factors[0])


class ResidualLinear(LowRankLinear):
    """``x ↦ x·baseᵀ + x·downᵀ·upᵀ + bias``. The base stays as it is in training; ``down`` and ``up``, which may be of
    rank 0, are ordinary linear layers."""

    def __init__(
        self, in_features: int, rank: int, out_features: int, bias: bool = True, group: int = 64, **factory: Any
    ) -> None:
        super().__init__(in_features, rank, out_features, bias, **factory)
        self.base = Int4(in_features, out_features, group, **factory)

    def _product(self) -> Tensor:
        return weight_of(OverBase(self.base), (self.down.weight, self.up.weight))

    def forward(self, input: Tensor) -> Tensor:
        return self.up(self.down(input)) + self.base(input)


class ResidualConv1D(ResidualLinear, LowRankConv1D):
    """Stands for Hugging Face's ``Conv1D``, a linear layer that stores its weight transposed, (n, m)."""

    def __init__(
        self, in_features: int, rank: int, out_features: int, bias: bool = True, group: int = 64, **factory: Any
    ) -> None:
        super().__init__(in_features, rank, out_features, bias, group, **factory)
        self.nx, self.nf = in_features, out_features
