"""What weight decay on the factors costs, and the least that it could cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankfold.induce.fold import factors
from rankfold.linalg.decompositions import singular_values


def factor_energy(model: nn.Module) -> dict[str, Tensor]:
    """Σ_i ‖R_i‖_F² of every product of ``model``, float64, by name as in ``factors``: what weight decay acts on.

    Never below ``schatten_penalty`` of the product; equal to it where the factors are balanced.
    """
    return {
        name: torch.stack([part.detach().double().square().sum() for part in parts]).sum()
        for name, parts in factors(model).items()
    }


def schatten_penalty(matrix: Tensor, depth: int) -> Tensor:
    """N Σ σ^{2/N} of ``matrix`` (m, n) or (g, m, n), N = ``depth``: the least Σ_i ‖R_i‖_F² of all N-factor products.

    LoRITa, Proposition 4.2 with the exponent p = 2/N; the 1/K before equation 7 is a misprint. Summed over a batch,
    float64, not differentiable. Cost: one set of singular values. Raises ``ValueError`` for a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1 factor, got {depth}")
    return depth * singular_values(matrix).pow(2 / depth).sum()
