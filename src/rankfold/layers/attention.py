"""Attention taken apart into four linear layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.layers.weights.joined import Joined
from rankfold.layers.weights.reading import made_to_be_read
from rankfold.layers.weights.scripting import EXCLUDED, Traced
from rankfold.layers.weights.weight import guarded, weight_of


class SplitAttention(Traced):
    """``nn.MultiheadAttention`` with q, k, v and output projections as four ordinary linear layers.

    The built-in module keeps its projections in one parameter and reads the output projection's weight without
    calling it, so nothing can be hooked or factored there. This one computes the same (same arguments, same result,
    same state of training) through submodules. ``_qkv_same_embed_dim`` is False so that ``nn.TransformerEncoderLayer``
    calls it instead of its fused kernel. Code of a model's own that reads the packed parameters finds them joined.
    """

    unscripted = ("whose matrices are layers of their own", f"the layer {EXCLUDED}")
    bias_k = None
    bias_v = None
    add_zero_attn = False
    _qkv_same_embed_dim = False

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, batch_first: bool = False) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first = dropout, batch_first
        self.q_proj: Any
        self.k_proj: Any
        self.v_proj: Any
        self.out_proj: nn.Module

    @property
    def _projections(self) -> list[Any]:
        return [self.q_proj, self.k_proj, self.v_proj]

    @property
    @made_to_be_read
    def in_proj_weight(self) -> Tensor | None:
        """(3·width, width), None where keys or values have another width; refuses to be written to."""
        if self.kdim != self.embed_dim or self.vdim != self.embed_dim:
            return None
        return weight_of(Joined(), [project.weight for project in self._projections])

    @property
    @made_to_be_read
    def in_proj_bias(self) -> Tensor | None:
        """(3·width), zeros where one has none, None where no one has any; refuses to be written to."""
        biases = [project.bias for project in self._projections]
        if all(bias is None for bias in biases):
            return None
        zeros = next(bias for bias in biases if bias is not None).new_zeros(self.embed_dim)
        return guarded(torch.cat([zeros if bias is None else bias for bias in biases]))

    @property
    def q_proj_weight(self) -> Any:
        return self.q_proj.weight

    @property
    def k_proj_weight(self) -> Any:
        return self.k_proj.weight

    @property
    def v_proj_weight(self) -> Any:
        return self.v_proj.weight

    @property
    def kdim(self) -> int:
        return int(self.k_proj.in_features)

    @property
    def vdim(self) -> int:
        return int(self.v_proj.in_features)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``torch.nn.MultiheadAttention.forward``: same arguments, shapes and result."""
        # (length, batch, width) throughout, as the built-in module: dropout behind it then draws in the same order
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True also needs attn_mask, as in torch.nn.MultiheadAttention")
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, drop) if drop else weights
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        out = self.out_proj(heads.permute(2, 0, 1, 3).flatten(2))
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return (out.transpose(0, 1) if self.batch_first else out), weights

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        masks = []
        if attn_mask is not None:
            mask = self._additive(attn_mask, q)
            masks.append(mask.unflatten(0, (-1, self.num_heads)) if mask.dim() == 3 else mask)
        if key_padding_mask is not None:
            masks.append(self._additive(key_padding_mask, q)[:, None, None, :])
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]

    @staticmethod
    def _additive(mask: Tensor, q: Tensor) -> Tensor:
        if mask.dtype == torch.bool:
            return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
        return mask.to(q.dtype)

    def extra_repr(self) -> str:
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"
