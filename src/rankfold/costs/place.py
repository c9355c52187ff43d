"""Where a network computes, and in what dtype."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

from rankfold.layers.rounded import WholeNumbers


def place_of(model: nn.Module) -> Tensor | None:
    """A tensor on the device of a network and in its floating dtype; None of one that holds no such numbers.

    Its first floating parameter; where all weights are whole numbers, which are no parameters, one of their scales.
    """
    whole = (buffer for each in model.modules() if isinstance(each, WholeNumbers) for buffer in each.buffers())
    known = chain(model.parameters(), whole, model.buffers())
    return next((tensor for tensor in known if tensor.is_floating_point()), None)
