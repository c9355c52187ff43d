"""The layer that a candidate stands for at one rank, to be tried: nothing in the model changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.planning.candidates import Candidate


@torch.no_grad()
def layer_of(root: nn.Module, candidate: Candidate, rank: int, *, draft: bool = False) -> nn.Module:
    """The new layer in eval mode, with the bias that a layer of its own or a BatchNorm after it would carry; the model
    must be ``opened``. ``draft``: with the factors that ``errors`` are of, where a method would go on to improve them.
    """
    site, made = candidate.site, candidate.decomposition
    old: Any = root.get_submodule(site.name)
    factors = getattr(made, "draft", made.factors)(rank) if draft else made.factors(rank)
    new: Any = site.layer.skeleton(old, candidate.form, rank, bias=site.layer.takes_bias)
    site.layer.write_(new, candidate.form, factors)
    bias: Tensor | None = new.bias
    if bias is not None:
        start = old.bias.detach().double() if site.layer.has_bias else torch.zeros_like(bias, dtype=torch.float64)
        bias.data.copy_(start if factors.shift is None else start + factors.shift.to(start))
    return new.eval()
