"""What a state dict holds as values that stay: copies, averages, shapes. Extra state may be of any kind."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Weights = dict[str, Any]  # tensors, and whatever modules give as extra state
Shapes = dict[str, tuple[tuple[int, ...] | None, torch.dtype] | None]


def is_weight(name: str, value: Any) -> bool:
    """Whether this is a parameter or buffer, and no extra state, which its module alone understands."""
    return isinstance(value, Tensor) and name.rpartition(".")[2] != "_extra_state"


def copied(state: Mapping[str, Any]) -> Weights:
    return {name: _copy(value) for name, value in state.items()}


def unsaved(model: nn.Module) -> Weights:
    """Copies of the buffers that are in no state dict (``persistent=False``) by name, as training may change them."""
    return {path: _copy(found[name]) for path, found, name in _unsaved(model) if found[name] is not None}


def put_back_(model: nn.Module, buffers: Mapping[str, Any]) -> None:
    """Put what ``unsaved`` gave into its places: into the buffers that are there, as others may hold them too."""
    for path, found, name in _unsaved(model):
        value, here = buffers.get(path), found[name]
        if value is None:
            continue
        if here is None or (here.shape, here.dtype) != (value.shape, value.dtype):
            found[name] = value.to(next(model.parameters()).device, copy=True)
            continue
        with torch.inference_mode():  # also buffers that were made in it
            here.copy_(value)


def _unsaved(model: nn.Module) -> Iterator[tuple[str, dict[str, Tensor | None], str]]:
    """The full name of each such buffer, the table of its module, and its name in it."""
    for path, module in model.named_modules():
        for name in sorted(module._non_persistent_buffers_set & module._buffers.keys()):
            yield f"{path}.{name}".lstrip("."), module._buffers, name


def widened(state: Mapping[str, Any]) -> Weights:
    """A copy in which an average can move by small steps: in bfloat16 those below a 256th of a number vanish."""
    return {
        name: value.detach().to(wide(value.dtype), copy=True) if is_weight(name, value) else _copy(value)
        for name, value in state.items()
    }


def narrowed(mean: Mapping[str, Any], like: Mapping[str, Any]) -> Weights:
    """A copy of an average in the dtypes of the weights that it is one of."""
    return {
        name: value.to(like[name].dtype, copy=True) if is_weight(name, value) else _copy(value)
        for name, value in mean.items()
    }


def average_(mean: Weights, state: Mapping[str, Any], share: float) -> None:
    """Move ``mean`` towards ``state`` by this share of the way; what cannot be averaged becomes that of ``state``."""
    for name, value in state.items():
        if not is_weight(name, value):
            mean[name] = _copy(value)
        elif value.is_floating_point() or value.is_complex():
            before, now = mean[name], value.to(mean[name].dtype)
            there = before.isfinite() & now.isfinite()  # −∞ of a mask less −∞ is no number
            before.copy_(torch.where(there, before.lerp(now, share), now))
        else:
            mean[name].copy_(value)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of an average of numbers in ``dtype``."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def shapes(state: Mapping[str, Any], free: frozenset[str]) -> Shapes:
    """Shape and dtype of each tensor, without the shapes of those in ``free``; None for extra state."""
    return {
        name: ((None if name in free else tuple(value.shape)), value.dtype) if is_weight(name, value) else None
        for name, value in state.items()
    }


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
