"""Layers in training at low rank, read as the layers that they stand for."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from rankfold.forms import Convolution, Layer
from rankfold.layers import InTraining
from rankfold.sites.kinds.convolution import ConvLayer
from rankfold.sites.kinds.linear import LinearLayer
from rankfold.sites.product import ordinary_class


def is_dynamic(module: nn.Module) -> bool:
    return isinstance(module, InTraining)


def read_dynamic(module: Any) -> Layer | None:
    """The layer object of such a module, or None for any other."""
    if not is_dynamic(module):
        return None
    (m, n), has_bias = module.shape, module.bias is not None
    kind = ordinary_class(module.ordinary).__name__
    if not module.kernel:
        return LinearLayer(kind, (m, n), has_bias, stored_transposed=module.stored_transposed)
    return ConvLayer(kind, Convolution(n // prod(module.kernel), m, module.kernel, 1, False), has_bias)
