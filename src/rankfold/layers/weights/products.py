"""What factors multiply out to; free functions of tensors, so that TorchScript can compile them."""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank_matrix(down: Tensor, up: Tensor) -> Tensor:
    return up @ down


def completed(rest: Tensor, order: Tensor, groups: int) -> Tensor:
    """[I; C] in the order of the outputs, (m, r, …): of each group the identity, then C = ``rest``."""
    eye = torch.eye(rest.shape[1], dtype=rest.dtype, device=rest.device).repeat(groups, 1)
    while eye.dim() < rest.dim():  # 1×1 kernels
        eye = eye.unsqueeze(-1)
    return torch.cat([eye, rest]).index_select(0, order)


def low_rank_kernel(down: Tensor, up: Tensor, groups: int, transposed: bool) -> Tensor:
    left = up.flatten(1)
    left = left.reshape(groups, left.shape[0] // groups, left.shape[1])
    right = down.unflatten(0, [groups, down.shape[0] // groups])
    if transposed:
        return torch.einsum("gor,gcr...->gco...", left, right).flatten(0, 1)
    return torch.einsum("gor,grc...->goc...", left, right).flatten(0, 1)


def spatial_kernel(down: Tensor, up: Tensor) -> Tensor:
    return torch.einsum("orj,rci->ocij", up.select(2, 0), down.select(3, 0))


def tucker_kernel(down: Tensor, core: Tensor, up: Tensor) -> Tensor:
    return torch.einsum("op,pq...,qc->oc...", up.flatten(1), core, down.flatten(1))


def cp_kernel(factors: list[Tensor]) -> Tensor:
    kernel = factors[0].flatten(1)  # (r, C_in)
    for line in factors[1:-1]:
        flat = line.flatten(1)  # (r, k)
        shape = [flat.shape[0]] + [1] * (kernel.dim() - 1) + [flat.shape[1]]
        kernel = kernel.unsqueeze(-1) * flat.reshape(shape)
    return torch.einsum("or,r...->o...", factors[-1].flatten(1), kernel)
