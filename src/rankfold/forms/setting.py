"""How a convolution slides, one number for each axis, however torch was told.

torch takes a stride, padding or dilation as a number, as one number for each axis, or as a sequence of one number, and
keeps what it was given. With a padding mode other than zeros it pads by a list of its own, in which a sequence of one
number, of padding or of dilation beside "same", pads one axis alone; that is what the layer computes, and so what is
read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """Each as long as the kernel has axes. ``pads``: what ``F.pad`` takes, last axis first, before and after."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    padding_mode: str
    pads: tuple[int, ...]


def setting_of(module: Any) -> Setting:
    """The setting of a convolution of torch."""
    kernel: tuple[int, ...] = tuple(module.kernel_size)
    axes = len(kernel)
    dilation = each(module.dilation, axes)
    padding = module.padding if isinstance(module.padding, str) else each(module.padding, axes)
    if module.padding_mode != "zeros":
        own = tuple(module._reversed_padding_repeated_twice)
        pads = own + (0,) * (2 * axes - len(own))
        if pads[::2] == pads[1::2]:  # in numbers, also where torch was given a word: it may have left axes out
            padding = pads[::2][::-1]
    elif padding == "same":
        total = [spread * (size - 1) for spread, size in zip(dilation, kernel, strict=True)]
        pads = tuple(side for width in reversed(total) for side in (width // 2, width - width // 2))
    else:
        sides = (0,) * axes if isinstance(padding, str) else padding
        pads = tuple(side for width in reversed(sides) for side in (width, width))
    return Setting(
        each(module.stride, axes), padding, dilation, each(module.output_padding, axes), module.padding_mode, pads
    )


def each(value: int | tuple[int, ...] | list[int], axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values
