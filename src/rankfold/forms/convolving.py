"""Building blocks of factored convolutions, on the meta device: nothing is initialised, no random number is drawn."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from rankfold.forms.form import Call
from rankfold.forms.layer import Convolution
from rankfold.forms.setting import setting_of

PLAIN: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def places(conv: Convolution, call: Call) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """(batch, sizes of the input, sizes of the output) of one call."""
    dims = len(conv.kernel)
    batch = call.output[0] if len(call.output) == dims + 2 else 1
    return batch, call.input[-dims:], call.output[-dims:]


def kernel_macs(conv: Convolution, call: Call) -> int:
    """At how many places the kernel is applied in one call, all samples together."""
    batch, size_in, size_out = places(conv, call)
    return batch * prod(size_in if conv.transposed else size_out)


def factory(old: Any) -> dict[str, Any]:
    return {"device": "meta", "dtype": old.weight.dtype}


def setting(old: Any) -> dict[str, Any]:
    """Stride, padding, dilation and the rest of the convolution that is replaced."""
    own = setting_of(old)
    found = {"stride": own.stride, "padding": own.padding, "dilation": own.dilation, "padding_mode": own.padding_mode}
    return found | ({"output_padding": own.output_padding} if old.transposed else {})


def same(old: Any, dims: int, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> nn.Module:
    """A convolution of the old one's kernel and setting, between other numbers of channels."""
    kind: Any = (TRANSPOSED if old.transposed else PLAIN)[dims - 1]
    kernel = tuple(old.kernel_size)
    return kind(inputs, outputs, kernel, groups=groups, bias=bias, **setting(old), **factory(old))


def one_by_one(old: Any, dims: int, inputs: int, outputs: int, bias: bool = False, groups: int = 1) -> nn.Module:
    kind: Any = PLAIN[dims - 1]
    return kind(inputs, outputs, 1, bias=bias, groups=groups, **factory(old))


def along(old: Any, dims: int, axis: int, inputs: int, outputs: int, groups: int = 1, bias: bool = False) -> nn.Module:
    """A convolution along one axis, with the old one's setting on that axis and none on the others."""
    own = setting_of(old)
    alone: dict[str, Any] = {
        key: tuple(value[a] if a == axis else 1 for a in range(dims))
        for key, value in (("kernel_size", old.kernel_size), ("stride", own.stride), ("dilation", own.dilation))
    }
    padding = own.padding
    if not isinstance(padding, str):
        padding = tuple(padding[a] if a == axis else 0 for a in range(dims))
    kind: Any = PLAIN[dims - 1]
    return kind(
        inputs, outputs, padding=padding, padding_mode=own.padding_mode, groups=groups, bias=bias, **alone,
        **factory(old),
    )  # fmt: skip
