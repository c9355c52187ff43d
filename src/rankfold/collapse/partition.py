"""Partitions of samples into clusters: by class labels, and the best one that k-means finds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from rankfold.linalg.brief import brief


@dataclass(frozen=True, eq=False)
class Partition:
    """N samples in K non-empty clusters: ``index`` (N,) int64 in 0 … K − 1. ``note`` says what had to be changed."""

    index: Tensor
    clusters: int
    note: str = ""

    __repr__ = brief

    @classmethod
    def of(cls, labels: Tensor, classes: int | None = None) -> Partition:
        """The partition by ``labels`` (N,) of whole numbers; numbers that no sample has give no cluster, and say so.

        ``classes``: how many there should be (0 … classes − 1). Raises ``ValueError`` for anything that is not a label.
        """
        if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                "a partition needs class labels as whole numbers of shape (N,) with N ≥ 1, got shape "
                f"{tuple(labels.shape)} of {labels.dtype}"
            )
        if classes is not None and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(
                f"labels must be from 0 to {classes - 1} for {classes} classes, and run from {int(labels.min())} "
                f"to {int(labels.max())}"
            )
        present, index = labels.unique(return_inverse=True)
        empty = 0 if classes is None else classes - len(present)
        return cls(index, len(present), f"{empty} of {classes} classes have no sample" if empty else "")

    @property
    def counts(self) -> Tensor:
        """Samples in each cluster, (K,) int64."""
        return self.index.bincount(minlength=self.clusters)

    @property
    def singletons(self) -> int:
        """Clusters of one sample: their variation is 0 because nothing can vary."""
        return int((self.counts == 1).sum())


def kmeans(rows: Tensor, clusters: int, *, restarts: int = 4, seed: int = 0) -> Partition:
    """The best partition of ``rows`` (N, d) into at most ``clusters`` sets found by Lloyd's iterations.

    scikit-learn's k-means++ with ``restarts``; the least sum of squares over all partitions is NP-hard, so that what
    is found is an upper bound of it. With fewer than ``clusters`` distinct rows every distinct row is a cluster, which
    is exact. Cost: restarts · iterations · N·K·d. Raises ``ValueError`` for no rows, fewer than one cluster, and rows
    that are not finite.
    """
    if rows.ndim != 2 or len(rows) == 0 or clusters < 1:
        raise ValueError(
            f"k-means needs rows of shape (N, d) and at least one cluster, got shape {tuple(rows.shape)} and "
            f"{clusters} clusters"
        )
    if not bool(rows.isfinite().all()):
        raise ValueError("k-means: some features are NaN or infinite: look for bad samples, or for overflow")
    values = rows.detach().cpu().double()
    # many rows: whether K of them differ is decided by the first few
    distinct, index = values[: 4 * clusters].unique(dim=0, return_inverse=True)
    if len(distinct) < clusters:
        distinct, index = values.unique(dim=0, return_inverse=True)
    if len(distinct) <= clusters and len(index) == len(values):
        short = len(distinct) < clusters
        note = (
            f"there are only {len(distinct)} distinct rows for {clusters} clusters, so that the variation is 0"
            if short
            else ""
        )
        return Partition(index, len(distinct), note)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=restarts, random_state=seed).fit(values.numpy())
    # an empty cluster is dropped, not reported as one
    return Partition.of(torch.from_numpy(found.labels_).long())
