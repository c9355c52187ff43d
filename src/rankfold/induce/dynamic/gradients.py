"""Gradients of layers in dynamical low-rank training: those of the cores, which all know, and those of the bases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from rankfold.layers import DynamicLowRank
from rankfold.linalg.errors import NonFiniteError

_OFF = 0.05  # how far gradients of a core may be from what the bases' tell, by rounding in half precision


def gradients_of(layer: DynamicLowRank) -> list[Tensor]:
    """Of what autograd trains, and of the bases where a step needs them; without the bias."""
    return [g for g in (*(p.grad for p in layer.trained), *(layer.gradients or ())) if g is not None]


def clip_(parameters: Sequence[nn.Parameter], layers: Collection[DynamicLowRank], most: float) -> Tensor:
    """Scale all gradients so that their norm is at most ``most``; returns the norm before. Of a layer whose bases are
    to move it is that of the gradient projected onto the tangent space."""
    parts = [p.grad for p in parameters if p.grad is not None]
    total, probes = sum(g.double().square().sum() for g in parts), []
    for layer in layers:
        if layer.gradients is not None:
            left, right = layer.gradients
            probes += [left, right]
            for gradient, inside in ((left, layer.left.mT @ left), (right, right @ layer.right.mT)):
                total = total + gradient.double().square().sum() - inside.double().square().sum()
    norm = torch.as_tensor(total).clamp_min(0).sqrt()
    if norm > most:
        for gradient in (*parts, *probes):
            gradient.mul_((most / norm).to(gradient))
    return norm


def rescale_(layers: Collection[DynamicLowRank]) -> None:
    """Whoever scales gradients after backward, a scaler or torch's clip, knows the cores alone: the bases' follow, by
    what either says of UᵀgVᵀ."""
    inner, square, whole = 0.0, 0.0, 0.0
    reached = [
        (layer, known) for layer in layers if (known := layer.gradients) is not None and layer.core.grad is not None
    ]
    for layer, (left, _) in reached:
        expected, given = (part.double() for part in layer.agreement())
        inner, square = inner + float((expected * given).sum()), square + float(expected.square().sum())
        whole += float(left.double().square().sum())
    if not square > 1e-8 * whole or not (scale := inner / square) > 0 or abs(scale - 1) < _OFF:
        return
    for _, known in reached:
        for gradient in known:
            gradient.mul_(scale)


def check_finite(layers: Mapping[str, DynamicLowRank]) -> None:
    """``NonFiniteError`` with the name of the layer."""
    for name, layer in layers.items():
        for gradient in gradients_of(layer):
            if not bool(gradient.isfinite().all()):
                raise NonFiniteError(
                    f"{name}: its gradient is not finite, so this step was not taken and the weights are as "
                    "before: lower the learning rate, or clip gradients (optimizer.clip_grad_norm_)"
                )
