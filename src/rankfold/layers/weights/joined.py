"""Weights of several layers as one, below one another: what code reads that knew them in one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.layers.weights.rule import Factors, Thin, of_linear


@dataclass(frozen=True)
class Joined:
    """W (Σ m_i, n), whose factors are the parts (m_i, n), which may be weights of factors themselves."""

    def shape(self, factors: Factors) -> tuple[int, ...]:
        return sum(len(part) for part in factors), factors[0].shape[1]

    def dense(self, factors: Factors) -> Tensor:
        return torch.cat(list(factors))

    def turned(self) -> None:
        return None

    def thin(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any) -> Thin | None:
        if func is not F.linear:
            return None
        if (given := of_linear(args, kwargs, weight)) is None:
            return None
        bias = given[1]

        def run(x: Tensor, parts: Factors) -> Tensor:
            whole = torch.cat([F.linear(x, part) for part in parts], -1)
            return whole if bias is None else whole + bias

        return Thin(given[0], run)
