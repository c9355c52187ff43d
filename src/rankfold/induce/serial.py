"""Layers that multiply their factors out, or apply them one after the other, whichever is cheaper for the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rankfold.sites import factors_of, ordinary_class, products, setting_of

_MANY = 1 << 62
_CONVOLUTIONS = {nn.Conv1d.forward: F.conv1d, nn.Conv2d.forward: F.conv2d, nn.Conv3d.forward: F.conv3d}


def composed_class(kind: type[nn.Module], parameters: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of ``kind`` for a layer whose weights are products; ``parameters``: its own, in their order.

    ``fold_`` reads both back. A layer that is not known here inherits its forward, which reads the product.
    """
    body: dict[str, Any] = {"ordinary_class": kind, "parameter_order": parameters, "__module__": kind.__module__}
    if kind.forward is nn.Linear.forward or kind.__name__ == "Conv1D":  # the latter is Hugging Face's
        body["forward"] = _linear
    elif kind.forward in _CONVOLUTIONS:
        body["forward"] = _convolution
    elif kind.forward is nn.MultiheadAttention.forward:
        body["forward"] = _attention
    return type(f"Composed{kind.__name__}", (kind,), body)


def serial_is_cheaper(sizes: Sequence[int], product_macs: int, rows: int) -> bool:
    """Whether `rows` rows pass through the factors one by one with fewer multiply-adds than through their product.

    One by one: rows · Σ d_{i−1} d_i; formed: `product_macs` + rows · m n. The backward pass takes twice as many of
    either, so that the comparison is the same for training and for inference.
    """
    one_by_one = rows * sum(m * n for m, n in pairwise(sizes))
    return one_by_one < product_macs + rows * sizes[0] * sizes[-1]


def _factors_to_apply(layer: nn.Module, rows: Callable[[], int]) -> list[nn.Parameter]:
    """R_N, …, R_1 in the order in which the data meet them, or nothing where the product is the cheaper way."""
    product = products(layer).get("weight")
    held = getattr(parametrize, "_cache_enabled", 0)  # within parametrize.cached() the product is formed but once
    if product is None or held:
        return []
    # a graph that is exported is for batches of any size: for many rows
    count = _MANY if torch.compiler.is_exporting() else rows()
    if not serial_is_cheaper(product.sizes, product.macs, count):
        return []
    return factors_of(layer, "weight")[::-1]


def _linear(self: Any, input: Tensor) -> Tensor:  # named as in torch: callers may
    factors, x = _factors_to_apply(self, lambda: input.numel() // max(1, input.shape[-1])), input
    if not factors:
        return ordinary_class(self).forward(self, x)
    for factor in factors[:-1]:
        x = F.linear(x, factor)
    return F.linear(x, factors[-1], self.bias)


def _convolution(self: Any, input: Tensor) -> Tensor:
    factors = [] if self.groups > 1 else _factors_to_apply(self, lambda: _positions(self, input))
    if not factors:
        return ordinary_class(self).forward(self, input)
    first, *rest = factors
    one_by_one = _CONVOLUTIONS[ordinary_class(self).forward]
    x = self._conv_forward(input, first.reshape(-1, self.in_channels, *self.kernel_size), None)
    for index, factor in enumerate(rest, start=1):
        bias = self.bias if index == len(rest) else None
        x = one_by_one(x, factor.reshape(*factor.shape, *(1 for _ in self.kernel_size)), bias)
    return x


def _positions(layer: Any, x: Tensor) -> int:
    """Samples times places of the output."""
    dims = len(layer.kernel_size)
    given = setting_of(layer)
    padding = given.pads[::-1]
    places = [
        (size + padding[2 * axis] + padding[2 * axis + 1] - dilation * (kernel - 1) - 1) // stride + 1
        for axis, (size, dilation, kernel, stride) in enumerate(
            zip(x.shape[-dims:], given.dilation, layer.kernel_size, given.stride)
        )
    ]
    return prod(places) * (x.shape[0] if x.dim() == dims + 2 else 1)


def _attention(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``nn.MultiheadAttention`` reads its weights several times in one call: form the product once."""
    forward = ordinary_class(self).forward
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # which drop what is computed twice, and allow no cache
        return forward(self, *args, **kwargs)
    with parametrize.cached():
        return forward(self, *args, **kwargs)
