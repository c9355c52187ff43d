"""One input of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import mapped, moved, tensors_in


@dataclass(frozen=True)
class Example:
    """One input of a model, as its positional and keyword arguments, and how many samples it holds."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    samples: int

    @classmethod
    def of(cls, example: Any) -> Example:
        """From a tensor, a tuple of positional arguments or a mapping of keyword arguments (batch first)."""
        if isinstance(example, Example):
            return example
        if isinstance(example, Mapping):
            args, kwargs = (), dict(example)
        else:
            args, kwargs = (tuple(example) if isinstance(example, tuple | list) else (example,)), {}
        tensors = list(tensors_in((args, kwargs)))
        if not tensors:
            raise ValueError("the example input holds no tensor: give a tensor, a tuple of arguments or a dict")
        return cls(args, kwargs, tensors[0].shape[0] if tensors[0].dim() else 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Example:
        return Example(moved(self.args, device, dtype), moved(self.kwargs, device, dtype), self.samples)

    def fitting(self, parameters: Iterable[Tensor]) -> Example:
        """On the device and in the floating dtype of a model's parameters."""
        parameter = next((p for p in parameters if p.is_floating_point()), None)
        return self if parameter is None else self.to(parameter.device, parameter.dtype)


def with_batch(example: Any, batch: int) -> Example:
    """The example repeated or cut to ``batch`` samples along the first axis of each of its batched tensors."""
    example = Example.of(example)

    def resize(x: Tensor) -> Tensor:
        if not x.dim() or x.shape[0] != example.samples:
            return x
        return x[torch.arange(batch, device=x.device) % example.samples]

    return Example(mapped(example.args, resize), mapped(example.kwargs, resize), batch)
