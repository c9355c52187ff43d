"""The constant of theorem 3.4: how strongly the gradient of a layer bends between a cluster's centroid and its members.

    ‖∇L − ∇L_C‖ ≤ C · WCSS,   C = ½ max ‖D²g(p)[δ, δ]‖ / ‖δ‖²,   g = ∇_W ℓ(f_{l:L}(z), y), p = (z, y)

The paper takes the largest bend over the convex hull of all features and labels and in every direction. Its proof needs
the segments from centroids to members alone (lemma 3.3 with the integral remainder), so that the constant here is the
smallest that the proof allows for the data and partition given: the printed one is at least as large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from rankfold.collapse.backward import Rows, layer_rows
from rankfold.collapse.centroid import Tail, centroids
from rankfold.collapse.losses import Loss
from rankfold.collapse.partition import Partition

NODES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of every segment
_STEP = 1e-3  # of a segment: of the second difference
_CHUNK = 32  # samples whose gradients are held at once


@dataclass(frozen=True)
class Promise:
    """What theorem 3.4 says of one layer at a stationary point: dist(W_j, M_K) ≤ ``value`` = C · WCSS_l / κ.

    ``constant`` C and ``variation`` WCSS_l, of features and labels, at the cut of least value; ``difference`` =
    ‖∇L − ∇L_C^l‖/κ there, which ``value`` bounds at any parameters.
    """

    constant: float
    variation: float
    cut: str
    difference: float
    value: float

    @property
    def holds(self) -> bool:
        return self.difference <= 1.001 * self.value  # the bend is measured at some points of each segment


def bends(
    tail: Tail,
    features: Tensor,
    targets: Tensor,
    partition: Partition,
    loss: Loss,
    names: Sequence[str],
    *,
    nodes: Sequence[float] = NODES,
) -> tuple[float, dict[str, float]]:
    """WCSS and, of every layer of ``names`` behind the cut of ``tail``, C, by second differences along the segments.

    ``features`` (N, …) enter the cut, ``targets`` (N, C); ``nodes``: the points, 0 at the centroid, 1 at the sample.
    Samples at their centroid bend nothing. Layers whose rows cannot be taken apart are missing. Needs float64. Cost:
    three backward passes over the data for each node; memory: the gradients of 32 samples at every layer.
    """
    z, y = centroids(features, partition)[partition.index], centroids(targets, partition)[partition.index]
    dz, dy = features - z, targets - y
    size = dz.flatten(1).square().sum(1) + dy.flatten(1).square().sum(1)
    moving = (size > 0).nonzero().squeeze(1)
    most: dict[str, float] = {}
    for part in moving.split(_CHUNK):

        def slopes(position: float, part: Tensor = part) -> dict[str, Tensor]:
            at = z[part] + position * dz[part], y[part] + position * dy[part]
            return dict(_gradients(layer_rows(tail.model, names, *at, loss, 1.0, tail), len(part)))

        for node in nodes:
            before, here, after = (slopes(node + shift) for shift in (-_STEP, 0.0, _STEP))
            for name, slope in here.items():
                bend = (before[name] - 2 * slope + after[name]).flatten(1).norm(dim=1) / _STEP**2
                most[name] = max(most.get(name, 0.0), 0.5 * float((bend / size[part]).max()))
    return float(size.mean()), most


def _gradients(rows: Sequence[Rows], samples: int) -> Iterator[tuple[str, Tensor]]:
    """The gradient of each sample by itself, (samples, m, n), of every layer."""
    for name, a, delta in rows:
        inside, outside = (each.reshape(samples, -1, each.shape[1]) for each in (a, delta))
        yield name, outside.mT @ inside
