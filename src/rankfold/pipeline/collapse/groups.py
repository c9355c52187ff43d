"""Into which clusters samples fall by their targets: classes, next tokens or, of numbers, those that k-means finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, check_rereadable, evaluating, forward, labels_of
from rankfold.collapse import kmeans
from rankfold.objectives import (
    CausalLanguageModel,
    Classification,
    MultiLabel,
    Objective,
    ObjectiveError,
    Regression,
    infer,
    objective_named,
)

CLUSTERS = 10  # of targets that are numbers, where nothing is said
_SQUARES = ("mean-squared-error", "squared-error")


@dataclass(frozen=True, eq=False)
class Groups:
    """``data`` with a whole label for each sample or position; ``targets`` (N, p) where they are numbers, else None.

    ``clustered``: labels are those of clusters of the numbers, and outputs no scores of them. ``losses``: what such
    targets can be trained with, the usual one first; empty: anything. ``what``: these targets in a few words.
    """

    data: Any
    objective: Objective | None = None
    targets: Tensor | None = None
    note: str = ""
    clustered: bool = False
    losses: tuple[str, ...] = ()
    what: str = "classes"

    def loss_as(self, asked: str | None) -> str:
        """The loss that such targets have, or the one that is asked; ``ValueError`` where it does not fit them."""
        if asked is not None and self.losses and asked not in self.losses:
            whose = "targets from 0 to 1" if asked == "binary-cross-entropy" else "classes"
            raise ValueError(
                f"loss {asked} is for {whose}, and the targets are {self.what}: leave loss= out, or give "
                f"{' or '.join(self.losses)}"
            )
        return asked or (self.losses[0] if self.losses else "cross-entropy")

    def of_loss(self, asked: str | None) -> str:
        """What is to be said of a loss that nobody named: others of the same kind have another decay."""
        if asked is not None or self.targets is None:
            return ""
        if isinstance(self.objective, MultiLabel):
            p = self.targets.shape[1]
            summed = f", and the decay over {p} where it was their sum" if p > 1 else ""
            return (
                "the loss is taken for the mean binary cross-entropy of the outputs: give loss= (--loss) where it was "
                f"another{summed}"
            )
        if not isinstance(self.objective, Classification) and self.targets.shape[1] > 1:
            return (
                "the loss is taken for the mean squared error over the outputs: give loss='squared-error' (--loss) "
                "where it was their sum"
            )
        return ""


def grouped(
    model: nn.Module,
    data: Any,
    samples: int,
    clusters: int | None,
    seed: int,
    objective: Objective | str | None = None,
) -> Groups:
    """The first ``samples`` of ``data``, as they are where targets are classes; by ``objective``, or by the one that
    model and data tell. Numbers, one for each output, are put into ``clusters`` (10) by k-means, and samples are
    labelled by these. For a language model positions are labelled by their next token, where it is one of the
    ``clusters`` (10) most frequent. ``ValueError`` for targets not finite, or that do not fit the outputs.
    """
    check_rereadable(data)
    first = next(iter(batches_of(data, 256)), None)
    if first is None:
        return Groups(data)
    labels = labels_of(first)
    found = _told(model, first) if objective is None else objective_named(objective)
    if isinstance(found, CausalLanguageModel) and (labels is None or labels.dim() == 2):
        return _of_tokens(data, found, samples, CLUSTERS if clusters is None else clusters)
    if not isinstance(labels, Tensor) or (isinstance(found, Classification) and not labels.is_floating_point()):
        return Groups(data, found)
    if isinstance(found, Regression) or labels.is_floating_point():
        return _of_numbers(data, found, samples, clusters, seed)
    return Groups(data, found)


def _told(model: nn.Module, batch: Any) -> Objective | None:
    with evaluating(model):
        output = forward(model, batch)
    try:
        return infer(output, batch).objective
    except ObjectiveError:
        labels = labels_of(batch)
        if isinstance(labels, Tensor) and not labels.is_floating_point():
            return None  # labels of what the outputs do not say
        raise


def _of_tokens(data: Any, objective: CausalLanguageModel, samples: int, clusters: int) -> Groups:
    batches = list(batches_of(data, 64, samples))
    following = [objective.target(batch).cpu() for batch in batches]
    counts = torch.cat([tokens[tokens >= 0] for tokens in following]).bincount()
    chosen = counts.argsort(descending=True, stable=True)[:clusters]
    chosen = chosen[counts[chosen] > 0]
    labelled = [
        _labelled(batch, torch.where(torch.isin(tokens, chosen), tokens, -100))
        for batch, tokens in zip(batches, following, strict=True)
    ]
    share = float(counts[chosen].sum() / counts.sum())
    note = (
        f"classes stand for the {len(chosen)} most frequent next tokens, {share:.0%} of all; features are those of the "
        "positions before them"
    )
    return Groups(labelled, objective, note=note)


def _labelled(batch: Any, labels: Tensor) -> Any:
    inputs = batch if isinstance(batch, Mapping) else batch[0] if isinstance(batch, tuple | list) else batch
    return {**inputs, "labels": labels} if isinstance(inputs, Mapping) else (inputs, labels)


def _of_numbers(data: Any, objective: Objective | None, samples: int, clusters: int | None, seed: int) -> Groups:
    batches = list(batches_of(data, 256, samples))
    sizes = [len(labels_of(batch)) for batch in batches]
    targets = torch.cat(
        [labels_of(batch).detach().cpu().reshape(size, -1) for batch, size in zip(batches, sizes, strict=True)]
    )
    targets = targets if targets.is_floating_point() else targets.float()
    if not bool(targets.isfinite().all()):
        raise ValueError("some targets are NaN or infinite: repair the data first")
    binary = isinstance(objective, MultiLabel)
    if binary and bool(((targets < 0) | (targets > 1)).any()):
        raise ValueError(
            "some targets are 0 and 1, and others are not: repair the data, or give objective='regression'"
        )
    alone = binary and targets.shape[1] == 1 and bool(((targets == 0) | (targets == 1)).all())
    if alone:
        labels, clustered, stand = targets.flatten().long(), False, ""  # two classes, and a score of one of them
    else:
        found = kmeans(targets.double(), CLUSTERS if clusters is None else clusters, seed=seed)
        labels, clustered = found.index, True
        stand = f"classes stand for {found.clusters} clusters of them, found by k-means"
        if binary and bool((targets.sum(1) == 1).all()):
            stand += "; where the 1 of each sample is its class, give class labels (.argmax(1))"
    losses, what = _losses_of(objective)
    labelled = [_labelled(batch, part) for batch, part in zip(batches, labels.split(sizes), strict=True)]
    note = f"the targets are {what}: {stand}" if stand else ""
    return Groups(labelled, objective, targets, note, clustered, losses, what)


def _losses_of(objective: Objective | None) -> tuple[tuple[str, ...], str]:
    """What such numbers can be trained with, the usual one first, and what they are."""
    if isinstance(objective, MultiLabel):
        return ("binary-cross-entropy", *_SQUARES), "numbers 0 and 1, one for each output"
    if isinstance(objective, Classification):
        return ("cross-entropy", *_SQUARES), "probabilities of the classes"
    return _SQUARES, "numbers"
