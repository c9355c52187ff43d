"""A site in a new form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankfold.sites import Factors, Form, Site


def filled(site: Site, form: Form, rank: int, layer: nn.Module, factors: Factors) -> nn.Module:
    """The layer in its new form, filled; ``shift`` and the old bias in its bias."""
    carries = site.layer.has_bias or factors.shift is not None
    new = site.layer.skeleton(layer, form, rank, carries).eval()
    site.layer.write_(new, form, factors)
    with torch.no_grad():
        if carries:
            bias: Tensor = new.bias  # type: ignore[assignment]
            bias.zero_()
            if site.layer.has_bias:
                bias += layer.bias  # type: ignore[arg-type]
            if factors.shift is not None:
                bias += factors.shift.to(bias)
    return new
