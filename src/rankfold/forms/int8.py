"""The pair of factors as whole numbers: int8, with one scale for each direction of the rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Layer
from rankfold.layers.rounded import Rounded, round_
from rankfold.linalg.rounding import balanced_largest, rounded


class Int8(Form):
    """One byte for each number of the pair, and two scales for each direction: half the bytes of bfloat16.

    Each direction is balanced so that its two vectors have the same largest entry; how it was scaled before does not
    matter. Taken only where it is asked for.
    """

    like, parameter, exact, optional = Form.FACTORED, "up.codes", False, True

    def offered(self, layer: Layer) -> bool:
        conv = layer.convolution
        plain = conv is None or (conv.groups == 1 and not conv.transposed)
        return Form.FACTORED.offered(layer) and plain and layer.kind != "EmbeddingBag"

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        return Form.FACTORED.params(layer, rank, bias)

    def bytes(self, layer: Layer, rank: int, bias: bool, element_size: int) -> int:
        weights = self.params(layer, rank, False)
        return weights + (2 * rank + self.params(layer, rank, bias) - weights) * element_size

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        return Form.FACTORED.flops(layer, rank, calls)

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        new: Any = Form.FACTORED.skeleton(layer, old, rank, bias)
        round_(new.down, 1 if layer.lookup else 0)
        round_(new.up, 1)
        return new

    def begin_(self, new: Any) -> None:
        for stage in (new.down, new.up):
            stage.codes.zero_()
            stage.scale.fill_(1.0)

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        right, left = balanced_largest(*(part.double() for part in factors.parts))
        _fill_(new.down, right.mT if layer.lookup else right)
        _fill_(new.up, left)


@torch.no_grad()
def _fill_(stage: Rounded, matrix: Tensor) -> None:
    codes, scale = rounded(matrix, stage.axis, stage.scale.dtype)
    stage.codes.copy_(codes.reshape(stage.codes.shape))
    stage.scale.copy_(scale)


Form.INT8 = register(Int8("int8"))
