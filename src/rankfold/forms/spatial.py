"""The pair of a two-dimensional convolution: k_h×1 to r channels, then 1×k_w."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from rankfold.forms import convolving
from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.geometry import Matricization, SpatialFolding
from rankfold.forms.layer import Convolution, Layer
from rankfold.layers import SpatialConv2d


class Spatial(Form):
    def offered(self, layer: Layer) -> bool:
        conv = layer.convolution
        plain = conv is not None and conv.groups == 1 and not conv.transposed
        return conv is not None and plain and len(conv.kernel) == 2 and min(conv.kernel) > 1

    def geometry(self, layer: Layer) -> Matricization:
        return SpatialFolding()

    def max_rank(self, layer: Layer) -> int:
        conv = _conv(layer)
        return min(conv.channels_out * conv.kernel[1], conv.channels_in * conv.kernel[0])

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        conv = _conv(layer)
        weights = rank * (conv.channels_in * conv.kernel[0] + conv.channels_out * conv.kernel[1])
        return weights + (conv.channels_out if bias else 0)

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        conv, macs = _conv(layer), 0
        for call in calls:
            batch, size_in, size_out = convolving.places(conv, call)
            first = rank * conv.channels_in * conv.kernel[0] * size_out[0] * size_in[1]
            macs += batch * (first + conv.channels_out * rank * conv.kernel[1] * prod(size_out))
        return 2 * macs

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        conv = _conv(layer)
        down = convolving.along(old, 2, 0, conv.channels_in, rank)
        return SpatialConv2d({"down": down, "up": convolving.along(old, 2, 1, rank, conv.channels_out, bias=bias)})

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        right, left = factors.parts
        c_out, rank, _, k_w = new.up.weight.shape
        new.down.weight.copy_(right.reshape(new.down.weight.shape))
        new.up.weight.copy_(left.reshape(c_out, k_w, rank).transpose(1, 2).reshape(new.up.weight.shape))


def _conv(layer: Layer) -> Convolution:
    assert layer.convolution is not None  # ``offered`` has said so
    return layer.convolution


Form.SPATIAL = register(Spatial("spatial"))
