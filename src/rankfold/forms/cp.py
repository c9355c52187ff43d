"""CP of a convolution: 1×1 to r channels, one depthwise convolution along each axis, 1×1 to the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from rankfold.forms import convolving
from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Convolution, Layer
from rankfold.forms.tucker import fill_stages_
from rankfold.layers import CPConv


class CP(Form):
    def offered(self, layer: Layer) -> bool:
        conv = layer.convolution
        return conv is not None and conv.groups == 1 and not conv.transposed and conv.points > 1

    def max_rank(self, layer: Layer) -> int:
        conv = _conv(layer)
        # a larger CP rank is possible but then costs more than the dense kernel in every case met
        return min(conv.channels_out, conv.channels_in) * max(conv.kernel)

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        conv = _conv(layer)
        weights = rank * (conv.channels_in + sum(conv.kernel) + conv.channels_out)
        return weights + (conv.channels_out if bias else 0)

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        conv, macs = _conv(layer), 0
        for call in calls:
            batch, size_in, size_out = convolving.places(conv, call)
            lines = 0
            for axis, length in enumerate(conv.kernel):
                lines += rank * length * prod(size_out[: axis + 1]) * prod(size_in[axis + 1 :])
            ends = rank * conv.channels_in * prod(size_in) + conv.channels_out * rank * prod(size_out)
            macs += batch * (ends + lines)
        return 2 * macs

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        conv = _conv(layer)
        dims = len(conv.kernel)
        lines = {f"line{axis}": convolving.along(old, dims, axis, rank, rank, groups=rank) for axis in range(dims)}
        down = convolving.one_by_one(old, dims, conv.channels_in, rank)
        return CPConv({"down": down, **lines, "up": convolving.one_by_one(old, dims, rank, conv.channels_out, bias)})

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        fill_stages_(new, factors)


def _conv(layer: Layer) -> Convolution:
    assert layer.convolution is not None  # ``offered`` has said so
    return layer.convolution


Form.CP = register(CP("cp"))
