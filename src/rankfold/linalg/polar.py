"""The orthogonal factor of a matrix, nearly: what remains of it when all its singular values become one."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# of odd polynomials, one a round: each the nearest to one where values lie after the round before (.01 to 1 at first);
# all but the last for values up to 1.02 times as large, since rounding leads astray beyond
_ROUNDS = ((7.9347, -22.258, 15.8016), (3.5653, -2.5649, 0.4859), (2.6613, -1.9772, 0.4526))


def nearly_orthogonal(matrix: Tensor) -> Tensor:
    """U Vᵀ of ``matrix`` = U S Vᵀ (m, n), with singular values of 0.65 to 1.3 in place of ones.

    In bfloat16 they were 0.55 to 1.4 of 3,000 random matrices. Directions of less than a hundredth of the norm come
    nearer to one only. Cost: in each of three rounds three products on the smaller side, of single precision in
    bfloat16 where the device multiplies that faster: its rounding is then such a small direction too, so that a matrix
    of a smaller rank gets some hundredths in each of the directions that it lacks (in single precision some
    millionths), and zero alone stays zero. Source: K. Jordan et al., "Muon", 2024 (Newton–Schulz); N. Amsel et al.,
    "The Polar Express", 2025 (a polynomial of its own in each round).

    >>> import torch
    >>> values = torch.linalg.svdvals(nearly_orthogonal(torch.diag(torch.tensor([4.0, 1.0, 0.3]))))
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    if not matrix.numel():
        return matrix.clone()
    wide = matrix.shape[0] <= matrix.shape[1]
    x, tiny = matrix if wide else matrix.mT, torch.finfo(matrix.dtype).tiny
    x = x / x.abs().max().clamp_min(tiny)  # whose squares are neither too small nor too large for a norm
    x = x / x.norm().clamp_min(tiny)
    if x.dtype == torch.float32 and _short_is_fast(x.device.type):
        x = x.bfloat16()
    for a, b, c in _ROUNDS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrix.dtype)


@cache
def _short_is_fast(device: str) -> bool:
    """Whether products in bfloat16 are the device's own, and not made of those in single precision."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, bool)() for name in known)
