"""Low-rank layers that store r of their rows, and the others as combinations of them: r·(m + n − r) weights.

The pair n → r → m whose second factor begins with the identity, which is neither stored nor multiplied by; what the
layer gives is then put into the order that the dense layer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rankfold.layers.convolution import LowRankConv
from rankfold.layers.linear import LowRankConv1D, LowRankLinear
from rankfold.layers.weights.kernels import PivotedPair
from rankfold.layers.weights.matrices import PivotedMatrix
from rankfold.layers.weights.products import completed, low_rank_kernel
from rankfold.layers.weights.reading import made_to_be_read
from rankfold.layers.weights.weight import guarded, weight_of


class Completion(nn.Module):
    """``z ↦ [z; rest(z)]`` in the order of the outputs, plus a bias: the second factor of a pivoted layer.

    ``rest``: a linear layer or 1×1 convolution without bias, from the ``groups`` times r rows that are computed to all
    others. ``order`` (m), int32: where each output stands in [z; rest(z)]. ``bias`` (m) or None.
    """

    if TYPE_CHECKING:  # for readers alone: TorchScript takes annotations of a class for attributes of its own
        order: Tensor
        rest: Any

    def __init__(self, rest: nn.Module, rank: int, groups: int = 1, bias: bool = True, **factory: Any) -> None:
        super().__init__()
        weight: Any = rest.weight
        size = groups * rank + len(weight)
        self.rest = rest
        self.rank, self.groups = rank, groups
        self.axis: int = 1 - weight.dim()  # counted from the last, as inputs may be single samples
        self.out_channels = self.out_features = size
        self.bias = nn.Parameter(torch.empty(size, **factory)) if bias else None
        self.register_buffer("order", torch.empty(size, dtype=torch.int32, device=factory.get("device")))

    @property
    def weight(self) -> Tensor:
        """The second factor itself, (m, r), or (m, r, 1, …) of a convolution: the identity where rows are computed.

        Formed at each read; refuses to be written to."""
        made = completed(self.rest.weight, self.order, self.groups)
        return made if torch.jit.is_scripting() else guarded(made)

    def forward(self, input: Tensor) -> Tensor:
        output = torch.cat([input, self.rest(input)], self.axis).index_select(self.axis, self.order)
        if self.bias is None:
            return output
        bias = self.bias.to(output.dtype)  # autocast computes in less than the bias is stored in
        return output + bias.reshape([-1] + [1] * (-1 - self.axis))

    def extra_repr(self) -> str:
        return f"rows={self.groups * self.rank}, outputs={self.out_features}, bias={self.bias is not None}"


def misplaced(root: nn.Module, state: Mapping[str, Tensor]) -> str:
    """One line where an order in ``state``, which ``root`` is to be filled with, picks rows that a layer does not have,
    or one of them twice; "" where none does. Files may hold any numbers."""
    for name, module in root.named_modules():
        if isinstance(module, Completion):
            key = f"{name}.order".lstrip(".")
            order, size = state[key], module.groups * module.rank + len(module.rest.weight)
            if order.is_meta:
                continue
            if bool(((order < 0) | (order >= size)).any()) or len(order.unique()) < len(order):
                return f"{key} must name {len(order)} different rows from 0 to {size - 1}, and does not"
    return ""


class _Pivoted(LowRankLinear):
    def _second(self, bias: bool, factory: dict[str, Any]) -> nn.Module:
        rest = nn.Linear(self.rank, self.out_features - self.rank, bias=False, **factory)
        return Completion(rest, self.rank, bias=bias, **factory)

    def _product(self) -> Tensor:
        return weight_of(PivotedMatrix(self.up.order), (self.down.weight, self.up.rest.weight))


class PivotedLinear(_Pivoted):
    """A linear layer of rank r < m with r·(m + n − r) weights.

    Shapes: ``down.weight`` (r, n), the rows that are stored; ``up.rest.weight`` (m − r, r), what the others are made of
    them; ``up.order`` (m); ``up.bias`` (m) or None.
    """


class PivotedConv1D(_Pivoted, LowRankConv1D):
    """Stands for Hugging Face's ``Conv1D``, a linear layer that stores its weight transposed, (n, m)."""


class PivotedConv(LowRankConv):
    """A k×k convolution to r of the channels of each group, and 1×1 from these to the others.

    Shapes: ``down.weight`` (groups·r, C_in/groups, *k), ``up.rest.weight`` (C_out − groups·r, r, 1, …).
    """

    @property
    def weight(self) -> Tensor:
        """The dense kernel, shaped as in the layer it stands for, as a ``FactoredWeight`` (docs/layers.md)."""
        if torch.jit.is_scripting():
            return low_rank_kernel(self.down.weight, self.up.weight, self.groups, self.transposed)
        return _kernel(self)


@torch.jit.unused
@made_to_be_read
def _kernel(layer: Any) -> Tensor:
    rule = PivotedPair(layer.groups, order=layer.up.order)
    return weight_of(rule, (layer.down.weight, layer.up.rest.weight))
