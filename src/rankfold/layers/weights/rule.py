"""How factors form a weight: its shape, the product, and the operations that need no product.

A rule is a value without tensors. ``factors`` are always in the order in which the data meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Factors = Sequence[Tensor]
Operation = Callable[[Tensor, Factors], Tensor]
"""What is left of a call when its weight is taken away: from (input, factors) to the result."""


class Rule(Protocol):
    """One structure of a weight."""

    def shape(self, factors: Factors) -> tuple[int, ...]: ...
    def dense(self, factors: Factors) -> Tensor:
        """The weight, differentiable."""
        ...

    def thin(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any) -> Thin | None:
        """How ``func(*args, **kwargs)``, in which ``weight`` stands for the product, is done on thin matrices.

        None where only the product will do.
        """
        ...

    def turned(self) -> Rule | None:
        """The rule of the transposed weight, whose factors are transposed and in reverse; None if it has none."""
        ...


@dataclass(frozen=True)
class Thin:
    """An operation on ``input``, which may be done on the factors one by one.

    ``output_axis``: which axis of the weight the outputs lie along; the other one is summed over.
    """

    input: Tensor
    run: Operation
    output_axis: int = 0


def arguments(args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """What a function of torch was given under each of ``names``, by place or by name; None where nothing."""
    given = dict(zip(names, args)) | dict(kwargs)
    return [given.get(name) for name in names]


def of_linear(args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any) -> tuple[Tensor, Tensor | None] | None:
    """(input, bias) of ``F.linear``, in which ``weight`` stands for the weight alone; None of one that torch refuses,
    so that it does that itself, and of one with a bias for each sample."""
    x, given, bias = arguments(args, kwargs, ("input", "weight", "bias"))
    if given is not weight or x is weight or bias is weight or x is None:
        return None
    m, n = weight.shape[-2:]
    whole = bias is None or (bias.dim() == 1 and long(bias, -1, m))
    return (x, bias) if whole and x.dim() > 0 and long(x, -1, n) else None


def long(x: Tensor, axis: int, size: int) -> bool:
    """Whether ``x`` has this size along an axis; taken for granted while torch traces, which notes what is compared."""
    return torch.jit.is_tracing() or x.shape[axis] == size


def biased(result: Tensor, bias: Tensor | None, axis: int = -1) -> Tensor:
    """``result`` plus a bias along an axis counted from the last, in the dtype of the result: autocast computes in less
    than the bias is stored in."""
    return result if bias is None else result + bias.to(result.dtype).reshape([-1] + [1] * (-1 - axis))
