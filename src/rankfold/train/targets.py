"""The targets of data that are in memory, all of them: what one batch holds of them may mislead."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from rankfold.batches import labels_of
from rankfold.train.feed import in_memory


def known_targets(data: Any) -> tuple[Tensor, ...]:
    """Every target, in as many parts as the data have; none where they would have to be loaded. Nothing is copied."""
    if isinstance(data, DataLoader):
        plain = isinstance(data.dataset, TensorDataset) and data.collate_fn is default_collate
        return known_targets(data.dataset) if plain else ()
    held = in_memory(data)
    if held is not None:
        found = [held.labels]
    else:
        found = [labels_of(batch) for batch in data] if isinstance(data, list) else []
    return tuple(target for target in found if isinstance(target, Tensor))
