"""Labelled samples whose inputs are several tensors, as a transformer's ids and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rankfold.batches import LABELS


@dataclass(frozen=True, eq=False)
class Samples(Dataset):
    """N samples: `inputs_of` each a tuple or dict of tensors, alike in all of them, `labels` (N,) int64.

    A tuple is what a model takes in this order, a dict what it takes by name.
    """

    inputs_of: Sequence[Any]
    labels: Tensor

    def __repr__(self) -> str:
        """The number alone: the samples themselves would fill the screen."""
        return f"Samples({len(self):,} samples)"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """Inputs of sample `index`, without batch dimension, and its label (a scalar int64 tensor)."""
        return self.inputs_of[index], self.labels[index]

    def subset(self, indices: Tensor) -> Samples:
        """The samples at `indices` (K,) int64, in that order."""
        return Samples([self.inputs_of[index] for index in indices.tolist()], self.labels[indices])

    def take(self, count: int, generator: torch.Generator) -> Samples:
        """`count` samples drawn without replacement; ValueError if there are fewer."""
        if not 0 < count <= len(self):
            raise ValueError(f"cannot take {count} samples of {len(self)}")
        return self.subset(torch.randperm(len(self), generator=generator)[:count])


def as_pair(item: Any) -> tuple[Any, Any]:
    """(inputs, label) of one item of a data set: a pair, or a mapping with its label under a usual name."""
    if not isinstance(item, Mapping):
        inputs, label = item
        return inputs, label
    names = [name for name in LABELS if name in item]
    if not names:
        raise ValueError(f"none of {', '.join(LABELS)} is among {', '.join(map(str, item))}")
    return {name: value for name, value in item.items() if name not in LABELS}, item[names[0]]


def as_tensors(inputs: Any) -> Any:
    """One tensor, or, for a mapping and for a tuple or list of arrays, a dict or tuple of tensors."""
    if isinstance(inputs, Mapping):
        return {name: torch.as_tensor(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list) and any(isinstance(x, Tensor | np.ndarray) and x.ndim for x in inputs):
        return tuple(torch.as_tensor(value) for value in inputs)
    return torch.as_tensor(inputs)


def layout(inputs: Any) -> str:
    """Shapes and dtypes, for messages and to compare samples by."""
    if isinstance(inputs, dict):
        return f"{{{', '.join(f'{name}: {layout(value)}' for name, value in inputs.items())}}}"
    if isinstance(inputs, tuple):
        return f"({', '.join(map(layout, inputs))})"
    return f"{tuple(inputs.shape)} {str(inputs.dtype).removeprefix('torch.')}"
