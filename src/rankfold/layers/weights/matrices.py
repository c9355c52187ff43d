"""Matrices of low rank: as a pair of factors, and as some of their rows with what makes the others of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.layers.weights.products import low_rank_matrix
from rankfold.layers.weights.rule import Factors, Thin, biased, long, of_linear

_RIGHT = {"matmul", "mm", "__matmul__", "mv"}


def _takes(name: str, x: Tensor, axis: int, size: int) -> bool:
    """Whether torch takes ``x`` in a product of this name that sums over ``size``: what it refuses is left to it."""
    dims = {"mm": (2,), "addmm": (2,), "mv": (1,)}.get(name)
    return (x.dim() > 0 if dims is None else x.dim() in dims) and long(x, axis, size)


def _sum(result: Tensor, added: Tensor) -> Tensor:
    return result + added.to(result.dtype)


@dataclass(frozen=True)
class Matrix:
    """W (m, n) = left·right, factors (right (r, n), left (m, r))."""

    def shape(self, factors: Factors) -> tuple[int, ...]:
        right, left = factors
        return left.shape[0], right.shape[1]

    def dense(self, factors: Factors) -> Tensor:
        return low_rank_matrix(*factors)

    def turned(self) -> Matrix:
        return self

    def onward(self, x: Tensor, factors: Factors, bias: Tensor | None = None) -> Tensor:
        """x Wᵀ + bias."""
        right, left = factors
        return F.linear(F.linear(x, right), left, bias)

    def back(self, x: Tensor, factors: Factors) -> Tensor:
        """x W."""
        right, left = factors
        return x @ left @ right

    def thin(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any) -> Thin | None:
        if func is F.linear:
            if (given := of_linear(args, kwargs, weight)) is None:
                return None
            return Thin(given[0], lambda x, f: self.onward(x, f, given[1]))
        name = getattr(func, "__name__", "")
        if kwargs:
            return None
        m, n = weight.shape[-2:]
        if name == "addmm" and len(args) == 3 and args[2] is weight and args[1] is not weight and args[0] is not weight:
            if args[0].dim() > 2 or not _takes(name, args[1], -1, m):
                return None
            return Thin(args[1], lambda x, f: _sum(self.back(x, f), args[0]), 1)
        if name == "__rmatmul__" and len(args) == 2:
            name, args = "__matmul__", (args[1], args[0])
        if name not in _RIGHT or len(args) != 2 or args[0] is args[1]:
            return None
        if args[1] is weight:
            return Thin(args[0], self.back, 1) if name != "mv" and _takes(name, args[0], -1, m) else None
        if not _takes(name, args[1], -min(args[1].dim(), 2), n):
            return None
        if args[1].dim() == 1:  # W·x
            return Thin(args[1], self.onward)
        return Thin(args[1], lambda x, f: self.onward(x.mT, f).mT)


@dataclass(frozen=True, eq=False)
class PivotedMatrix(Matrix):
    """W (m, n) = P [I; C] B, factors (B (r, n), C (m − r, r)); ``order`` (m): which row of [B; C B] each row is.

    ``across``: the transposed weight (n, m), factors (Cᵀ, Bᵀ).
    """

    order: Tensor
    across: bool = False

    def _stored(self, factors: Factors) -> Factors:
        return (factors[1].mT, factors[0].mT) if self.across else factors

    def shape(self, factors: Factors) -> tuple[int, ...]:
        m, n = len(self.order), self._stored(factors)[0].shape[1]
        return (n, m) if self.across else (m, n)

    def dense(self, factors: Factors) -> Tensor:
        rows, rest = self._stored(factors)
        matrix = torch.cat([rows, rest @ rows]).index_select(0, self.order)
        return matrix.mT if self.across else matrix

    def turned(self) -> PivotedMatrix:
        return PivotedMatrix(self.order, not self.across)

    def onward(self, x: Tensor, factors: Factors, bias: Tensor | None = None) -> Tensor:
        result = self._condensed(x, factors) if self.across else self._completed(x, factors)
        return biased(result, bias)

    def back(self, x: Tensor, factors: Factors) -> Tensor:
        return self._completed(x, factors) if self.across else self._condensed(x, factors)

    def _completed(self, x: Tensor, factors: Factors) -> Tensor:
        rows, rest = self._stored(factors)
        z = F.linear(x, rows)
        return torch.cat([z, F.linear(z, rest)], -1).index_select(-1, self.order)

    def _condensed(self, x: Tensor, factors: Factors) -> Tensor:
        rows, rest = self._stored(factors)
        x = x.index_select(-1, self.order.argsort())
        return (x[..., : len(rows)] + x[..., len(rows) :] @ rest) @ rows
