"""A compressed network as the dense one that computes the same."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rankfold.layers import FactoredConv, LowRankLinear
from rankfold.sites import opened, sites

FACTORED = (LowRankLinear, FactoredConv)


def multiplied_out(original: nn.Module, compressed: nn.Module) -> nn.Module:
    """The original architecture with the weights (refitted ones too), biases and BatchNorm statistics of the other."""
    dense = copy.deepcopy(original)
    theirs = dict(compressed.named_modules())
    with opened(dense), torch.no_grad():
        for site in sites(dense):
            new, layer = theirs.get(site.name), dense.get_submodule(site.name)
            if new is None:  # inside attention that stayed in one piece
                continue
            weight = new.weight  # a dense layer in place of one that stores its matrix transposed is an ordinary one
            other = type(new) is nn.Linear and site.layer.stored_transposed
            layer.weight.copy_(weight.mT if other else weight)
            bias = getattr(new, "bias", None)  # an embedding has none
            if bias is not None and layer.bias is None:
                layer.bias = nn.Parameter(bias.clone())
            elif bias is not None:
                layer.bias.copy_(bias)
        for name, buffer in dense.named_buffers():
            if name in dict(compressed.named_buffers()):
                buffer.copy_(compressed.get_buffer(name))
    return dense
