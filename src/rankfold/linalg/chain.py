"""A chain of matrix products in its cheapest order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from torch import Tensor

Order = int | tuple["Order", "Order"]


def cheapest_order(sizes: Sequence[int]) -> tuple[int, Order]:
    """(multiply-adds, order) of the product of R_i (`sizes[i]`, `sizes[i + 1]`), i = 0, 1, …, as `multiply` takes it.

    An order is the index of a factor or a pair of orders. The classical dynamic programme, O(N³) for N factors;
    among equals the one that multiplies from the left. Raises `ValueError` for fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"a chain of products needs at least two sizes, got {list(sizes)}")

    @cache
    def best(first: int, last: int) -> tuple[int, Order]:
        if first == last:
            return 0, first
        found = []
        for cut in reversed(range(first, last)):
            left, right = best(first, cut), best(cut + 1, last)
            cost = left[0] + right[0] + sizes[first] * sizes[cut + 1] * sizes[last + 1]
            found.append((cost, (left[1], right[1])))
        return min(found, key=lambda choice: choice[0])

    return best(0, len(sizes) - 2)


def multiply(factors: Sequence[Tensor], order: Order) -> Tensor:
    """The product of `factors` (…, m, d), (…, d, n), … in `order`; differentiable, batches likewise."""
    if isinstance(order, int):
        return factors[order]
    left, right = order
    return multiply(factors, left) @ multiply(factors, right)
