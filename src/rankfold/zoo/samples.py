"""Samples whose inputs are several tensors, as a transformer's ids and mask, or that have no targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rankfold.batches import LABELS


@dataclass(frozen=True, eq=False)
class Samples(Dataset):
    """N samples: `inputs_of` each a tensor, or a tuple or dict of them, alike in all; `labels` (N, …), None without.

    A tuple is what a model takes in this order, a dict what it takes by name.
    """

    inputs_of: Sequence[Any]
    labels: Tensor | None

    def __repr__(self) -> str:
        """The number alone: the samples themselves would fill the screen."""
        return f"Samples({len(self):,} samples)"

    def __len__(self) -> int:
        return len(self.inputs_of)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Inputs of sample `index`, without batch dimension, and its target, where there are any."""
        inputs = self.inputs_of[index]
        return (inputs,) if self.labels is None else (inputs, self.labels[index])

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        """The samples at `indices` (K,) int64, in that order."""
        labels = None if self.labels is None else self.labels[indices]
        chosen = torch.arange(len(self))[indices].tolist()
        return replace(self, inputs_of=[self.inputs_of[index] for index in chosen], labels=labels)

    def take(self, count: int, generator: torch.Generator) -> Self:
        """`count` samples drawn without replacement; ValueError if there are fewer."""
        if not 0 < count <= len(self):
            raise ValueError(f"{count} samples cannot be taken of {len(self)}")
        return self.subset(torch.randperm(len(self), generator=generator)[:count])


def as_pair(item: Any) -> tuple[Any, Any]:
    """(inputs, target or None) of one item of a data set: a pair, inputs alone, or a mapping that may hold its target
    under a usual name."""
    if isinstance(item, Mapping):
        names = [name for name in LABELS if name in item]
        inputs = {name: value for name, value in item.items() if name not in LABELS and not _words(value)}
        return inputs, item[names[0]] if names else None
    if isinstance(item, Tensor | np.ndarray):
        return item, None
    if not isinstance(item, tuple | list):
        raise ValueError(f"it is a {type(item).__name__}")
    if len(item) == 1:
        return item[0], None
    if len(item) != 2:
        raise ValueError(
            f"it has {len(item)} members: give several inputs as a tuple of their own, ((a, b), target), or ((a, "
            "b),) without a target"
        )
    inputs, label = item
    return inputs, label


def _words(value: Any) -> bool:
    """Text, what was noted of a sample, or a list of these: for people, not for a model."""
    if isinstance(value, tuple | list):
        return bool(value) and _words(value[0])
    return value is None or isinstance(value, str | bytes | Mapping)


def are_batches(samples: Any) -> bool:
    """Whether a list holds batches rather than samples: targets as many as inputs, or inputs with a batch axis."""
    if not isinstance(samples, list) or not samples:
        return False
    try:
        inputs, target = as_pair(samples[0])
    except (TypeError, ValueError):
        return False
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else [inputs]
    first = [x for x in parts if isinstance(x, Tensor)]
    if not first or any(not x.dim() for x in first) or all(x.dim() < 2 for x in first):
        return False
    size = len(first[0]) if target is None else len(target) if isinstance(target, Tensor) and target.dim() else None
    return all(len(x) == size for x in first)


def as_tensors(inputs: Any) -> Any:
    """One tensor, or, for a mapping and for a tuple or list of arrays, a dict or tuple of tensors."""
    if isinstance(inputs, Mapping):
        return {name: _as_tensor(name, value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list) and any(isinstance(x, Tensor | np.ndarray) and x.ndim for x in inputs):
        return tuple(torch.as_tensor(value) for value in inputs)
    return torch.as_tensor(inputs)


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"its {name!r} is a {type(value).__name__} ({' '.join(str(error).split())})") from error


def layout(inputs: Any) -> str:
    """Shapes and dtypes, for messages and to compare samples by."""
    if isinstance(inputs, dict):
        return f"{{{', '.join(f'{name}: {layout(value)}' for name, value in inputs.items())}}}"
    if isinstance(inputs, tuple):
        return f"({', '.join(map(layout, inputs))})"
    return f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
