"""A frozen linear layer with an update that is a compressed deep linear product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.linalg import svd


class DeepLoRALinear(nn.Module):
    """``x ↦ base(x) + scaling · x (W_L … W_1)ᵀ``: ``factors`` are W_L (m, r), (r, r) …, W_1 (r, n).

    ``base`` is an ``nn.Linear`` or Hugging Face's ``Conv1D``. Two factors are ordinary LoRA.
    """

    def __init__(self, base: nn.Module, factors: Sequence[Tensor], scaling: float, stored_transposed: bool) -> None:
        super().__init__()
        self.base, self.scaling, self.stored_transposed = base, scaling, stored_transposed
        self.factors = nn.ParameterList(factors)
        self.out_features, self.rank = factors[0].shape
        self.in_features = factors[-1].shape[1]

    @property
    def weight(self) -> Tensor:
        """The weight with its update, as the base stores it; computed at each read."""
        update = self.update()
        weight: Any = self.base.weight
        return weight + (update.T if self.stored_transposed else update).to(weight)

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]

    def update(self) -> Tensor:
        """scaling · W_L … W_1, (m, n)."""
        left, *others = self.factors
        for factor in others:
            left = left @ factor
        return self.scaling * left

    def lora(self, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
        """Balanced A (r, n) and B (m, r) with B A = W_L … W_1, float64; without the scaling.

        Singular values of at most ``tolerance`` times the largest are left out; at least one is kept.
        Cost O((m + n) r²): the product is not formed.
        """
        first, *inner, last = (factor.detach().double().cpu() for factor in self.factors)
        left, core = torch.linalg.qr(first)
        for factor in inner:
            core = core @ factor
        right, upper = torch.linalg.qr(last.T)
        u, s, vh = svd(core @ upper.T)
        rank = max(1, int((s > tolerance * s[0]).sum())) if tolerance > 0 else len(s)
        half = s[:rank].sqrt()
        return half.unsqueeze(-1) * (vh[:rank] @ right.T), (left @ u[:, :rank]) * half

    def forward(self, input: Tensor) -> Tensor:
        x = input
        for factor in reversed(self.factors):
            x = F.linear(x, factor)
        return self.base(input) + self.scaling * x

    def extra_repr(self) -> str:
        return f"rank={self.rank}, depth={len(self.factors)}, scaling={self.scaling:g}"
