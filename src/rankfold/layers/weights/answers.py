"""What a weight of factors answers where its product could not: it has no memory, and no gradient of its own."""

from __future__ import annotations

import copy
import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor

from rankfold.layers.weights.errors import FactoredWriteError


def stored_in(factor: Tensor) -> Tensor:
    """The tensor that holds a factor: of a turned one the parameter that it is a view of."""
    return factor if factor._base is None else factor._base


def _requires_grad(weight: Any) -> bool:
    return any(stored_in(f).requires_grad for f in weight.factors)


def _set_requires_grad(weight: Any, value: bool = True) -> Any:
    if value and any(getattr(type(f), "computed", False) for f in weight.factors):
        raise FactoredWriteError(
            "the factors of this weight are stored as whole numbers, which no training moves: compress in other forms "
            "(forms= without int8 and residual)"
        )
    for factor in weight.factors:
        stored_in(factor).requires_grad_(value)
    return weight


def _grad(weight: Any) -> None:
    if any(stored_in(f).grad is not None for f in weight.factors):
        warnings.warn(
            "the weight of a factored layer is made anew at each read and gathers no gradient, so that its .grad is "
            "None: gradients are those of the factors (layer.down.weight.grad and those of the layer's other "
            "parameters)",
            stacklevel=3,
        )


def _share_memory(weight: Any) -> Any:
    for factor in weight.factors:
        stored_in(factor).share_memory_()
    return weight


def _stand_in(weight: Any) -> Tensor:
    """A tensor of the weight's size without memory."""
    return torch.empty(weight.rule.shape(weight.factors), dtype=weight.dtype, device="meta")


def _no_memory(weight: Any, *args: Any) -> NoReturn:
    raise RuntimeError(
        "the weight of a factored layer has no memory of its own: take the memory of its factors (layer.down.weight "
        "and the other parameters of the layer), or multiply it out first (layer.weight.clone())"
    )


def _no_hook(weight: Any, *args: Any, **kwargs: Any) -> NoReturn:
    raise FactoredWriteError(
        "a hook on a factored layer's weight would never be called, since the weight is made anew at each read: "
        "register it on the factors (layer.down.weight and the other parameters of the layer)"
    )


def _deepcopy(weight: Any, memo: dict[int, Any] | None = None) -> Tensor:
    made = weight.product().detach().clone().requires_grad_(_requires_grad(weight))
    if memo is not None:
        memo[id(weight)] = made
    return made


ANSWERS: dict[str, Any] = {
    "requires_grad.get": _requires_grad,
    "requires_grad.set": _set_requires_grad,
    "requires_grad_": _set_requires_grad,
    "layout.get": lambda weight: torch.strided,
    "is_sparse.get": lambda weight: False,
    "stride": lambda weight, *axis: _stand_in(weight).stride(*axis),
    "is_contiguous": lambda weight, **format: _stand_in(weight).is_contiguous(**format),
    "storage_offset": lambda weight: 0,
    "nbytes.get": lambda weight: weight.numel() * weight.element_size(),
    "is_leaf.get": lambda weight: False,
    "grad.get": _grad,
    "retains_grad.get": lambda weight: False,
    "is_shared": lambda weight: all(stored_in(f).is_shared() for f in weight.factors),
    "share_memory_": _share_memory,
    "data_ptr": _no_memory,
    "untyped_storage": _no_memory,
    "storage": _no_memory,
    "register_hook": _no_hook,
    "register_post_accumulate_grad_hook": _no_hook,
    "retain_grad": _no_hook,
    "__deepcopy__": _deepcopy,
    "__reduce_ex__": lambda weight, protocol: copy.copy(weight.product().detach()).__reduce_ex__(protocol),
    "__iter__": lambda weight: iter(weight.unbind(0)),
}
