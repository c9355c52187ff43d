"""What weight decay on the factors is, and what it is at least."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankfold.linalg.decompositions import singular_values
from rankfold.sites import factors_of, products, unwrap


def factor_energy(model: nn.Module) -> dict[str, Tensor]:
    """Σ_i ‖R_i‖_F² of every product of ``model`` by the path of its parameter: what weight decay acts on."""
    return {
        f"{path}.{parameter}".lstrip("."): torch.stack(
            [f.detach().double().square().sum() for f in factors_of(module, parameter)]
        ).sum()
        for path, module in unwrap(model).named_modules()
        for parameter in products(module)
    }


def schatten_penalty(matrix: Tensor, depth: int) -> Tensor:
    """N Σ σ^{2/N} of ``matrix`` (m, n) or (g, m, n), N = ``depth``: the least Σ_i ‖R_i‖_F² of all N-factor products.

    LoRITa, Proposition 4.2 with the exponent p = 2/N (the paper prints 1/K before its equation 7, which is wrong).
    Summed over a batch; float64; not differentiable. Cost: one set of singular values.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1 factor, got {depth}")
    return depth * singular_values(matrix).pow(2 / depth).sum()
