"""Batches of any data, none larger than asked for where it can be cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rankfold.batches import arguments, batches_of, divisible, samples_of, size_of


def parts_of(data: Any, size: int, limit: int | None = None) -> Iterator[Any]:
    """``batches_of`` data, of at most ``size`` samples each, also of larger ones. What is not ``divisible`` stays."""
    for batch in batches_of(data, size, limit):
        count = size_of(batch)
        if count <= size or not divisible(arguments(batch), count):
            yield batch
            continue
        for start in range(0, count, size):
            yield samples_of(batch, count, slice(start, start + size))
