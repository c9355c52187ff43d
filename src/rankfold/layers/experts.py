"""Mixtures of experts as two matrices: what enters all experts, and what leaves them.

The matrices of the first step lie below one another, (experts·width, n), for they read one token; those of the second
side by side, (m, experts·inner), for their outputs are summed. At low rank the first product of the one and the last of
the other are the same for all experts, and run once for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.layers.weights.reading import made_to_be_read
from rankfold.layers.weights.refuse import RefusesWeight
from rankfold.layers.weights.scripting import EXCLUDED, Traced
from rankfold.layers.weights.weight import guarded


class SplitExperts(Traced):
    """The experts of a transformers model, with ``enter`` and ``leave`` as layers of their own; same call, same result.

    ``gate(self, x)``: what stands between the two; what it reads of ``self`` is set on this module. ``enter_bias``
    (experts, width) and ``leave_bias`` (experts, m), or None. ``stored``: which of these an attribute of the experts
    was, for code of the model's own that reads it.
    """

    unscripted = ("whose matrices are layers of their own", f"the layer {EXCLUDED}")

    def __init__(
        self,
        gate: Callable[[Any, Tensor], Tensor],
        experts: int,
        enter_bias: nn.Parameter | None = None,
        leave_bias: nn.Parameter | None = None,
        stored: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.gate, self.num_experts = gate, experts
        self.enter_bias, self.leave_bias = enter_bias, leave_bias
        self.stored = dict(stored or {})
        self.enter: nn.Module
        self.leave: nn.Module

    def __getattr__(self, name: str) -> Any:
        inside = vars(self).get("stored", {}).get(name)
        if inside is None:
            return super().__getattr__(name)
        part = getattr(self, inside)
        if not isinstance(part, nn.Module):
            return part
        turned = getattr(self, "is_transposed", False) and not isinstance(part, _Matrices)
        return part.weight.mT if turned else part.weight

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens (T, n), the experts of each (T, k), where ``num_experts`` is none, and their weights (T, k)."""
        inside = self.enter(hidden_states, top_k_index)
        if self.enter_bias is not None:
            inside = inside + _of_experts(self.enter_bias, top_k_index)
        weights = top_k_weights.unsqueeze(-1).to(inside.dtype)
        found = self.leave(self.gate(self, inside) * weights, top_k_index)
        if self.leave_bias is None:
            return found
        return found + (_of_experts(self.leave_bias, top_k_index) * weights).sum(1)


class _Matrices(nn.Module):
    """A matrix for each expert: ``weight`` (experts, outputs, inputs), or ``transposed`` (experts, inputs, outputs)."""

    def __init__(self, weight: nn.Parameter, transposed: bool = False) -> None:
        super().__init__()
        self.weight, self.transposed = weight, transposed

    @property
    def matrices(self) -> Tensor:
        """(experts, outputs, inputs), however they are stored."""
        return self.weight.mT if self.transposed else self.weight


class Enter(_Matrices):
    """x (T, n), index (T, k) ↦ W_e x for the k experts e of each token, (T, k, width)."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return spread(x, index, self.matrices)


class Leave(_Matrices):
    """a (T, k, inner), index (T, k) ↦ Σ_k W_e a, (T, m)."""

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return routed(x, index, self.matrices).sum(1)


class LowRankEnter(RefusesWeight, nn.Module):
    """One ``down`` (r, n) for all experts, run once for each token, and ``up`` (experts, width, r)."""

    bias = None

    def __init__(self, experts: int, width: int, rank: int, inputs: int, **factory: Any) -> None:
        super().__init__()
        self.rank = rank
        self.down = nn.Linear(inputs, rank, bias=False, **factory)
        self.up = Enter(nn.Parameter(torch.empty(experts, width, rank, **factory)))

    @property
    @made_to_be_read
    def weight(self) -> Tensor:
        """The dense weight (experts, width, n), formed at each read; refuses to be written to."""
        return guarded(self.up.weight @ self.down.weight)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.up(self.down(x), index)


class LowRankLeave(RefusesWeight, nn.Module):
    """``down`` (experts, r, inner), and one ``up`` (m, r) for all experts, run once for each token."""

    bias = None

    def __init__(self, experts: int, outputs: int, rank: int, inner: int, **factory: Any) -> None:
        super().__init__()
        self.rank = rank
        self.down = Leave(nn.Parameter(torch.empty(experts, rank, inner, **factory)))
        self.up = nn.Linear(rank, outputs, bias=False, **factory)

    @property
    @made_to_be_read
    def weight(self) -> Tensor:
        """The dense weight (experts, m, inner), formed at each read; refuses to be written to."""
        return guarded(self.up.weight @ self.down.weight)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.up(self.down(x, index))


def _of_experts(bias: Tensor, index: Tensor) -> Tensor:
    """The row of each expert (T, k) from ``bias`` (experts, m): (T, k, m); zeros of none, an index beyond the last."""
    return bias[index.clamp(max=len(bias) - 1)] * (index < len(bias)).unsqueeze(-1)


def spread(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """W_e x of every token (T, n) for its experts (T, k): (T, k, width)."""
    return routed(x.unsqueeze(1).expand(-1, index.shape[1], -1), index, weight)


def routed(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """W_e x of rows (T, k, n), each by the matrix of its expert (T, k), from ``weight`` (experts, m, n): (T, k, m).

    Rows of no expert (an index beyond the last) give zeros. The rows of each expert are one product; where shapes must
    be known beforehand, or there are no values, every row gets a copy of its matrix.
    """
    experts = weight.shape[0]
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta:
        copies = weight[index.clamp(max=experts - 1)]
        return (copies @ x.unsqueeze(-1)).squeeze(-1) * (index < experts).unsqueeze(-1)
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts + 1).tolist()
    parts = x.reshape(len(flat), x.shape[-1])[order].split(counts)
    made = [F.linear(part, matrix) for part, matrix in zip(parts, weight.unbind(0)) if len(part)]
    rest = sum(counts[experts:])
    if rest:
        made.append(x.new_zeros(rest, weight.shape[1]))
    whole = torch.cat(made) if made else x.new_zeros(0, weight.shape[1])
    return whole[order.argsort()].reshape(*index.shape, weight.shape[1])
