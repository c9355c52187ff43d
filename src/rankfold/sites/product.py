"""A weight that is a product of matrices: torch's parametrization, and how to recognise a layer that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rankfold.forms.geometry import Matricization
from rankfold.linalg.balanced import free_factors
from rankfold.linalg.chain import cheapest_order, multiply

_TINY = 1e-30  # a norm that is divided by


class Product(nn.Module):
    """W = R_1 R_2 … R_N, R_i (``sizes[i−1]``, ``sizes[i]``), or (groups, …), read as a parameter of ``shape``.

    ``forward`` and ``right_inverse``, which torch calls for ``layer.weight = …``, are each other's inverse: the second
    gives the balanced factors, of equal norm and least sum of squares (LoRITa, Proposition 4.2), of zeros those that
    can leave zero; ``ValueError`` for what the factors cannot hold. ``macs``: multiply-adds of forming W, in the
    cheapest order.
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
        if tuple(weight.shape) != self.shape:
            raise ValueError(
                f"this weight is a product of factors and has the shape {self.shape}: it cannot become one of the "
                f"shape {tuple(weight.shape)}"
            )
        matrix = self.geometry.matrix(weight)
        factors = free_factors(matrix, self.sizes, torch.Generator().manual_seed(0))
        if min(self.sizes) < min(matrix.shape[-2:]):
            lost = float((multiply(factors, self.order) - matrix).norm() / matrix.norm().clamp_min(_TINY))
            if lost > torch.finfo(matrix.dtype).eps ** 0.5:
                raise ValueError(
                    f"this weight is a product of factors that hold rank {min(self.sizes)}, and what is assigned to "
                    f"it would lose {lost:.2g} of its norm: give one of that rank, or fold the model first "
                    "(rankfold.fold_)"
                )
        return factors

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


PARAMETRIZED = "parametrized: remove that first (torch.nn.utils.parametrize.remove_parametrizations)"


def why_anew(module: nn.Module) -> str | None:
    """Why something else than a product computes a parameter of this very module anew at every call, or None."""
    if other_parametrizations(module) or isinstance(module, parametrize.ParametrizationList):
        return PARAMETRIZED
    held = (name.rpartition("_")[0] for name in module._parameters if name.endswith(("_g", "_orig")))
    made = [name for name in held if name not in module._parameters and hasattr(module, name)]
    if any(f"{name}_mask" in module._buffers for name in made):
        return "pruned by a mask at every call: make that final first (torch.nn.utils.prune.remove)"
    if made:
        return "weight_norm or spectral_norm: remove it first, as it computes the weight anew at every call"
    return None


def factors_of(module: nn.Module, parameter: str) -> list[nn.Parameter]:
    """R_1, …, R_N of a parameter that is a product."""
    lists: Any = module.parametrizations
    return [getattr(lists[parameter], f"original{i}") for i in range(lists[parameter].ntensors)]


def ordinary_class(module: nn.Module) -> type[nn.Module]:
    """The class of a layer as its author wrote it, with or without products in place of its weights."""
    return getattr(type(module), "ordinary_class", type(module))
