"""Centroid warm-up: train first on cluster centroids, which are few, then on the data (the paper's closing remark)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.collapse.centroid import centroids
from rankfold.collapse.partition import kmeans
from rankfold.objectives import main_tensor


@dataclass(frozen=True, eq=False)
class Centroids:
    """``inputs`` (K, …), their class ``labels`` (K,), and ``weights`` N_k/N (K,)."""

    inputs: Tensor
    labels: Tensor
    weights: Tensor


def class_centroids(
    inputs: Tensor, labels: Tensor, per_class: int = 1, *, seed: int = 0, restarts: int = 1
) -> Centroids:
    """``per_class`` centroids of each class (N, …), (N,) by k-means within it; 1 needs no k-means.

    Every cluster has one label, so that L_C^0 is the loss of these points with these weights. Classes with fewer
    distinct samples give as many centroids as they have. Raises ``ValueError`` for no samples or ``per_class`` < 1.
    """
    if per_class < 1 or not len(inputs) or len(inputs) != len(labels):
        raise ValueError(
            f"{len(inputs)} inputs, {len(labels)} labels and {per_class} centroids for each class were given: "
            "give at least one of each, and one label for each input"
        )
    points, classes, weights = [], [], []
    for label in labels.unique():
        members = inputs[labels == label]
        partition = kmeans(members.flatten(1), per_class, restarts=restarts, seed=seed)
        points.append(centroids(members, partition))
        classes.append(label.expand(partition.clusters))
        weights.append(partition.counts.double() / len(inputs))
    return Centroids(torch.cat(points), torch.cat(classes), torch.cat(weights))


def warm_up_(
    model: nn.Module,
    points: Centroids,
    *,
    steps: int = 50,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> float:
    """Gradient descent with momentum on the centroid loss (weighted cross-entropy), ``steps`` steps; the last loss.

    Changes the parameters of ``model``; its mode is left as found (BatchNorm is trained on centroids too, so that a
    network with it is better warmed up in eval mode). Cost of a step: as many samples as there are centroids.
    """
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay)
    value = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        losses = F.cross_entropy(main_tensor(model(points.inputs)), points.labels, reduction="none")
        value = (points.weights.to(losses) * losses).sum()
        value.backward()
        optimizer.step()
    return float(value.detach())
