"""Into which clusters samples fall by their targets: their classes or, of numbers, those that k-means finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold.batches import batches_of, check_rereadable, labels_of
from rankfold.collapse import kmeans

CLUSTERS = 10  # of targets that are numbers, where nothing is said


@dataclass(frozen=True, eq=False)
class Groups:
    """``data`` with one whole label for each sample; ``targets`` (N, p) where these are numbers, else None."""

    data: Any
    targets: Tensor | None = None
    note: str = ""

    def loss_as(self, asked: str | None) -> str:
        """The loss that such targets have, or the one that is asked; ``ValueError`` where it does not fit them."""
        if self.targets is None:
            return asked or "cross-entropy"
        if asked not in (None, "squared-error"):
            raise ValueError(f"loss {asked} is one of classes, and the targets are numbers: leave it out")
        return "squared-error"


def grouped(data: Any, samples: int, clusters: int | None, seed: int) -> Groups:
    """The first ``samples`` of ``data``, as they are where targets are classes. Targets of numbers, (N,) or (N, …), are
    put into ``clusters`` (10) by k-means, and samples are labelled by these. ``ValueError`` for targets not finite."""
    check_rereadable(data)
    first = labels_of(next(iter(batches_of(data, 256, 1)), ()))
    if not (isinstance(first, Tensor) and first.is_floating_point()):
        return Groups(data)
    batches = list(batches_of(data, 256, samples))
    targets = torch.cat([labels_of(batch).detach().cpu().flatten(1 if first.dim() > 1 else 0) for batch in batches])
    targets = targets.reshape(len(targets), -1)
    if not bool(targets.isfinite().all()):
        raise ValueError("a target is not finite: mend the data first")
    found = kmeans(targets.double(), CLUSTERS if clusters is None else clusters, seed=seed)
    labels = found.index.split([len(labels_of(batch)) for batch in batches])
    labelled = [
        {**batch, "labels": label} if isinstance(batch, Mapping) else (batch[0], label)
        for batch, label in zip(batches, labels, strict=True)
    ]
    note = f"the targets are numbers: classes stand for {found.clusters} clusters of them, found by k-means"
    return Groups(labelled, targets, note)
