"""A weight that is a product of matrices: torch's parametrization, and how to recognise a layer that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rankfold.forms.geometry import Matricization
from rankfold.linalg.balanced import balanced_factors
from rankfold.linalg.chain import cheapest_order, multiply


class Product(nn.Module):
    """W = R_1 R_2 … R_N, R_i (``sizes[i−1]``, ``sizes[i]``), or (groups, …), read as a parameter of ``shape``.

    ``forward`` and ``right_inverse`` are each other's inverse: the second gives the balanced factors, of equal norm
    and least sum of squares (LoRITa, Proposition 4.2). ``macs``: multiply-adds of forming W, in the cheapest order.
    """

    def __init__(self, geometry: Matricization, shape: Sequence[int], sizes: Sequence[int], groups: int) -> None:
        super().__init__()
        self.geometry, self.shape, self.sizes = geometry, tuple(shape), tuple(sizes)
        macs, self.order = cheapest_order(sizes)
        self.macs = groups * macs

    def forward(self, *factors: Tensor) -> Tensor:
        return self.geometry.fold(self.shape, multiply(factors, self.order))

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        return balanced_factors(self.geometry.matrix(weight), len(self.sizes) - 1, self.sizes[1:-1])

    def extra_repr(self) -> str:
        return " · ".join(f"{m}×{n}" for m, n in zip(self.sizes, self.sizes[1:]))


def products(module: nn.Module) -> dict[str, Product]:
    """The parameters of this very module that are products, by name; empty for an ordinary layer."""
    if not parametrize.is_parametrized(module):
        return {}
    lists: Any = module.parametrizations
    return {name: steps[0] for name, steps in lists.items() if len(steps) == 1 and isinstance(steps[0], Product)}


def other_parametrizations(module: nn.Module) -> bool:
    """Whether something else than a product stands in place of one of its parameters."""
    return parametrize.is_parametrized(module) and len(products(module)) < len(module.parametrizations)  # type: ignore[arg-type]


def factors_of(module: nn.Module, parameter: str) -> list[nn.Parameter]:
    """R_1, …, R_N of a parameter that is a product."""
    lists: Any = module.parametrizations
    return [getattr(lists[parameter], f"original{i}") for i in range(lists[parameter].ntensors)]


def ordinary_class(module: nn.Module) -> type[nn.Module]:
    """The class of a layer as its author wrote it, with or without products in place of its weights."""
    return getattr(type(module), "ordinary_class", type(module))
