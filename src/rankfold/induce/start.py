"""Where the factors begin."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from rankfold.linalg.balanced import free_factors, orthogonal
from rankfold.linalg.chain import cheapest_order, multiply

Start = Literal["balanced", "random", "orthogonal"]


def starting_factors(
    matrix: Tensor, sizes: tuple[int, ...], start: Start, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """R_1 (m, d_1) … R_N (d_{N−1}, n), or (groups, …), in the dtype and on the device of `matrix` (…, m, n).

    - "balanced": their product is `matrix`, their norms are equal and the sum of their squares is least (LoRITa,
      Proposition 4.2). What the inner widths hold beyond the rank of `matrix` is zero and receives no gradient, so the
      rank of the product can fall but not rise above min(m, n). A zero matrix, of each group by itself, would never
      leave zero so, and becomes a zero R_1 and (semi-)orthogonal others.
    - "random": each factor as torch begins a linear layer of that shape, uniform in ±1/√columns, which is what the
      paper does. For square factors the product's entries then have 3^{−(N−1)} of the usual variance: its norm is
      √3 (N = 2) or 3 times (N = 3) smaller than that of an ordinary layer.
    - "orthogonal": (semi-)orthogonal factors of equal size whose product has the norm of `matrix`: all its singular
      values are equal in the paper's shapes.
    """
    if start == "balanced":
        return free_factors(matrix, sizes, generator)
    groups, shapes = matrix.shape[:-2], list(pairwise(sizes))
    if start == "random":
        factors = [_uniform((*groups, *shape), shape[1] ** -0.5, generator) for shape in shapes]
    else:
        factors = [orthogonal((*groups, *shape), generator) for shape in shapes]
        norm = multiply(factors, cheapest_order(sizes)[1]).norm(dim=(-2, -1), keepdim=True)
        wanted = matrix.detach().to("cpu", torch.float64).norm(dim=(-2, -1), keepdim=True)
        # where there is nothing to match, as large as torch begins: entries of variance 1/(3n)
        usual = torch.full_like(wanted, (matrix.shape[-2] / 3) ** 0.5)
        scale = (torch.where(wanted > 0, wanted, usual) / norm) ** (1 / len(shapes))
        factors = [factor * scale for factor in factors]
    return tuple(factor.to(matrix.device, matrix.dtype) for factor in factors)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator | None) -> Tensor:
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1) * bound
