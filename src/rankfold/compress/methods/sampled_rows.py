"""The rows of a site that a program sees, in units of the layer's output or of the pre-activation behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from rankfold.compress.layerwise.pairs import Pairs

_FAINT = 1e-3  # of the largest scale: what passes a smaller one is not blown up any further


def scale_of(known: Pairs, outputs: int) -> Tensor:
    """(m,) float64 from the layer's output to its pre-activation, away from zero."""
    if known.scale is None:
        return torch.ones(outputs, dtype=torch.float64)
    scale = known.scale.double().cpu()
    floor = (_FAINT * scale.abs().max()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(scale.abs() < floor, torch.copysign(floor, scale), scale)


def pre_activation_rows(known: Pairs) -> tuple[Tensor, Tensor, Tensor] | None:
    """Inputs (N, n), pre-activations of the original (N, m), and what everything but this layer brings there (N, m)."""
    if known.rows is None or not known.rows.inputs:
        return None
    rows = known.rows
    return torch.cat(rows.inputs), torch.cat(rows.targets), torch.cat(rows.offsets)


def layer_rows(known: Pairs) -> tuple[Tensor, Tensor] | None:
    """Inputs (N, n) and what the layer should give (N, m)."""
    found = pre_activation_rows(known)
    if found is None:
        return None
    x, target, offset = found
    return x, (target - offset) / scale_of(known, target.shape[1]).to(target)
