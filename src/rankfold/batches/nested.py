"""Tensors inside of tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_PLAIN = (str, int, float, type(None), torch.dtype)  # what most arguments are that are no tensors


def mapped(value: Any, change: Callable[[Any], Any], whole: type = Tensor) -> Any:
    """``value`` with every tensor inside changed, and what is of the type ``whole``; mappings become dicts, tuples and
    lists keep their type."""
    if isinstance(value, (Tensor, whole)):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change, whole) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [mapped(item, change, whole) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return changed(value, lambda item: mapped(item, change, whole))


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """A dataclass with every member changed; any other value as it is."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    made = copy.copy(value)
    for field in fields(value):
        if hasattr(value, field.name):
            object.__setattr__(made, field.name, change(getattr(value, field.name)))
    return made


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside ``value``, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            if isinstance(item, Tensor):
                yield item
            elif not isinstance(item, _PLAIN):
                yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name, None))


def moved(value: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Every tensor inside ``value`` on ``device``, and floating ones in ``dtype`` where it is given."""

    def move(x: Tensor) -> Tensor:
        return x.to(device, dtype) if dtype is not None and x.is_floating_point() else x.to(device)

    return mapped(value, move)
