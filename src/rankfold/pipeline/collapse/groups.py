"""Into which clusters samples fall by their targets: classes, next tokens or, of numbers, those that k-means finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, check_rereadable, labels_of
from rankfold.collapse import kmeans
from rankfold.objectives import CausalLanguageModel
from rankfold.train import choose

CLUSTERS = 10  # of targets that are numbers, where nothing is said


@dataclass(frozen=True, eq=False)
class Groups:
    """``data`` with a whole label for each sample or position; ``targets`` (N, p) where they are numbers, else None."""

    data: Any
    targets: Tensor | None = None
    note: str = ""

    def loss_as(self, asked: str | None) -> str:
        """The loss that such targets have, or the one that is asked; ``ValueError`` where it does not fit them."""
        if self.targets is None:
            return asked or "cross-entropy"
        if asked not in (None, "squared-error"):
            raise ValueError(f"loss {asked} is for classes, and the targets are numbers: leave loss= out")
        return "squared-error"


def grouped(model: nn.Module, data: Any, samples: int, clusters: int | None, seed: int) -> Groups:
    """The first ``samples`` of ``data``, as they are where targets are classes. Targets of numbers, (N,) or (N, …), are
    put into ``clusters`` (10) by k-means, and samples are labelled by these. For a language model positions are
    labelled by their next token, where it is one of the ``clusters`` (10) most frequent. ``ValueError`` for targets not
    finite.
    """
    check_rereadable(data)
    first = labels_of(next(iter(batches_of(data, 256, 1)), ()))
    if isinstance(first, Tensor) and first.is_floating_point():
        return _of_numbers(data, first, samples, clusters, seed)
    if first is None or (isinstance(first, Tensor) and first.dim() == 2):
        objective = choose(model, data, None).objective
        if isinstance(objective, CausalLanguageModel):
            return _of_tokens(data, objective, samples, CLUSTERS if clusters is None else clusters)
    return Groups(data)


def _of_tokens(data: Any, objective: CausalLanguageModel, samples: int, clusters: int) -> Groups:
    batches = list(batches_of(data, 64, samples))
    following = [objective.target(batch).cpu() for batch in batches]
    counts = torch.cat([tokens[tokens >= 0] for tokens in following]).bincount()
    chosen = counts.argsort(descending=True, stable=True)[:clusters]
    chosen = chosen[counts[chosen] > 0]
    labelled = []
    for batch, tokens in zip(batches, following, strict=True):
        label = torch.where(torch.isin(tokens, chosen), tokens, -100)
        inputs = batch if isinstance(batch, Mapping) else batch[0] if isinstance(batch, tuple | list) else batch
        labelled.append({**inputs, "labels": label} if isinstance(inputs, Mapping) else (inputs, label))
    share = float(counts[chosen].sum() / counts.sum())
    note = (
        f"classes stand for the {len(chosen)} most frequent next tokens, {share:.0%} of all; features are those of the "
        "positions before them"
    )
    return Groups(labelled, None, note)


def _of_numbers(data: Any, first: Tensor, samples: int, clusters: int | None, seed: int) -> Groups:
    batches = list(batches_of(data, 256, samples))
    targets = torch.cat([labels_of(batch).detach().cpu().flatten(1 if first.dim() > 1 else 0) for batch in batches])
    targets = targets.reshape(len(targets), -1)
    if not bool(targets.isfinite().all()):
        raise ValueError("some targets are NaN or infinite: repair the data first")
    found = kmeans(targets.double(), CLUSTERS if clusters is None else clusters, seed=seed)
    labels = found.index.split([len(labels_of(batch)) for batch in batches])
    labelled = [
        {**batch, "labels": label} if isinstance(batch, Mapping) else (batch[0], label)
        for batch, label in zip(batches, labels, strict=True)
    ]
    note = f"the targets are numbers: classes stand for {found.clusters} clusters of them, found by k-means"
    return Groups(labelled, targets, note)
