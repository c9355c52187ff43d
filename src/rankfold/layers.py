"""The factored layers: plain modules, each with a read-only ``weight`` and ``bias`` of the dense layer they stand for.

Some callers (``nn.TransformerEncoderLayer``, T5) read ``layer.weight`` instead of calling the layer; the read-only
properties keep such code right, at the price of multiplying the factors out at each read.
Parameters are named ``down`` (n → r), ``core`` where there is one, and ``up`` (r → m, which carries the bias).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """``x ↦ x·downᵀ·upᵀ + bias``: a linear layer of rank r with r·(m + n) weights.

    Shapes: ``down.weight`` (r, n), ``up.weight`` (m, r), ``up.bias`` (m) or None.
    """

    def __init__(self, in_features: int, rank: int, out_features: int, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        self.in_features, self.rank, self.out_features = in_features, rank, out_features
        self.down = nn.Linear(in_features, rank, bias=False, **factory)
        self.up = nn.Linear(rank, out_features, bias=bias, **factory)

    @property
    def weight(self) -> Tensor:
        """The dense weight (m, n); computed at each read."""
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, input: Tensor) -> Tensor:  # named as in nn.Linear: callers may
        return self.up(self.down(input))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class FactoredConv(nn.Module):
    """A convolution as a chain of cheaper ones, run in order; subclasses say how the factors form the kernel.

    ``groups`` and ``transposed`` of the convolution it stands for, which may itself be a stage of another.
    """

    groups = 1
    transposed = False

    def __init__(self, stages: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.get_submodule("up"), "bias")  # noqa: B009  # a submodule, so its type is unknown

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``output_size`` as in ``nn.ConvTranspose2d``, for a transposed convolution."""
        for stage in self.children():
            sized = output_size is not None and getattr(stage, "transposed", False)
            input = stage(input, output_size) if sized else stage(input)
        return input


class LowRankConv(FactoredConv):
    """A k×k (transposed) convolution to r channels, then 1×1 to the outputs. Exact at full rank for every setting."""

    down: Any
    up: Any

    @property
    def groups(self) -> int:  # type: ignore[override]
        return self.down.groups

    @property
    def transposed(self) -> bool:  # type: ignore[override]
        return self.down.transposed

    @property
    def weight(self) -> Tensor:
        """The dense kernel, shaped as in the layer it stands for; computed at each read."""
        up, down = self.up.weight.flatten(1), self.down.weight
        groups = self.groups
        up_blocks = up.reshape(groups, -1, up.shape[1])
        if self.transposed:
            blocks = down.reshape(groups, down.shape[0] // groups, *down.shape[1:])
            return torch.einsum("gor,gcr...->gco...", up_blocks, blocks).flatten(0, 1)
        blocks = down.reshape(groups, -1, *down.shape[1:])
        return torch.einsum("gor,grc...->goc...", up_blocks, blocks).flatten(0, 1)


class SpatialConv2d(FactoredConv):
    """A k_h×1 convolution to r channels, then 1×k_w to the outputs: r·(C_in·k_h + C_out·k_w) weights."""

    down: nn.Conv2d
    up: nn.Conv2d

    @property
    def weight(self) -> Tensor:
        return torch.einsum("orj,rci->ocij", self.up.weight[:, :, 0], self.down.weight[..., 0])


class TuckerConv(FactoredConv):
    """Tucker-2: 1×1 to r_in channels, the k×k core, 1×1 to the outputs."""

    down: Any
    core: Any
    up: Any

    @property
    def weight(self) -> Tensor:
        up, down = self.up.weight.flatten(1), self.down.weight.flatten(1)
        return torch.einsum("op,pq...,qc->oc...", up, self.core.weight, down)


class CPConv(FactoredConv):
    """CP: 1×1 to r channels, one depthwise convolution along each axis, 1×1 to the outputs."""

    @property
    def weight(self) -> Tensor:
        stages: list[Any] = list(self.children())
        kernel = stages[0].weight.flatten(1)  # (r, C_in)
        for axis, stage in enumerate(stages[1:-1]):
            line = stage.weight.flatten(1)  # (r, k)
            kernel = kernel.unsqueeze(-1) * line.reshape(line.shape[0], *([1] * (axis + 1)), line.shape[1])
        return torch.einsum("or,r...->o...", stages[-1].weight.flatten(1), kernel)


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` with q, k, v and output projections as four ordinary linear layers.

    The built-in module keeps its projections in one parameter and reads the output projection's weight without
    calling it, so nothing can be hooked or factored there. This one computes the same (same arguments, same result,
    same state of training) through submodules. ``in_proj_bias`` is None so that ``nn.TransformerEncoderLayer`` calls
    it instead of its fused kernel.
    """

    in_proj_bias = None
    in_proj_weight = None
    bias_k = None
    bias_v = None
    add_zero_attn = False
    _qkv_same_embed_dim = False

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, batch_first: bool = False) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.dropout, self.batch_first = dropout, batch_first
        self.q_proj: nn.Module
        self.k_proj: nn.Module
        self.v_proj: nn.Module
        self.out_proj: nn.Module

    @property
    def kdim(self) -> int:
        return self.k_proj.in_features  # type: ignore[return-value]

    @property
    def vdim(self) -> int:
        return self.v_proj.in_features  # type: ignore[return-value]

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
            raise ValueError("is_causal=True needs attn_mask too, as in torch.nn.MultiheadAttention")
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
