"""A random draw of calibration samples, and batches put together from it in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import batches_of, size_of

POOL = 2048  # how far a stream of batches, which may have no end, is read


def draw(data: Any, count: int, generator: torch.Generator) -> list[Any]:
    """``count`` random samples of ``data`` without replacement, each a batch of one; fewer where it holds fewer.

    Data sets of known size are drawn from as a whole; of anything else, the first 2,048 samples. The draw is a
    function of ``generator`` and the order of the data. Raises ``ValueError`` for empty data.
    """
    whole = isinstance(data, torch.utils.data.Dataset) or hasattr(data, "batches")
    if whole and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        order = torch.randperm(len(data), generator=generator)[:count].tolist()
        chosen = torch.utils.data.Subset(data, order)
        # a loader without a generator of its own draws a seed from the global one
        samples = list(torch.utils.data.DataLoader(chosen, batch_size=1, generator=generator))
    else:
        pool = _pool(data, POOL)
        keys = torch.rand(len(pool), generator=generator, dtype=torch.float64)
        samples = [_pick(*pool[index]) for index in keys.argsort()[:count].tolist()]
    if not samples:
        raise ValueError("the calibration data is empty: give at least one batch")
    return samples


def join(samples: Sequence[Any]) -> Any:
    """One batch out of batches of one: every batched tensor concatenated along its first axis."""
    first = samples[0]
    if isinstance(first, Tensor):
        return torch.cat(list(samples)) if first.dim() and first.shape[0] == 1 else first
    if isinstance(first, Mapping):
        return {key: join([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(join(members) for members in zip(*samples, strict=True))
    return first


def alike(samples: Sequence[Any], most: int) -> list[list[int]]:
    """Indices of ``samples`` in groups of at most ``most`` of equal shapes, evenly sized, in their order."""
    groups: dict[Any, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(_shapes(sample), []).append(index)
    result = []
    for members in groups.values():
        parts = -(-len(members) // most)
        size = -(-len(members) // parts)
        result += [members[start : start + size] for start in range(0, len(members), size)]
    return result


def _pool(data: Any, limit: int) -> list[tuple[Any, int, int]]:
    """(batch, position, size of the batch) of every sample."""
    return [
        (batch, position, size_of(batch))
        for batch in batches_of(data, limit=limit)
        for position in range(size_of(batch))
    ]


def _pick(value: Any, position: int, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[position : position + 1] if value.dim() and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _pick(item, position, size) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_pick(item, position, size) for item in value)
    return value


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((key, _shapes(item)) for key, item in value.items())
    return tuple(map(_shapes, value)) if isinstance(value, tuple | list) else None
