"""Low rank over an int4 base: four bits for each weight in groups with a scale, and a pair for what they lose."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any
from warnings import catch_warnings, simplefilter

from torch import Tensor, nn

from rankfold.forms.form import Call, Factors, Form, register
from rankfold.forms.layer import Layer
from rankfold.layers.residual import ResidualConv1D, ResidualLinear
from rankfold.linalg.rounding import grouped, packed, spread

GROUP = 64


class Residual(Form):
    """W ≈ Q + left · right, Q in int4; rank 0 is the base alone.

    ``group``: how many numbers of a row share a scale; the last group of a row may be shorter. Of linear layers. Taken
    only where it is asked for. Another size is a form of another name:
    ``register(Residual("residual32", group=32))``.
    """

    like, parameter, optional, least, over_base = Form.FACTORED, "base.codes", True, 0, True

    group: int

    def __new__(cls, name: str, group: int = GROUP) -> Any:  # once: Form(name) initialises what it finds anew
        if isinstance(group, bool) or not isinstance(group, int) or group < 1:
            raise ValueError(
                f"form {name}: group, the number of weights that share a scale, must be a whole number of at least "
                f"1, got {group!r}"
            )
        made = super().__new__(cls, name)
        made.group = group
        return made

    def offered(self, layer: Layer) -> bool:
        single = layer.convolution is None and layer.groups == 1 and not layer.experts
        return Form.FACTORED.offered(layer) and single and not layer.lookup

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        m, n = layer.shape
        return m * n + rank * (m + n) + (m if bias else 0)

    def bytes(self, layer: Layer, rank: int, bias: bool, element_size: int) -> int:
        m, n = layer.shape
        scales = m * -(-n // self.group)
        return m * -(-n // 2) + (scales + rank * (m + n) + (m if bias else 0)) * element_size

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        m = layer.shape[0]
        return 2 * sum(prod(call.output) // m for call in calls) * self.params(layer, rank, False)

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        (m, n), kind = layer.shape, ResidualConv1D if layer.stored_transposed else ResidualLinear
        with catch_warnings():
            simplefilter("ignore", UserWarning)  # torch warns of a factor of rank 0
            return kind(n, rank, m, bias, self.group, device="meta", dtype=layer.weight(old).dtype)

    def begin_(self, new: Any) -> None:
        new.base.codes.zero_()
        new.base.scale.fill_(1.0)

    def base(self, matrix: Tensor, dtype: Any, weights: Tensor | None = None) -> tuple[Tensor, ...]:
        return grouped(matrix, self.group, dtype, weights)

    def based(self, base: Sequence[Tensor]) -> Tensor:
        return spread(base[0], base[1], self.group).double()

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        right, left, codes, scale = factors.parts
        new.down.weight.copy_(right)
        new.up.weight.copy_(left)
        new.base.codes.copy_(packed(codes))
        new.base.scale.copy_(scale)


Form.RESIDUAL = register(Residual("residual"))
