"""How a kind of module that hides its matrices is taken apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankfold.sites.hooks import carry_hooks_


@dataclass(frozen=True)
class Opener:
    """``takes(module)``: whether it is of the kind; ``why_not(module)``: why this one stays in one piece, or None;
    ``split(module)``: the same computation by layers that hold one matrix each, sharing its storage, its hooks and its
    mode. ``cut(module)``: the parameters of which its layers hold pieces, each a parameter of its own."""

    takes: Callable[[nn.Module], bool]
    why_not: Callable[[Any], str | None]
    split: Callable[[Any], nn.Module]
    cut: Callable[[Any], Sequence[nn.Parameter]] = lambda module: ()


def carry_(old: nn.Module, new: nn.Module) -> nn.Module:
    """``new`` with the hooks, the mode and the settings of ``old``, which code of a model's own may read."""
    for name, value in vars(old).items():
        if not name.startswith("_") and name not in vars(new) and not hasattr(type(new), name):
            setattr(new, name, value)
    carry_hooks_(old, new)
    return new.train(old.training)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these very tensors; parameters stay the objects that they are."""
    m, n = weight.shape
    made = nn.Linear(n, m, bias=bias is not None, device="meta")
    made.weight = _parameter(weight)
    if bias is not None:
        made.bias = _parameter(bias)
    return made


def _parameter(tensor: Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach(), tensor.requires_grad)
