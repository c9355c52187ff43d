"""Products known to be symmetric, at a little more than half the multiplications."""

import torch
from torch import Tensor

# below this width a triangle of blocks is slower than one plain product
_PLAIN_WIDTH = 256


def add_upper_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add the upper triangle of the symmetric product a b to `out` in place.

    `a`: (d, k) or (g, d, k); `b`: (…, k, d); `out`: (…, d, d), same dtype. The strict lower triangle of `out`
    is left undefined (finite if it was). The triangle is halved recursively down to blocks of 256 columns,
    each an ordinary product: a fraction 1/2 + 128/d of the 2·k·d² operations. `mirror` completes the matrix.
    """
    d = out.shape[-1]
    if d <= _PLAIN_WIDTH:
        return _accumulate_(out, a, b)
    half = d // 2
    add_upper_(out[..., :half, :half], a[..., :half, :], b[..., :half])
    add_upper_(out[..., half:, half:], a[..., half:, :], b[..., half:])
    _accumulate_(out[..., :half, half:], a[..., :half, :], b[..., half:])
    return out


def _accumulate_(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return out.addmm_(a, b) if a.ndim == 2 else out.baddbmm_(a, b)


def upper_product(a: Tensor, b: Tensor) -> Tensor:
    """The upper triangle of the symmetric product a b, zeros or rubbish below the blocks of its diagonal."""
    return add_upper_(torch.zeros(*a.shape[:-1], b.shape[-1], dtype=a.dtype, device=a.device), a, b)


def mirror(upper: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle is that of `upper` (…, d, d); a new tensor."""
    triangle = upper.triu()
    return triangle + triangle.triu(1).mT


def gram(x: Tensor) -> Tensor:
    """xᵀx for `x` (rows, d) or (g, rows, d): exactly symmetric, (…, d, d)."""
    return mirror(upper_product(x.mT, x))
