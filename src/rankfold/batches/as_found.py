"""Networks that count or remember in buffers while they run, left as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LARGEST = 1 << 20  # numbers in a state; what is larger is taken for a weight, and not copied


@contextmanager
def as_found(model: nn.Module | None) -> Iterator[None]:
    """Buffers of up to a million numbers are afterwards what they were before, also where a forward pass has put others
    into their places. Cost: a copy of them."""
    states = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in (() if model is None else model.modules())
        for name, buffer in module._buffers.items()
        if type(buffer) is Tensor and not buffer.is_meta and buffer.numel() <= LARGEST
    ]
    try:
        yield
    finally:
        with torch.inference_mode():  # also buffers that were made in it
            for buffers, name, buffer, before in states:
                buffers[name] = buffer
                if not buffer.equal(before):
                    buffer.copy_(before)
