"""The patches of a convolution's input as rows: what its matrix is multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.forms.setting import setting_of

POSITIONS = 32  # neighbouring patches say the same; their number costs time


def patches(module: Any, inputs: Tensor) -> Tensor:
    """Input patches (N, C·k), or (groups, N, C/groups·k), ordered as the matrix's columns; see ``sampled``."""
    return sampled(module, inputs)[0]


def sampled(module: Any, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Patches in float32 at ``POSITIONS`` places of each sample, and (sample, place) of each: two index tensors.

    For plain convolutions in any number of dimensions, with their own stride, padding and dilation; padding counts as
    data. Only the patches that are asked for are copied.
    """
    kernel = module.kernel_size
    axes = len(kernel)
    batched = (inputs if inputs.dim() == axes + 2 else inputs.unsqueeze(0)).detach().float()
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    given = setting_of(module)
    windows = F.pad(batched, given.pads, mode=mode)
    for axis, (size, stride, dilation) in enumerate(zip(kernel, given.stride, given.dilation, strict=True), start=2):
        windows = windows.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    sizes = windows.shape[2 : 2 + axes]
    samples, places = len(windows), prod(sizes)
    count = min(places, POSITIONS)
    # spread evenly, and elsewhere in every sample, so that no place of the image is preferred
    sample = torch.arange(samples, device=windows.device).unsqueeze(1)
    place = (torch.arange(count, device=windows.device) * places // count + sample * 7919) % places
    rows = windows.movedim(1, axes + 1)[(sample, *_coordinates(place, sizes))].flatten(0, 1)
    if module.groups > 1:
        return rows.unflatten(1, (module.groups, -1)).flatten(2).transpose(0, 1), (sample, place)
    return rows.flatten(1), (sample, place)


def _coordinates(place: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Where each number in row-major order lies, an index for each axis. (torch's own imports sympy for its checks.)"""
    found = []
    for size in reversed(sizes):
        found.append(place % size)
        place = place // size
    return tuple(reversed(found))


def taken(module: Any, output: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
    """The output of the layer as rows (N, m), or (groups, N, m/groups), at the places of ``sampled``."""
    batched = output if output.dim() == len(module.kernel_size) + 2 else output.unsqueeze(0)
    rows = batched.movedim(1, -1).flatten(1, -2)[at].flatten(0, 1)
    return rows if module.groups == 1 else rows.unflatten(1, (module.groups, -1)).transpose(0, 1)
