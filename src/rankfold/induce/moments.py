"""What an optimizer remembers of a core, when the bases around the core change."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from rankfold.linalg.manifold.tangent import Turn, wide

SQUARED = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta"})  # means of squared gradients


def turn_(state: MutableMapping[str, Any], before: torch.Size, turn: Turn) -> None:
    """Moments of a core that had the shape ``before`` turn with its bases; of squares, those of new directions begin
    at the mean. What is kept by rows and columns (Adafactor) cannot turn, and begins anew."""
    if any(isinstance(value, Tensor) and value.dim() and value.shape != before for value in state.values()):
        state.clear()
    mean = state.get("grad_avg")  # of RMSprop, centered: squares must stay above those of the mean, whose root is taken
    if mean is not None:
        state["square_avg"] = (state["square_avg"] - mean.square()).clamp_min(0)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            turned = _squared(turn, value) if key in SQUARED else turn.linear(wide(value))
            state[key] = turned.to(value)
    if mean is not None:
        least = 1 + 4 * torch.finfo(mean.dtype).eps
        state["square_avg"] = state["square_avg"] + least * state["grad_avg"].square()


def _squared(turn: Turn, value: Tensor) -> Tensor:
    turned, before = turn.squared(wide(value)), value.shape
    if turned.shape == before:
        return turned
    new = torch.ones_like(turned, dtype=torch.bool)
    new[: before[0], : before[1]] = False
    return torch.where(new, value.mean().to(turned), turned)
