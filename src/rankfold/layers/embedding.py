"""Embeddings of low rank: r numbers are looked up for each row, and one linear layer makes the vector of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankfold.layers.pivoted import Completion
from rankfold.layers.weights.matrices import Matrix, PivotedMatrix
from rankfold.layers.weights.products import low_rank_matrix
from rankfold.layers.weights.reading import made_to_be_read
from rankfold.layers.weights.refuse import RefusesWeight
from rankfold.layers.weights.weight import weight_of

_SETTINGS = ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
_OF_BAGS = ("mode", "include_last_offset")


class LowRankEmbedding(RefusesWeight, nn.Module):
    """Stands for ``nn.Embedding`` or ``nn.EmbeddingBag`` (sums and means), ``like``, with r·(rows + width) weights.

    Shapes: ``down.weight`` (rows, r), which is looked up, ``up.weight`` (width, r). A padding row of zeros stays zero,
    and ``down`` gives it no gradient. Settings are those of the layer that it stands for.
    """

    __constants__ = ["bags"]  # noqa: RUF012  # torch.jit.script compiles one way alone

    def __init__(self, like: Any, rank: int, bias: bool = False, **factory: Any) -> None:
        super().__init__()
        self.bags = bags = isinstance(like, nn.EmbeddingBag)
        for name in (*_SETTINGS, *(_OF_BAGS if bags else ())):
            setattr(self, name, getattr(like, name))
        self.rank = rank
        settings = {name: getattr(like, name) for name in ("padding_idx", "scale_grad_by_freq", "sparse")}
        settings |= {name: getattr(like, name) for name in (_OF_BAGS if bags else ())}
        kind = nn.EmbeddingBag if bags else nn.Embedding
        self.down: Any = kind(like.num_embeddings, rank, **settings, **factory)
        self.up: Any = self._second(like.embedding_dim, bias, factory)

    def _second(self, width: int, bias: bool, factory: dict[str, Any]) -> nn.Module:
        return nn.Linear(self.rank, width, bias=bias, **factory)

    @property
    def weight(self) -> Tensor:
        """The dense table (rows, width), as a ``FactoredWeight`` (docs/layers.md)."""
        if torch.jit.is_scripting():
            return low_rank_matrix(self.up.weight.t(), self.down.weight)
        return _table(self)

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """See ``torch.nn.Embedding.forward`` and, for the last two arguments, ``torch.nn.EmbeddingBag.forward``."""
        if self.bags:
            found = self.down(input, offsets, per_sample_weights)
        elif offsets is None and per_sample_weights is None:
            found = self.down(input)
        else:
            raise TypeError("offsets and weights of samples belong to an EmbeddingBag: this is an Embedding")
        return self.up(found).to(found.dtype)  # a table gives its own dtype, under autocast too

    def _product(self) -> Tensor:
        return weight_of(Matrix(), (self.up.weight.mT, self.down.weight))

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}, padding_idx={self.padding_idx}"


class PivotedEmbedding(LowRankEmbedding):
    """r of the numbers of each vector are looked up, and the others made of them: r·(rows + width − r) weights."""

    def _second(self, width: int, bias: bool, factory: dict[str, Any]) -> nn.Module:
        rest = nn.Linear(self.rank, width - self.rank, bias=False, **factory)
        return Completion(rest, self.rank, bias=bias, **factory)

    @property
    def weight(self) -> Tensor:
        if torch.jit.is_scripting():
            return low_rank_matrix(self.up.weight.t(), self.down.weight)
        return _table(self)

    def _product(self) -> Tensor:
        return weight_of(PivotedMatrix(self.up.order, across=True), (self.up.rest.weight.mT, self.down.weight))


@torch.jit.unused
@made_to_be_read
def _table(layer: Any) -> Tensor:
    return layer._product()
