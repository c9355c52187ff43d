"""Linear layers of low rank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold.layers.weights.matrices import Matrix
from rankfold.layers.weights.products import low_rank_matrix
from rankfold.layers.weights.reading import made_to_be_read
from rankfold.layers.weights.refuse import RefusesWeight
from rankfold.layers.weights.weight import weight_of


class LowRankLinear(RefusesWeight, nn.Module):
    """``x ↦ x·downᵀ·upᵀ + bias``: a linear layer of rank r with r·(m + n) weights.

    Its ``weight`` reads as the dense one does, and refuses to be written to.

    Args:
        in_features: n.
        rank: r.
        out_features: m.
        bias: whether there is one.
        factory: ``device`` and ``dtype``.

    Shapes: ``down.weight`` (r, n), ``up.weight`` (m, r), ``up.bias`` (m) or None.

    Example:
        >>> layer = rf.LowRankLinear(16, 2, 8)
        >>> layer(torch.randn(3, 16)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([3, 8]), 56)
    """

    def __init__(self, in_features: int, rank: int, out_features: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.rank, self.out_features = in_features, rank, out_features
        self.down = nn.Linear(in_features, rank, bias=False, **factory)
        self.up: Any = self._second(bias, factory)

    def _second(self, bias: bool, factory: dict[str, Any]) -> nn.Module:
        """The map from the r numbers between the factors to the outputs."""
        return nn.Linear(self.rank, self.out_features, bias=bias, **factory)

    def _product(self) -> Tensor:
        return weight_of(Matrix(), (self.down.weight, self.up.weight))

    @property
    def weight(self) -> Tensor:
        """The dense weight (m, n), as a ``FactoredWeight``: multiplied out only where it must be (docs/layers.md)."""
        if torch.jit.is_scripting():
            return low_rank_matrix(self.down.weight, self.up.weight)
        return _matrix(self)

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear: callers may
        return self.up(self.down(input))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class LowRankConv1D(LowRankLinear):
    """Stands for Hugging Face's ``Conv1D``, a linear layer that stores its weight transposed, (n, m)."""

    def __init__(self, in_features: int, rank: int, out_features: int, bias: bool = True, **factory: Any) -> None:
        super().__init__(in_features, rank, out_features, bias, **factory)
        self.nx, self.nf = in_features, out_features

    @property
    def weight(self) -> Tensor:
        """The dense weight as ``Conv1D`` stores it, (n, m)."""
        if torch.jit.is_scripting():
            return low_rank_matrix(self.down.weight, self.up.weight).t()
        return _turned(self)


@torch.jit.unused
@made_to_be_read
def _matrix(layer: Any) -> Tensor:
    return layer._product()


@torch.jit.unused
@made_to_be_read
def _turned(layer: Any) -> Tensor:
    return layer._product().t()
