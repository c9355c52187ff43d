"""One factor for all experts of a mixture: the first where tokens enter, the last where they leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Layer
from rankfold.layers.experts import LowRankEnter, LowRankLeave


class Shared(Form):
    """r·(m + n) numbers, m × n the matrix of all experts; the shared factor runs once for each token."""

    like, parameter = Form.FACTORED, "up.weight"

    def offered(self, layer: Layer) -> bool:
        return layer.experts > 0

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        return rank * sum(layer.shape)

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        (m, n), experts, macs = layer.shape, layer.experts, 0
        for call in calls:
            tokens, slots = call.input[0], layer.slots(call)
            macs += tokens * n + slots * m // experts if layer.entering else slots * n // experts + tokens * m
        return 2 * rank * macs

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        (m, n), experts = layer.shape, layer.experts
        factory: dict[str, Any] = {"device": "meta", "dtype": layer.weight(old).dtype}
        if layer.entering:
            return LowRankEnter(experts, m // experts, rank, n, **factory)
        return LowRankLeave(experts, m, rank, n // experts, **factory)

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        right, left = factors.parts
        if not layer.entering:
            right = right.unflatten(1, (layer.experts, -1)).transpose(0, 1)
        new.down.weight.copy_(right)
        new.up.weight.copy_(left.reshape(new.up.weight.shape))


Form.SHARED = register(Shared("shared"))
