"""Linear layers: ``nn.Linear``, Hugging Face ``Conv1D``, and embeddings (measured, never factored)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.layers import LowRankConv1D, LowRankLinear
from rankfold.sites.geometry import Matricization, Plain, Transposed
from rankfold.sites.product import ordinary_class
from rankfold.sites.site import Call, Factors, Form, Side


@dataclass(frozen=True)
class LinearLayer:
    kind: str
    shape: tuple[int, int]
    has_bias: bool
    stored_transposed: bool = False
    groups: int = 1

    @property
    def forms(self) -> frozenset[Form]:
        return frozenset({Form.KEEP, Form.DENSE, Form.FACTORED})

    @property
    def side(self) -> Side:
        return "output" if self.shape[0] <= self.shape[1] else "input"

    def geometry(self, form: Form) -> Matricization:
        return Transposed() if self.stored_transposed else Plain()

    def max_rank(self, form: Form) -> int:
        return min(self.shape)

    def rows(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        return (output if self.side == "output" else inputs).reshape(-1, min(self.shape))

    def paired_rows(self, module: Any, inputs: Tensor, *outputs: Tensor) -> tuple[Tensor, ...] | None:
        m, n = self.shape
        return inputs.reshape(-1, n), *(output.reshape(-1, m) for output in outputs)

    def output_rows(self, output: Tensor) -> Tensor:
        return output.reshape(-1, self.shape[0])

    def params(self, form: Form, rank: int, bias: bool) -> int:
        m, n = self.shape
        weights = rank * (m + n) if form is Form.FACTORED else m * n
        return weights + (m if bias else 0)

    def flops(self, form: Form, rank: int, calls: Sequence[Call]) -> int:
        m, n = self.shape
        positions = sum(prod(call.output) // m for call in calls)
        return 2 * positions * (rank * (m + n) if form is Form.FACTORED else m * n)

    def skeleton(self, like: Any, form: Form, rank: int, bias: bool) -> nn.Module:
        m, n = self.shape
        # on the meta device first: nothing is initialised, and no random number is drawn
        low_rank = LowRankConv1D if self.stored_transposed else LowRankLinear
        kind = partial(low_rank, n, rank, m) if form is Form.FACTORED else partial(nn.Linear, n, m)
        return kind(bias=bias, device="meta", dtype=like.weight.dtype).to_empty(device=like.weight.device)

    @torch.no_grad()
    def write_(self, layer: Any, form: Form, factors: Factors) -> None:
        if form is Form.FACTORED:
            right, left = factors.parts
            layer.down.weight.copy_(right)
            layer.up.weight.copy_(left)
        else:
            layer.weight.copy_(factors.parts[0])


@dataclass(frozen=True)
class EmbeddingLayer(LinearLayer):
    """A lookup: its matrix can be measured, but a product of factors would not be cheaper to look up."""

    @property
    def forms(self) -> frozenset[Form]:
        return frozenset({Form.KEEP})

    def flops(self, form: Form, rank: int, calls: Sequence[Call]) -> int:
        return 0


def read_linear(module: Any) -> LinearLayer | None:
    """The layer object of a linear-like module, or None if it is none."""
    kind = ordinary_class(module)
    if kind.forward is nn.Linear.forward:
        m, n = module.weight.shape
        return LinearLayer("Linear", (m, n), module.bias is not None)
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":
        n, m = module.weight.shape
        return LinearLayer("Conv1D", (m, n), module.bias is not None, stored_transposed=True)
    if kind.forward is nn.Embedding.forward:
        m, n = module.weight.shape
        return EmbeddingLayer("Embedding", (m, n), has_bias=False)
    return None
