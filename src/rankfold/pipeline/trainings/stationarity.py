"""How near a network is to a stationary point of its loss with weight decay, and which decay that would be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import evaluating
from rankfold.collapse import LOSSES
from rankfold.collapse.centroid import INPUT, Tail, gradients, without_grad_mode
from rankfold.sites import SiteList, opened


def stationarity(
    model: nn.Module, found: SiteList, inputs: Tensor, targets: Tensor, loss: str, decay: float | None
) -> tuple[float, float]:
    """(κ, ‖∇L + κW‖/(κ‖W‖)) over all sites; κ by least squares where it is not given, NaN where that is not above 0.

    A weight that several sites share counts once. ``loss``: that of the training, a name in ``LOSSES``: one of p times
    the size has p times the decay. NaN where there are no weights, or none but zeros.
    """
    with evaluating(model), torch.enable_grad(), without_grad_mode(model), opened(model):
        every = (site.layer.weight(model.get_submodule(site.name)) for site in found)
        shared: dict[int, Any] = {id(weight): weight for weight in every}
        weights = list(shared.values())
        slopes = gradients(Tail(model, INPUT, inputs[:2]), inputs, targets, LOSSES[loss], weights)
        pairs = [(w.detach().double(), g) for w, g in zip(weights, slopes, strict=True) if g is not None]
    energy = sum(float(w.square().sum()) for w, _ in pairs)
    if not energy > 0:
        return float("nan"), float("nan")
    kappa = -sum(float((g * w).sum()) for w, g in pairs) / energy if decay is None else decay
    if not kappa > 0:
        return float("nan"), float("nan")
    residual = sum(float((g + kappa * w).square().sum()) for w, g in pairs) ** 0.5
    return kappa, residual / (kappa * energy**0.5)
