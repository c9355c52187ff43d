"""One input of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import marked, moved, place_of, samples_of, size_of, tensors_in
from rankfold.linalg.brief import brief

_LARGEST = 1 << 28  # numbers in one input that a file may ask for


@dataclass(frozen=True)
class Example:
    """One input of a model, as its positional and keyword arguments, and how many samples it holds."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    samples: int

    __repr__ = brief

    @classmethod
    def of(cls, example: Any) -> Example:
        """From a tensor, a tuple of positional arguments or a mapping of keyword arguments (batch first)."""
        if isinstance(example, Example):
            return example
        if isinstance(example, Mapping):
            args, kwargs = (), marked((dict(example),))[0]
        else:
            args, kwargs = marked((tuple(example) if isinstance(example, tuple | list) else (example,),))[0], {}
        tensors = list(tensors_in((args, kwargs)))
        if not tensors:
            raise ValueError("the example input holds no tensor: give a tensor, or a tuple or dict of arguments")
        samples = size_of((kwargs or args,)) if tensors[0].dim() else 1
        if not samples:
            raise ValueError("the example input holds no sample: give one with at least one along its first axis")
        return cls(args, kwargs, samples)

    def noted(self) -> dict[str, Any] | None:
        """Shapes and dtypes as plain values, from which ``from_note`` makes an input alike; None for nested inputs."""
        try:
            args = [_noted(value, self.samples) for value in self.args]
            kwargs = {str(name): _noted(value, self.samples) for name, value in self.kwargs.items()}
        except TypeError:
            return None
        return args[0] if len(args) == 1 and not kwargs and "shape" in args[0] else {"args": args, "kwargs": kwargs}

    @classmethod
    def from_note(cls, note: Any) -> Example | None:
        """One sample alike the one that was noted: zeros, whole numbers as large as there; None for anything else."""
        try:
            if "shape" in note:
                return replace(cls.of(_of_note(note)), samples=1)
            args = tuple(map(_of_note, note["args"]))
            kwargs = {str(name): _of_note(value) for name, value in dict(note["kwargs"]).items()}
            return cls(args, kwargs, 1) if kwargs else replace(cls.of(args), samples=1)
        except (TypeError, KeyError, ValueError, AttributeError, RuntimeError):
            return None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Example:
        return Example(moved(self.args, device, dtype), moved(self.kwargs, device, dtype), self.samples)

    def fitting(self, modules: Iterable[nn.Module]) -> Example:
        """On the device and in the floating dtype of the modules of a model."""
        place = place_of(modules)
        return self if place is None else self.to(place.device, place.dtype)


def _noted(value: Any, samples: int) -> dict[str, Any]:
    """One argument: a tensor by its shape (without the axis of samples, unless it has none), another by its value."""
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if not isinstance(value, Tensor):
        raise TypeError(type(value).__name__)
    batched = value.dim() > 0 and value.shape[0] == samples
    note: dict[str, Any] = {
        "shape": list(value.shape[1:] if batched else value.shape), "dtype": str(value.dtype).removeprefix("torch."),
    }  # fmt: skip
    note |= {} if batched else {"whole": True}
    if not (value.is_floating_point() or value.is_complex()) and value.numel():
        note["fill"] = int(value.max())  # an id that there is, a mask that hides nothing
    return note


def _of_note(note: Any) -> Any:
    if "value" in note:
        value = note["value"]
        if value is not None and not isinstance(value, bool | int | float | str):
            raise TypeError(type(value).__name__)
        return value
    shape, dtype = note["shape"], getattr(torch, str(note["dtype"]))
    whole = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not whole or prod(shape) > _LARGEST or not isinstance(dtype, torch.dtype):
        raise ValueError("this does not tell the shape and dtype of an input")
    size = tuple(shape) if note.get("whole") else (1, *shape)
    return torch.full(size, int(note.get("fill", 0)), dtype=dtype)


def with_batch(example: Any, batch: int) -> Example:
    """The example repeated or cut to ``batch`` samples along the first axis of each of its batched tensors.
    ``ValueError`` for a batch below 1."""
    if batch < 1:
        raise ValueError(f"a batch must hold at least 1 sample, got {batch!r}")
    example = Example.of(example)
    index = torch.arange(batch) % example.samples
    args, kwargs = (samples_of(part, example.samples, index) for part in (example.args, example.kwargs))
    return Example(args, kwargs, batch)
