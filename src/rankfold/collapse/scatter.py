"""Within-cluster sums of squares, streamed: counts, means and variation of K clusters in one pass over rows, and what
labels add to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankfold.collapse.partition import Partition


@dataclass(frozen=True)
class Clusters:
    """How clustered N rows are in K clusters (equation 6 of "Neural rank collapse").

    ``wcss`` = (1/N) Σ_k Σ_{i∈C_k} ‖z_i − z̄_k‖², the features' part; ``total`` the same about the mean of all rows, so
    that ``normalised`` = wcss / total lies in 0 … 1 and does not fall because features shrink. ``labels``: the same of
    the one-hot labels, 0 where the classes are the clusters. ``variation``, the sum of both, is equation 6, and for
    every partition an upper bound of TCV_K. ``by``: the partition, of class labels or of k-means. ``note``: what the
    numbers hide.
    """

    by: str
    clusters: int
    rows: int
    wcss: float
    total: float
    note: str = ""
    labels: float = 0.0

    @property
    def variation(self) -> float:
        """Of features and labels together: WCSS of equation 6."""
        return self.wcss + self.labels

    @property
    def normalised(self) -> float:
        """wcss / total; NaN for constant features."""
        return self.wcss / self.total if self.total > 0 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "clusters": self.clusters,
            "rows": self.rows,
            "wcss": self.wcss,
            "total": self.total,
            "normalised": self.normalised if self.total > 0 else None,
            "labels": self.labels,
            "variation": self.variation,
            "note": self.note,
        }


class Scatter:
    """Count, mean and within-cluster sum of squares of each of K clusters of rows (R, d), in float64.

    Batches are merged by the rule of Chan, Golub and LeVeque (1979), without the cancellation of Σz² − N z̄².
    Memory: K·d doubles. A row costs 3·d additions.
    """

    def __init__(self, clusters: int, size: int) -> None:
        self.counts = torch.zeros(clusters, dtype=torch.int64)
        self.means = torch.zeros(clusters, size, dtype=torch.float64)
        self.within = torch.zeros(clusters, dtype=torch.float64)

    def update(self, rows: Tensor, index: Tensor) -> None:
        """Take in ``rows`` (R, d) with their clusters ``index`` (R,). ``ValueError`` for rows that are not finite."""
        rows, index = rows.detach().cpu().double(), index.cpu()
        clusters = len(self.counts)
        counts = index.bincount(minlength=clusters)
        sums = torch.zeros_like(self.means).index_add_(0, index, rows)
        if not bool(sums.isfinite().all()):
            raise ValueError("some features are NaN or infinite: look for bad samples, or for overflow")
        means = sums / counts.clamp_min(1).unsqueeze(1)
        squares = (rows - means[index]).square().sum(1)
        within = torch.zeros_like(self.within).index_add_(0, index, squares)
        total = self.counts + counts
        share = counts.double() / total.clamp_min(1)
        shift = means - self.means
        self.within += within + shift.square().sum(1) * self.counts * share
        self.means += torch.where(counts.bool().unsqueeze(1), shift * share.unsqueeze(1), torch.zeros_like(shift))
        self.counts = total

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> Tensor:
        """Of all rows, (d,)."""
        return (self.counts.double() / max(self.rows, 1)) @ self.means

    @property
    def between(self) -> float:
        """Σ_k N_k ‖z̄_k − z̄‖², not divided."""
        return float((self.counts * (self.means - self.mean).square().sum(1)).sum())

    def clusters(self, by: str, note: str = "", labels: float = 0.0) -> Clusters:
        """The numbers, with the variation of the ``labels`` given.

        ``note`` gains what they hide: empty clusters, clusters of one row, constant features.
        """
        count, inner = max(self.rows, 1), float(self.within.sum())
        total = inner + self.between
        # rounding of constant features is not variation
        scale = float((self.counts * self.means.square().sum(1)).sum())
        if total <= 1e-24 * scale:
            inner = total = 0.0
        filled, singles = int((self.counts > 0).sum()), int((self.counts == 1).sum())
        notes = [note] if note else []
        if filled < len(self.counts):
            notes.append(f"{len(self.counts) - filled} of {len(self.counts)} clusters are empty")
        if total == 0:
            notes.append("constant features")
        if filled == self.rows and self.rows > 1:
            notes.append("as many clusters as rows, so that the variation is 0 whatever the features are")
        elif singles:
            notes.append(
                f"{singles} {'cluster consists' if singles == 1 else 'clusters consist'} of one row, in which "
                "nothing varies"
            )
        return Clusters(by, filled, self.rows, inner / count, total / count, "; ".join(notes), labels)


def scatter_of(rows: Tensor, partition: Partition) -> Scatter:
    """The scatter of ``rows`` (N, d) in memory under a partition of them."""
    if len(rows) != len(partition.index):
        raise ValueError(
            f"{len(rows)} rows were given and {len(partition.index)} samples in the partition: give as many of each"
        )
    found = Scatter(partition.clusters, rows.shape[1])
    found.update(rows, partition.index)
    return found


def label_variation(table: Tensor) -> float:
    """(1/N) Σ_k Σ_{i∈C_k} ‖y_i − ȳ_k‖² of one-hot labels, from ``table`` (K, C): rows of each class in each cluster.

    A cluster of N_k rows, n_c of class c, adds N_k − Σ_c n_c²/N_k: nothing where it holds one class.
    """
    counts = table.double()
    sizes = counts.sum(1)
    spread = sizes - counts.square().sum(1) / sizes.clamp_min(1)
    return float(spread.sum() / sizes.sum().clamp_min(1))
