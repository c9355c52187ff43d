"""One factor for many matrices: those of all experts of a mixture, or those of the layers that read one tensor.

The matrices lie below one another, or, of what leaves experts, side by side, and are factored as one. A group of layers
stores r of the rows of that matrix, so that it takes r² numbers less (``rankfold.forms.pivoted``); each of its layers
is written for itself, from the same right factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Layer
from rankfold.layers.experts import LowRankEnter, LowRankLeave
from rankfold.layers.shared import SharedFirst, SharedNext


class Shared(Form):
    """r·(m + n) numbers, m × n the matrix of all; of a group of layers r·(m + n − r). The shared factor runs once."""

    like, parameter = Form.FACTORED, "up.weight"

    def offered(self, layer: Layer) -> bool:
        return layer.experts > 0 or bool(layer.members) or layer.share is not None

    def max_rank(self, layer: Layer) -> int:
        if layer.share is not None:
            return min(layer.share.total - 1, layer.shape[1])
        return min(layer.shape[0] - 1, layer.shape[1]) if layer.members else min(layer.shape)

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        return rank * self._numbers(layer, rank) + (layer.shape[0] if bias else 0)

    def _numbers(self, layer: Layer, rank: int) -> int:
        """For each rank: what is stored, and how often one row is multiplied."""
        m, n = layer.shape
        if layer.share is not None:
            return (n if layer.share.first else 0) + m - layer.share.rows
        return m + n - (rank if layer.members else 0)

    def buffers(self, layer: Layer, rank: int) -> int:
        return 0 if layer.experts else 4 * layer.shape[0]

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        if not layer.experts:
            rows = sum(prod(call.input) // layer.shape[1] for call in calls)
            return 2 * rows * self.params(layer, rank, False)
        (m, n), experts, macs = layer.shape, layer.experts, 0
        for call in calls:
            tokens, slots = call.input[0], layer.slots(call)
            macs += tokens * n + slots * m // experts if layer.entering else slots * n // experts + tokens * m
        return 2 * rank * macs

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        (m, n), experts = layer.shape, layer.experts
        factory: dict[str, Any] = {"device": "meta", "dtype": layer.weight(old).dtype}
        if layer.share is not None:
            kind = SharedFirst if layer.share.first else SharedNext
            return kind(n, rank, m, layer.share.rows, bias=bias, **factory)
        if layer.entering:
            return LowRankEnter(experts, m // experts, rank, n, **factory)
        return LowRankLeave(experts, m, rank, n // experts, **factory)

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        right, left = factors.parts
        if layer.share is None:
            if not layer.entering:
                right = right.unflatten(1, (layer.experts, -1)).transpose(0, 1)
            new.down.weight.copy_(right)
            new.up.weight.copy_(left.reshape(new.up.weight.shape))
            return
        if layer.share.first:
            new.down.weight.copy_(right)
        order, rest = _picked(left, layer.share.rows)
        new.up.order.copy_(order)
        new.up.rest.weight.copy_(rest)


def _picked(left: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(order (m,), rest (m − rows, r)) of a part (m, r) of [I; C] with ``rows`` of the identity's.

    Each of them is taken once: rows of C are among them too, where two rows of the matrix are equal."""
    m, r = left.shape
    ones = (left == 1) & (left != 0).sum(1, keepdim=True).eq(1)
    unit = (ones & (ones.cumsum(0) == 1)).any(1)
    stored = unit & (unit.cumsum(0) <= rows)
    if int(stored.sum()) != rows:
        raise ValueError(f"the left factor must hold {rows} rows of the identity, and holds {int(unit.sum())}")
    places = torch.empty(m, dtype=torch.int64, device=left.device)
    places[stored] = (left[stored] == 1).int().argmax(1)
    places[~stored] = r + torch.arange(m - rows, device=left.device)
    return places, left[~stored]


Form.SHARED = register(Shared("shared"))
