"""A parameter that is read through a module for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils import parametrize


@contextmanager
def read_through(module: nn.Module, name: str, part: nn.Module) -> Iterator[None]:
    """Within the block ``module`` computes with ``part`` of its parameter ``name``, and behind it as before."""
    order = tuple(module._parameters)
    parametrize.register_parametrization(module, name, part, unsafe=True)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        # torch puts it behind the others, where the state of an optimizer would pass for that of another parameter
        for each in order:
            module._parameters[each] = module._parameters.pop(each)
