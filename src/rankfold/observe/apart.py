"""Whether a network treats samples apart, and where they lie in what a layer gives: not always along its first axis.

Both are told by two passes, of a few samples and of half of these: the axis of samples is that which became shorter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import arguments, divisible, evaluating, forward, samples_of, size_of
from rankfold.objectives.answer import counting_tensors
from rankfold.observe.watch import after

_FEW = 8  # samples tell it
_OWN = RuntimeError, ValueError, TypeError, IndexError  # of a model of a fixed batch


@dataclass(frozen=True)
class Place:
    """The axis of a tensor along which the samples lie; ``inner``: of positions that it holds besides, those of one
    sample lie together no more: all samples follow at the first position, then all at the second."""

    axis: int = 0
    inner: bool = False

    def blocks(self, shape: torch.Size, samples: int) -> int:
        """How often all samples follow one another: a tensor of this shape is (blocks, samples, …) in that order, 0 if
        it is not."""
        each, rest = divmod(shape[self.axis], samples)
        return 0 if rest else prod(shape[: self.axis]) * (each if self.inner else 1)


@dataclass(frozen=True)
class Apart:
    """``outputs``: whether those for some samples are what they are for these alone. ``places`` of the samples in what
    modules give, by name; of those that do not tell there is none."""

    outputs: bool
    places: Mapping[str, Place]


def separable(root: nn.Module, batch: Any) -> bool:
    """Whether the outputs for some samples of a batch are what they are for these samples alone; not so for models
    whose first axis is time, for instance. Two forward passes of a few samples in eval mode."""
    return apart(root, batch, {}).outputs


@torch.no_grad()
def apart(root: nn.Module, batch: Any, modules: Mapping[str, nn.Module]) -> Apart:
    """``separable``, and the places of the samples in what ``modules`` by name give; the same two passes."""
    whole_size = size_of(batch)
    size = min(whole_size, _FEW)
    if size < 2:
        return Apart(True, dict.fromkeys(modules, Place()))
    if not divisible(arguments(batch), whole_size):
        return Apart(False, {})
    batch = samples_of(batch, whole_size, slice(0, size))
    few = (size + 1) // 2
    with suppress(*_OWN), evaluating(root):
        (whole, given), (part, less) = (
            _run(root, each, modules) for each in (batch, samples_of(batch, size, slice(few)))
        )
        same = (
            len(whole) == len(part)
            and all(
                a.shape == (size, *b.shape[1:])  # other axes may be samples too, as of CLIP's logits
                and torch.allclose(a[:few].float(), b.float(), rtol=1e-2, atol=1e-3)
                for a, b in zip(whole, part, strict=True)
            )
        )
        return Apart(same, dict(_places(given, less, size, few)))
    return Apart(False, {})


_Given = Mapping[str, list[Tensor]]


def _run(root: nn.Module, batch: Any, modules: Mapping[str, nn.Module]) -> tuple[list[Tensor], _Given]:
    given: dict[str, list[Tensor]] = {name: [] for name in modules}
    watching = {
        module: lambda _, args, kwargs, output, seen=given[name]: seen.append(output.detach().clone())
        for name, module in modules.items()
    }
    with after(None, watching):
        output = forward(root, batch)
    return [tensor for _, tensor in counting_tensors(output)], given


def _places(whole: _Given, part: _Given, size: int, few: int) -> Iterator[tuple[str, Place]]:
    for name in whole:
        calls = list(zip(whole[name], part[name], strict=False))
        found = {_place(a, b, size, few) for a, b in calls} if len(whole[name]) == len(part[name]) else {None}
        if len(found) == 1 and (place := found.pop()) is not None:
            yield name, place


def _place(whole: Tensor, part: Tensor, size: int, few: int) -> Place | None:
    """Where an axis of the samples holds positions besides, the values tell in which order."""
    for axis in range(whole.dim()):
        each, rest = divmod(whole.shape[axis], size)
        if rest or not each or part.shape != (*whole.shape[:axis], each * few, *whole.shape[axis + 1 :]):
            continue
        for place in (Place(axis), Place(axis, inner=True)):
            if each == 1 or _first(whole, place, size, few).allclose(part.flatten(), rtol=1e-2, atol=_faint(part)):
                return place
    return None


def _first(whole: Tensor, place: Place, size: int, few: int) -> Tensor:
    return whole.reshape(place.blocks(whole.shape, size), size, -1)[:, :few].flatten()


def _faint(values: Tensor) -> float:
    return 1e-3 * float(values.abs().max()) if values.numel() else 0.0
