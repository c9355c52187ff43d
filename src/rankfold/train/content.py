"""What a run is trained on and by, so that a directory is not taken up for other data or another teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rankfold.run.digest import digest
from rankfold.sites import fingerprint
from rankfold.train.feed import in_memory

Content = dict[str, str]
_NONE, _GIVEN = "none", "given"


def content_of(train: Any, validation: Any, teacher: nn.Module | None) -> Content:
    """Data that are in memory by what is in them, others by being there; a teacher by its weights. Those that the model
    begins with do not count: a script that draws them goes on with those of its checkpoint.

    Cost: a pass over the teacher's weights and a look at 64 samples.
    """
    return {
        "training data": _held(train),
        "validation data": _held(validation),
        "teacher": _NONE if teacher is None else fingerprint(teacher),
    }


def _held(data: Any) -> str:
    if data is None:
        return _NONE
    loaded = isinstance(data, DataLoader) and isinstance(data.dataset, TensorDataset)
    there = loaded or isinstance(data, list | Mapping) or in_memory(data) is not None
    return (digest(data) if there else None) or _GIVEN


def difference(saved: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What of a saved run is another one here, in a few words; empty where nothing is that both know of."""
    for part, now in here.items():
        before = saved.get(part, now)
        if before == now:
            continue
        if _NONE in (before, now):
            return f"with{'out' * (before == _NONE)} {part}"
        return f"with another {part}" if part == "teacher" else f"with other {part}"
    return ""
