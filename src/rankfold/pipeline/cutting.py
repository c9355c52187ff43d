"""Batches of any data, cut to as many samples as fit into memory; and what one pass over them tells beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import arguments, batches_of, divisible, mapped, samples_of, size_of, tensors_in
from rankfold.batches.parts import parts_of
from rankfold.linalg.brief import brief

TOGETHER = 128  # samples at a time, at most, of data that are in no batches
_LEAST = 8  # batches of those, of which one is held back


@dataclass(frozen=True, eq=False)
class Parts:
    """The first ``limit`` samples of ``data``, at most ``size`` at a time, to be iterated any number of times. What
    cannot be cut stays as it is."""

    data: Any
    size: int
    limit: int | None = None

    __repr__ = brief

    def __iter__(self) -> Iterator[Any]:
        return parts_of(self.data, self.size, self.limit)


@dataclass
class Extent:
    """What the batches that it was given hold. ``samples``: how many in all; ``largest``: how many in one batch, and
    ``whole`` in one that cannot be cut."""

    samples: int = 0
    largest: int = 0
    whole: int = 1
    shapes: dict[Any, tuple[Any, list[torch.Size]]] = field(default_factory=dict)

    def add(self, batches: Iterable[Any]) -> Extent:
        for batch in batches:
            count = size_of(batch)
            self.samples += count
            self.largest = max(self.largest, count)
            if divisible(arguments(batch), count):
                batch = samples_of(batch, count, slice(2))
            else:
                self.whole = max(self.whole, count)
            self._stretch(batch)
        return self

    def _stretch(self, few: Any) -> None:
        here = [tensor.shape for tensor in tensors_in(few)]
        kind = tuple(map(len, here))
        known, there = self.shapes.get(kind, (few, here))
        longest = [torch.Size(map(max, one, other)) for one, other in zip(here, there, strict=True)]
        self.shapes[kind] = known, longest

    @property
    def longest(self) -> Any:
        """Some samples without values of which every tensor is as long as in any batch."""
        few, shapes = max(self.shapes.values(), key=lambda known: sum(shape.numel() for shape in known[1]))
        left = iter(shapes)

        def stretched(tensor: Tensor) -> Tensor:
            shape = next(left)
            return tensor if tensor.shape == shape else tensor.new_zeros(shape)

        return mapped(few, stretched)


def together(data: Any, seen: Extent) -> int:
    """How many samples at a time there may be at most: as many as data hold that come in batches already."""
    own = size_of(next(batches_of(data, 1))) > 1
    return seen.largest if own else max(1, min(TOGETHER, seen.samples // _LEAST))
