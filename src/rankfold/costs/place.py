"""Where a network computes, and in what dtype."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from torch import Tensor, nn

from rankfold.layers.rounded import WholeNumbers


def place_of(modules: Iterable[nn.Module]) -> Tensor | None:
    """A tensor on the device of the modules of a network and in its floating dtype; None if it holds no such numbers.

    Its first floating parameter; where all weights are whole numbers, which are no parameters, one of their scales.
    """
    each = list(modules)
    weights = (parameter for module in each for parameter in module.parameters(recurse=False))
    scales = (buffer for module in each if isinstance(module, WholeNumbers) for buffer in module.buffers())
    others = (buffer for module in each for buffer in module.buffers(recurse=False))
    return next((tensor for tensor in chain(weights, scales, others) if tensor.is_floating_point()), None)
