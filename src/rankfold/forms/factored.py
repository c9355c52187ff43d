"""The pair n → r → m; of a convolution k×k to r channels, then 1×1."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from rankfold.forms import convolving
from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.geometry import ChannelFolding
from rankfold.forms.layer import Layer
from rankfold.layers import LowRankConv, LowRankConv1D, LowRankEmbedding, LowRankLinear


class Factored(Form):
    """r·(m + n) numbers in place of m·n. Exact at full rank for every setting of a convolution. Of an embedding r
    numbers are looked up for each row, and a linear layer makes the vector of them."""

    def offered(self, layer: Layer) -> bool:
        return not layer.experts

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        (m, n), conv = layer.shape, layer.convolution
        if conv is None:
            return rank * (m + n) + (m if bias else 0)
        weights = rank * conv.channels_in * conv.points + conv.channels_out * rank
        return weights + (conv.channels_out if bias else 0)

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        (m, n), conv = layer.shape, layer.convolution
        if conv is None:
            return 2 * sum(prod(call.output) // m for call in calls) * rank * (m if layer.lookup else m + n)
        macs = 0
        for call in calls:
            batch, _, size_out = convolving.places(conv, call)
            macs += rank * conv.channels_in * conv.points * convolving.kernel_macs(conv, call)
            macs += conv.channels_out * rank * batch * prod(size_out)
        return 2 * macs

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        (m, n), conv = layer.shape, layer.convolution
        if conv is None:
            if layer.lookup:
                return LowRankEmbedding(old, rank, bias=bias, device="meta", dtype=layer.weight(old).dtype)
            kind = LowRankConv1D if layer.stored_transposed else LowRankLinear
            return kind(n, rank, m, bias=bias, device="meta", dtype=layer.weight(old).dtype)
        dims, wide = len(conv.kernel), rank * conv.groups
        down = convolving.same(old, dims, conv.channels_in, wide, conv.groups)
        up = convolving.one_by_one(old, dims, wide, conv.channels_out, bias, conv.groups)
        return LowRankConv({"down": down, "up": up})

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        right, left = factors.parts
        conv = layer.convolution
        if conv is not None and conv.transposed:
            # stored as (C_in, r, *k) with the groups along C_in, so the matrix (g, r, C_in/g·k) turns back through put
            right = ChannelFolding(conv.groups, transposed=True).put(new.down.weight, right)
        new.down.weight.copy_(right.mT if layer.lookup else right.reshape(new.down.weight.shape))
        new.up.weight.copy_(left.reshape(new.up.weight.shape))


Form.FACTORED = register(Factored("factored"))
