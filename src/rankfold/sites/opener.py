"""How a kind of module that hides its matrices is taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Opener:
    """``takes(module)``: whether it is of the kind; ``why_not(module)``: why this one stays in one piece, or None;
    ``split(module)``: the same computation by layers that hold one matrix each, sharing its storage, its hooks and its
    mode."""

    takes: Callable[[nn.Module], bool]
    why_not: Callable[[Any], str | None]
    split: Callable[[Any], nn.Module]


def linear(weight: Tensor, bias: Tensor | None, requires_grad: bool = True) -> nn.Linear:
    """A linear layer of these very tensors; parameters stay the objects that they are."""
    m, n = weight.shape
    made = nn.Linear(n, m, bias=bias is not None, device="meta")
    made.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad)
    if bias is not None:
        made.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad)
    return made
