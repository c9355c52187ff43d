"""Matrices as small whole numbers and scales: int8 for each direction of a product, int4 for groups of a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST = 127  # of int8, on both sides of zero
_SHRUNK = (6.0, 6.5, 7.0, 7.5, 8.0, 8.5)  # by what the largest number of a group is divided: the steps that are tried
_AT_ONCE = 1 << 22  # numbers that are rounded at once


def balanced_largest(right: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """(right, left) with row i of the one and column i of the other of equal largest entry; the product does not
    change, and neither does the result when a direction is rescaled beforehand. (…, r, n) and (…, m, r)."""
    rows, columns = right.abs().amax(-1), left.abs().amax(-2)
    scale = (columns / rows.clamp_min(torch.finfo(right.dtype).tiny)).sqrt()
    scale = torch.where((rows > 0) & (columns > 0), scale, torch.ones_like(scale))
    return right * scale.unsqueeze(-1), left / scale.unsqueeze(-2)


def rounded(matrix: Tensor, axis: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``matrix`` ≈ codes · scale: int8 codes of its shape, and one scale in ``dtype`` for each place along ``axis``.

    Codes are rounded to the scale as it is stored, so that its own rounding costs nothing.
    """
    others = [each for each in range(matrix.dim()) if each != axis % matrix.dim()]
    largest = matrix.double().abs().amax(others, keepdim=True)
    scale = (largest / LARGEST).to(dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # also where it is too small for the dtype
    codes = (matrix.double() / scale.double()).round().clamp(-LARGEST, LARGEST)
    return codes.to(torch.int8), scale.flatten()


def grouped(matrix: Tensor, group: int, dtype: torch.dtype, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``matrix`` (m, n) ≈ codes · scale by groups of ``group`` numbers of a row, the last of which may be shorter.

    Returns int8 codes (m, n) from −8 to 7 and scales (m, ⌈n / group⌉) in ``dtype``. Of some steps for each group, of
    either sign since there are more codes below zero than above, the one of least squared error is taken; ``weights``
    (n,): how much an error counts in each column.
    """
    m, n = matrix.shape
    count = -(-n // group)
    short = count * group - n
    counted = torch.ones(n, dtype=torch.float32) if weights is None else weights.float()
    counted = torch.nn.functional.pad(counted.to(matrix.device), (0, short)).reshape(count, group)
    found = []
    for rows in torch.nn.functional.pad(matrix, (0, short)).split(max(_AT_ONCE // max(count * group, 1), 1)):
        found.append(_grouped(rows.float().reshape(-1, count, group), counted, dtype))
    codes, scale = (torch.cat([each[i] for each in found]) for i in (0, 1))
    return codes.reshape(m, -1)[:, :n].contiguous(), scale


def _grouped(values: Tensor, counted: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = values.gather(-1, values.abs().argmax(-1, keepdim=True))  # with its sign, to which −8 may belong
    best, codes, scale = torch.full_like(largest, torch.inf), torch.zeros_like(values), torch.zeros_like(largest)
    for divisor in (*_SHRUNK, *(-each for each in _SHRUNK)):
        step = (largest / divisor).to(dtype).to(values.dtype)
        step = torch.where(step != 0, step, torch.ones_like(step))
        tried = (values / step).round().clamp(-8, 7)
        wrong = ((tried * step - values).square() * counted).sum(-1, keepdim=True)
        better = wrong < best
        best, scale = torch.where(better, wrong, best), torch.where(better, step, scale)
        codes = torch.where(better, tried, codes)
    return codes.to(torch.int8), scale.squeeze(-1).to(dtype)


def spread(codes: Tensor, scale: Tensor, group: int) -> Tensor:
    """What ``grouped`` codes (m, n) and scales (m, ⌈n / group⌉) stand for: (m, n) in the dtype of the scales."""
    n = codes.shape[-1]
    if n == scale.shape[-1] * group:
        return (codes.to(scale.dtype).unflatten(-1, (-1, group)) * scale.unsqueeze(-1)).flatten(-2)
    return codes.to(scale.dtype) * scale.repeat_interleave(group, -1)[..., :n]


def packed(codes: Tensor) -> Tensor:
    """Codes (m, n) from −8 to 7 two to a byte: uint8 (m, ⌈n / 2⌉), the even columns in the lower halves."""
    even = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
    halves = (even + 8).to(torch.uint8)
    return halves[..., ::2] | (halves[..., 1::2] << 4)


def unpacked(bytes_: Tensor, columns: int) -> Tensor:
    """The inverse of ``packed``: int8 codes (m, columns)."""
    # no shift: torch 2.13's ONNX exporter gives a shifted byte a type that onnxruntime refuses
    halves = torch.stack([bytes_ & 15, bytes_ // 16], -1).flatten(-2)[..., :columns]
    return halves.to(torch.int8) - 8


def rounding_cost(right: Tensor, left: Tensor, of_right: Sequence[Tensor], of_left: Sequence[Tensor]) -> Tensor:
    """What the rounding of ``balanced_largest`` factors to int8 is expected to cost, for each direction: (r,) float64.

    An entry is off by an error of variance s²/12, s the step of its direction, independent of all others. For
    ``of_right`` (v_i H v_iᵀ (r,), tr H) and ``of_left`` (u_iᵀ D u_i (r,), tr D) of the factors as they are given, the
    change of uᵢvᵢ costs s²/12 · (tr D · v_i H v_iᵀ + u_iᵀ D u_i · tr H) in tr(D E H Eᵀ).
    """
    rows, columns = right.double().abs().amax(-1), left.double().abs().amax(-2)
    scale = columns / rows.clamp_min(torch.finfo(torch.float64).tiny)  # squared: of right, and of left its inverse
    step = rows * columns / LARGEST**2 / 12
    cost = step * (of_left[1] * scale * of_right[0] + of_left[0] / scale * of_right[1])
    return torch.where((rows > 0) & (columns > 0), cost, torch.zeros_like(cost))
