"""Kernels of convolutions as factors, and the convolution by one factor after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.layers.weights.products import completed, cp_kernel, low_rank_kernel, spatial_kernel, tucker_kernel
from rankfold.layers.weights.rule import Factors, Thin, arguments, biased

PLAIN = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_PLAIN_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


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
        x, given, bias, *rest = arguments(args, kwargs, names)
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
        return biased(y, bias, -1 - at.axes)


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


def _full(value: Any, axes: int) -> Any:
    """One number for each axis, of one number, of a sequence of one, or of a sequence."""
    if isinstance(value, str):
        return value
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
