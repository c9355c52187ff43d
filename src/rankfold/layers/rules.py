"""How factors form a weight: its shape, the product, and the operations that need no product.

A rule is a value without tensors. ``factors`` are always in the order in which the data meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Factors = Sequence[Tensor]
Operation = Callable[[Tensor, Factors], Tensor]
"""What is left of a call when its weight is taken away: from (input, factors) to the result."""

PLAIN = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_RIGHT = {"matmul", "mm", "__matmul__", "mv"}


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
            x, given, bias = _arguments(args, kwargs, ("input", "weight", "bias"))
            if given is not weight or x is weight or bias is weight or x is None:
                return None
            return Thin(x, lambda x, f: self.onward(x, f, bias))
        name = getattr(func, "__name__", "")
        if kwargs:
            return None
        if name == "addmm" and len(args) == 3 and args[2] is weight and args[1] is not weight and args[0] is not weight:
            bias = args[0]
            return Thin(args[1], lambda x, f: bias + self.back(x, f), 1)
        if name == "__rmatmul__" and len(args) == 2:
            name, args = "__matmul__", (args[1], args[0])
        if name not in _RIGHT or len(args) != 2 or args[0] is args[1]:
            return None
        if args[1] is weight:
            return Thin(args[0], self.back, 1)
        if args[1].dim() == 1:  # W·x
            return Thin(args[1], self.onward)
        if args[1].dim() == 2:
            return Thin(args[1], lambda x, f: self.onward(x.mT, f).mT)
        return None


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
        return result if bias is None else result + bias

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


@dataclass(frozen=True)
class Kernel:
    """The kernel of a convolution as factors; subclasses say how. ``groups`` and ``transposed`` as of the layer."""

    groups: int = 1
    transposed: bool = False

    def shape(self, factors: Factors) -> tuple[int, ...]:
        raise NotImplementedError

    def dense(self, factors: Factors) -> Tensor:
        raise NotImplementedError

    def turned(self) -> None:
        return None

    def stages(self, x: Tensor, factors: Factors, bias: Tensor | None, at: Setting) -> Tensor:
        """The convolution of ``x`` by the factors one after the other."""
        raise NotImplementedError

    def thin(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Any) -> Thin | None:
        kinds = TRANSPOSED if self.transposed else PLAIN
        axes = weight.dim() - 2
        if not 1 <= axes <= 3 or func is not kinds[axes - 1]:
            return None
        names = _TRANSPOSED_NAMES if self.transposed else _PLAIN_NAMES
        x, given, bias, *rest = _arguments(args, kwargs, names)
        named = {name: value for name, value in zip(names[3:], rest, strict=True) if value is not None}
        if given is not weight or x is weight or bias is weight or named.pop("groups", 1) != self.groups:
            return None
        at = Setting(axes, **{key: _full(value, axes) for key, value in named.items()})
        return Thin(x, lambda x, f: self.stages(x, f, bias, at), 1 if self.transposed else 0)


@dataclass(frozen=True)
class Setting:
    """How a convolution slides, for each axis; as they are given to the functions of torch."""

    axes: int
    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | str | None = None
    dilation: tuple[int, ...] | None = None
    output_padding: tuple[int, ...] | None = None

    def whole(self) -> dict[str, Any]:
        found = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return {k: v for k, v in (found | {"output_padding": self.output_padding}).items() if v is not None}

    def along(self, axis: int) -> dict[str, Any]:
        """The setting on one axis, and none on the others."""

        def alone(value: tuple[int, ...] | None, neutral: int) -> tuple[int, ...]:
            return tuple(value[a] if value is not None and a == axis else neutral for a in range(self.axes))

        padding = self.padding if isinstance(self.padding, str) else alone(self.padding, 0)
        return {"stride": alone(self.stride, 1), "padding": padding, "dilation": alone(self.dilation, 1)}


@dataclass(frozen=True)
class Pair(Kernel):
    """k×k to r channels, then 1×1: factors (down, up) as ``LowRankConv`` stores them."""

    def shape(self, factors: Factors) -> tuple[int, ...]:
        down, up = factors
        if self.transposed:
            return down.shape[0], up.shape[0] // self.groups, *down.shape[2:]
        return up.shape[0], *down.shape[1:]

    def dense(self, factors: Factors) -> Tensor:
        return low_rank_kernel(factors[0], factors[1], self.groups, self.transposed)

    def stages(self, x: Tensor, factors: Factors, bias: Tensor | None, at: Setting) -> Tensor:
        down, up = factors
        first: Any = (TRANSPOSED if self.transposed else PLAIN)[at.axes - 1]
        last: Any = PLAIN[at.axes - 1]
        return last(first(x, down, groups=self.groups, **at.whole()), up, bias, groups=self.groups)


@dataclass(frozen=True, eq=False)
class PivotedPair(Pair):
    """k×k to the channels that are stored, then 1×1 to the others: factors (down, rest); ``order`` of the channels."""

    order: Tensor | None = None  # always given: a default because those before it have one

    def shape(self, factors: Factors) -> tuple[int, ...]:
        assert self.order is not None
        return len(self.order), *factors[0].shape[1:]

    def dense(self, factors: Factors) -> Tensor:
        assert self.order is not None
        return low_rank_kernel(factors[0], completed(factors[1], self.order, self.groups), self.groups, False)

    def stages(self, x: Tensor, factors: Factors, bias: Tensor | None, at: Setting) -> Tensor:
        assert self.order is not None
        down, rest = factors
        conv: Any = PLAIN[at.axes - 1]
        z = conv(x, down, groups=self.groups, **at.whole())
        y = torch.cat([z, conv(z, rest, groups=self.groups)], -1 - at.axes).index_select(-1 - at.axes, self.order)
        return y if bias is None else y + bias.reshape([-1] + [1] * at.axes)


@dataclass(frozen=True)
class Spatial(Kernel):
    """k_h×1 to r channels, then 1×k_w: factors (down, up)."""

    def shape(self, factors: Factors) -> tuple[int, ...]:
        down, up = factors
        return up.shape[0], down.shape[1], down.shape[2], up.shape[3]

    def dense(self, factors: Factors) -> Tensor:
        return spatial_kernel(*factors)

    def stages(self, x: Tensor, factors: Factors, bias: Tensor | None, at: Setting) -> Tensor:
        down, up = factors
        return F.conv2d(F.conv2d(x, down, **at.along(0)), up, bias, **at.along(1))


@dataclass(frozen=True)
class Tucker(Kernel):
    """1×1, the core, 1×1: factors (down, core, up)."""

    def shape(self, factors: Factors) -> tuple[int, ...]:
        down, core, up = factors
        return up.shape[0], down.shape[1], *core.shape[2:]

    def dense(self, factors: Factors) -> Tensor:
        return tucker_kernel(*factors)

    def stages(self, x: Tensor, factors: Factors, bias: Tensor | None, at: Setting) -> Tensor:
        conv: Any = PLAIN[at.axes - 1]
        return conv(conv(conv(x, factors[0]), factors[1], **at.whole()), factors[2], bias)


@dataclass(frozen=True)
class CP(Kernel):
    """1×1, one depthwise convolution along each axis, 1×1: factors (down, a line for each axis, up)."""

    def shape(self, factors: Factors) -> tuple[int, ...]:
        down, *lines, up = factors
        return up.shape[0], down.shape[1], *(line.shape[2 + axis] for axis, line in enumerate(lines))

    def dense(self, factors: Factors) -> Tensor:
        return cp_kernel(list(factors))

    def stages(self, x: Tensor, factors: Factors, bias: Tensor | None, at: Setting) -> Tensor:
        conv: Any = PLAIN[at.axes - 1]
        down, *lines, up = factors
        x = conv(x, down)
        for axis, line in enumerate(lines):
            x = conv(x, line, groups=line.shape[0], **at.along(axis))
        return conv(x, up, bias)


# ---- the products; free functions of tensors, so that TorchScript can compile them -------------------------------


def low_rank_matrix(down: Tensor, up: Tensor) -> Tensor:
    return up @ down


def completed(rest: Tensor, order: Tensor, groups: int) -> Tensor:
    """[I; C] in the order of the outputs, (m, r, …): of each group the identity, then C = ``rest``."""
    eye = torch.eye(rest.shape[1], dtype=rest.dtype, device=rest.device).repeat(groups, 1)
    while eye.dim() < rest.dim():  # 1×1 kernels
        eye = eye.unsqueeze(-1)
    return torch.cat([eye, rest]).index_select(0, order)


def low_rank_kernel(down: Tensor, up: Tensor, groups: int, transposed: bool) -> Tensor:
    left = up.flatten(1)
    left = left.reshape(groups, left.shape[0] // groups, left.shape[1])
    right = down.unflatten(0, [groups, down.shape[0] // groups])
    if transposed:
        return torch.einsum("gor,gcr...->gco...", left, right).flatten(0, 1)
    return torch.einsum("gor,grc...->goc...", left, right).flatten(0, 1)


def spatial_kernel(down: Tensor, up: Tensor) -> Tensor:
    return torch.einsum("orj,rci->ocij", up.select(2, 0), down.select(3, 0))


def tucker_kernel(down: Tensor, core: Tensor, up: Tensor) -> Tensor:
    return torch.einsum("op,pq...,qc->oc...", up.flatten(1), core, down.flatten(1))


def cp_kernel(factors: list[Tensor]) -> Tensor:
    kernel = factors[0].flatten(1)  # (r, C_in)
    for line in factors[1:-1]:
        flat = line.flatten(1)  # (r, k)
        shape = [flat.shape[0]] + [1] * (kernel.dim() - 1) + [flat.shape[1]]
        kernel = kernel.unsqueeze(-1) * flat.reshape(shape)
    return torch.einsum("or,r...->o...", factors[-1].flatten(1), kernel)


# ---- arguments of torch's functions ---------------------------------------------------------------------------------

_PLAIN_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    given = dict(zip(names, args)) | dict(kwargs)
    return [given.get(name) for name in names]


def _full(value: Any, axes: int) -> Any:
    """One number for each axis, of one number, of a sequence of one, or of a sequence."""
    if isinstance(value, str):
        return value
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
