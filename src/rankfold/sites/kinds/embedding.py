"""Embeddings: a row that is looked up is the product of the transposed table with a vector that has one 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankfold.forms import Call, Side
from rankfold.sites.kinds.linear import LinearLayer
from rankfold.sites.product import ordinary_class, products


@dataclass(frozen=True)
class EmbeddingLayer(LinearLayer):
    """A table (rows, width), read as the matrix width × rows. Second moments are those of what is looked up: rows weigh
    as often as they come."""

    lookup: bool = True
    takes_bias: bool = False

    @property
    def side(self) -> Side:
        return "output"

    def rows(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        return self.output_rows(output)

    def paired_rows(self, module: Any, inputs: Tensor, *outputs: Tensor) -> None:
        return None  # numbers of rows are no vectors

    def dense_flops(self, calls: Sequence[Call]) -> int:
        return 0


def read_embedding(module: Any) -> EmbeddingLayer | None:
    """The layer object of an embedding, or of a bag of them that is a sum or mean; None for any other module."""
    forward = ordinary_class(module).forward
    bag = forward is nn.EmbeddingBag.forward and module.mode != "max"
    if not bag and forward is not nn.Embedding.forward:
        return None
    product = products(module).get("weight")
    rows, width = module.weight.shape if product is None else product.shape
    kind = "EmbeddingBag" if bag else "Embedding"
    return EmbeddingLayer(kind, (width, rows), has_bias=False, stored_transposed=True)


def why_whole(module: Any) -> str | None:
    """Why a table must stay one table; None where it need not."""
    if getattr(module, "max_norm", None) is not None:
        return "max_norm rescales the rows that are looked up in the table itself: set it to None first"
    return None
