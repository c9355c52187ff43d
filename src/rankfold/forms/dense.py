"""The matrix as it is: kept, or replaced by another full one (truncated and multiplied out, or fitted anew)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Layer


class Dense(Form):
    """Saves nothing, works anywhere."""

    parameter = "weight"

    def offered(self, layer: Layer) -> bool:
        return not layer.lookup and not layer.experts

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        m, n = layer.shape
        return layer.groups * m * n + (layer.groups * m if bias else 0)

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        return layer.dense_flops(calls)

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        return layer.dense(old, bias)

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        weight: Tensor = new.weight
        matrix = factors.parts[0].to(weight.dtype)
        # a dense layer in place of one that stores its matrix otherwise is an ordinary one
        weight.copy_(matrix if layer.convolution is None else layer.matricization.put(weight, matrix))


class Keep(Dense):
    """Untouched."""

    def offered(self, layer: Layer) -> bool:
        return True


Form.KEEP = register(Keep("keep"))
Form.DENSE = register(Dense("dense"))
