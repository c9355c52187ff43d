"""Layers and weights that a model's own code holds where no other layer can be put."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType
from typing import Any

from torch import nn

from rankfold.sites.opened import DEPTH, OF_TORCH, is_holder


def held_fast(model: nn.Module) -> dict[int, str]:
    """The layers in closures, sets and weak references, and the parameters in these and in lists, by identity; with the
    attribute that holds each. ``replace_`` finds the others."""
    found, walked = dict[int, str](), set[int]()
    for path, parent in model.named_modules():
        for name, value in vars(parent).items():
            if name not in OF_TORCH:
                found |= dict.fromkeys(_held(value, walked), f"{path}.{name}".lstrip("."))
    return found


def _held(value: Any, walked: set[int], closed: bool = False, depth: int = DEPTH) -> Iterator[int]:
    if isinstance(value, nn.Parameter) or (closed and isinstance(value, nn.Module)):
        yield id(value)
    elif depth and isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # one that nothing was put in yet
                yield from _held(cell.cell_contents, walked, True, depth - 1)
    elif depth and isinstance(value, weakref.ref):
        yield from _held(value(), walked, True, depth - 1)
    elif depth and isinstance(value, list | tuple | deque | set | frozenset | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _held(item, walked, closed or isinstance(value, set | frozenset), depth - 1)
    elif depth and not isinstance(value, nn.Module) and is_holder(value) and id(value) not in walked:
        walked.add(id(value))
        yield from _held(vars(value), walked, closed, depth - 1)
