"""Measurements that are computed a block at a time, as often as they are asked for: of entries that lie in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Block:
    """Some neighbouring ``rows`` of a matrix and their ``entries``, which lie one after the other; of a part of what is
    stored these are among ``stored``."""

    rows: slice
    entries: slice
    stored: slice


class Lazy:
    """(count,) numbers, ``of`` a block of ``blocks``: added, scaled and multiplied without being held.

    Every use of them is a pass over the entries; the norm is computed once.
    """

    __array_ufunc__ = None  # so that a number times this asks __rmul__
    ndim = 1

    def __init__(self, blocks: Sequence[Block], of: Callable[[Block], np.ndarray], dtype: Any) -> None:
        self.blocks, self.of, self.dtype = blocks, of, np.dtype(dtype)
        self.shape = (blocks[-1].entries.stop if blocks else 0,)
        self._norm: float | None = None

    def _with(self, other: Any, join: Callable[[Any, Any], np.ndarray]) -> Lazy:
        one = self.of
        if isinstance(other, Lazy):
            two = other.of
            return Lazy(
                self.blocks, lambda block: join(one(block), two(block)), np.result_type(self.dtype, other.dtype)
            )
        return Lazy(self.blocks, lambda block: join(one(block), other), self.dtype)

    def __add__(self, other: Any) -> Lazy:
        return self._with(other, np.add)

    def __sub__(self, other: Any) -> Lazy:
        return self._with(other, np.subtract)

    def __mul__(self, other: Any) -> Lazy:
        return self._with(other, np.multiply)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Lazy:
        return self._with(other, np.divide)

    def astype(self, dtype: Any) -> Lazy:
        of = self.of
        return Lazy(self.blocks, lambda block: of(block).astype(dtype), dtype)

    def __matmul__(self, other: Lazy) -> float:
        """Σ of the products."""
        return sum(float(self.of(block) @ other.of(block)) for block in self.blocks)

    def norm(self) -> float:
        if self._norm is None:
            self._norm = sum(float(np.linalg.norm(self.of(block))) ** 2 for block in self.blocks) ** 0.5
        return self._norm
