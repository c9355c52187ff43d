"""A pair of factors by r of the rows: they are stored, and what the others are made of them; r·(m + n − r) numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.forms import convolving
from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Layer
from rankfold.layers import Completion, PivotedConv, PivotedConv1D, PivotedEmbedding, PivotedLinear
from rankfold.linalg import pivoted


class Pivoted(Form):
    """Less than the dense matrix at every rank below the full one, and than the pair of factors at any.

    Of a convolution the k×k one gives r of the channels themselves, and 1×1 makes the others from them. Not for
    transposed convolutions.
    """

    like, parameter = Form.FACTORED, "up.rest.weight"

    def offered(self, layer: Layer) -> bool:
        return Form.FACTORED.offered(layer) and not (layer.convolution and layer.convolution.transposed)

    def max_rank(self, layer: Layer) -> int:
        return min(layer.shape[0] - 1, layer.shape[1])  # a row at least is left to be made

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        m, n = layer.shape
        return layer.groups * (rank * (m + n - rank) + (m if bias else 0))

    def buffers(self, layer: Layer, rank: int) -> int:
        return 4 * layer.groups * layer.shape[0]

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        conv, one = layer.convolution, self.params(layer, rank, False)
        if layer.lookup:
            one = rank * (layer.shape[0] - rank)
        if conv is None:
            return 2 * sum(prod(call.output) // layer.shape[0] for call in calls) * one
        return 2 * sum(convolving.kernel_macs(conv, call) for call in calls) * one

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        (m, n), conv = layer.shape, layer.convolution
        if conv is None:
            if layer.lookup:
                return PivotedEmbedding(old, rank, bias=bias, device="meta", dtype=layer.weight(old).dtype)
            kind = PivotedConv1D if layer.stored_transposed else PivotedLinear
            return kind(n, rank, m, bias=bias, device="meta", dtype=layer.weight(old).dtype)
        dims, wide = len(conv.kernel), rank * conv.groups
        down = convolving.same(old, dims, conv.channels_in, wide, conv.groups)
        rest = convolving.one_by_one(old, dims, wide, conv.channels_out - wide, groups=conv.groups)
        up = Completion(rest, rank, conv.groups, bias, **convolving.factory(old))
        return PivotedConv({"down": down, "up": up})

    def begin_(self, new: Any) -> None:
        up, drawn = new.up, torch.Generator().manual_seed(0)
        size = len(up.order) // up.groups
        up.order.copy_(_arranged([torch.randperm(size, generator=drawn) for _ in range(up.groups)], up.rank))

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        rows, rest, order = stored(*factors.parts)
        new.down.weight.copy_(rows.mT if layer.lookup else rows.reshape(new.down.weight.shape))
        new.up.rest.weight.copy_(rest.reshape(new.up.rest.weight.shape))
        new.up.order.copy_(order)


def stored(right: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows (g·r, n), rest (g·(m − r), r), order (g·m)) of the product left·right, (m, n) or (g, m, n)."""
    right, left = (part.reshape(-1, *part.shape[-2:]) for part in (right, left))
    found = [pivoted(*pair) for pair in zip(left, right, strict=True)]
    order = _arranged([each.order for each in found], right.shape[1])
    return torch.cat([each.rows for each in found]), torch.cat([each.rest for each in found]), order


def _arranged(orders: Sequence[Tensor], rank: int) -> Tensor:
    """One order from those of the groups: their stored rows come first, one group after another, then all others."""
    before = (len(orders) - 1) * rank  # stored rows of the other groups
    return torch.cat([
        torch.where(order < rank, order + group * rank, order + before + group * (len(order) - rank))
        for group, order in enumerate(orders)
    ])  # fmt: skip


Form.PIVOTED = register(Pivoted("pivoted"))
