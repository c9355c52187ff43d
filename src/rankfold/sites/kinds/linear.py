"""Linear layers: ``nn.Linear`` and Hugging Face ``Conv1D``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from rankfold.forms import Call, Layer, Share, Side
from rankfold.forms.geometry import Matricization, Plain, Transposed
from rankfold.sites.kinds.acting import acts_as
from rankfold.sites.product import ordinary_class, products


@dataclass(frozen=True)
class LinearLayer(Layer):
    """``y = W x + b`` along the last axis. ``stored_transposed``: the parameter is Wᵀ. ``parameter``: its name."""

    kind: str
    size: tuple[int, int]
    has_bias: bool
    stored_transposed: bool = False
    parameter: str = "weight"
    whole: bool = False
    members: tuple[int, ...] = ()
    share: Share | None = None

    def wholly(self) -> LinearLayer:
        return replace(self, whole=True)

    @property
    def side(self) -> Side:
        return "input" if self.whole else super().side

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    @property
    def matricization(self) -> Matricization:
        return Transposed() if self.stored_transposed else Plain()

    def rows(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        m, n = self.shape
        return output.reshape(-1, m) if self.side == "output" else inputs.reshape(-1, n)

    def paired_rows(self, module: Any, inputs: Tensor, *outputs: Tensor) -> tuple[Tensor, ...] | None:
        m, n = self.shape
        return inputs.reshape(-1, n), *(output.reshape(-1, m) for output in outputs)

    def output_rows(self, output: Tensor) -> Tensor:
        return output.reshape(-1, self.shape[0])

    def dense(self, old: Any, bias: bool) -> nn.Module:
        m, n = self.shape
        return nn.Linear(n, m, bias=bias, device="meta", dtype=self.weight(old).dtype)

    def dense_flops(self, calls: Sequence[Call]) -> int:
        m, n = self.shape
        return 2 * sum(prod(call.output) // m for call in calls) * m * n


def read_linear(module: Any) -> LinearLayer | None:
    """The layer object of a linear-like module; None for any other one."""
    kind = ordinary_class(module)
    if kind.forward is nn.Linear.forward or acts_as(module, nn.Linear):
        m, n = _shape(module)
        return LinearLayer("Linear", (m, n), module.bias is not None)
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        n, m = _shape(module)
        return LinearLayer("Conv1D", (m, n), module.bias is not None, stored_transposed=True)
    return None


def _shape(module: Any) -> tuple[int, ...]:
    """Of the weight, without forming it where it is a product."""
    product = products(module).get("weight")
    return tuple(module.weight.shape) if product is None else product.shape
