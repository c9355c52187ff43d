"""Where a network computes, and in what dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn


def place_of(modules: Iterable[nn.Module]) -> Tensor | None:
    """A tensor on the device of the modules of a network and in its floating dtype; None if it holds no such numbers.

    Its first floating parameter; where all weights are whole numbers, which are no parameters, one of their scales
    (their modules say ``buffers_are_weights``). One that is in memory where there is one: weights may be read in parts.
    """
    seen = list[nn.Module]()

    def weights() -> Iterator[Tensor]:
        for module in modules:
            seen.append(module)
            yield from module.parameters(recurse=False)

    def scales() -> Iterator[Tensor]:
        for module in seen:
            if getattr(module, "buffers_are_weights", False):
                yield from module.buffers()

    def others() -> Iterator[Tensor]:
        for module in seen:
            yield from module.buffers(recurse=False)

    for kind in (weights(), scales(), others()):
        blank: Tensor | None = None
        for tensor in kind:
            if tensor.is_floating_point():
                if not tensor.is_meta:
                    return tensor
                blank = tensor if blank is None else blank
        if blank is not None:
            return blank
    return None
