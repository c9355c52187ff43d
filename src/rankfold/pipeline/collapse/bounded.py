"""The theory's part of a report: decay, residual, bounds and transitions, or in words why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, copied, forward
from rankfold.collapse import LOSSES, LayerBound, Partition, Paths, Transitions, chain, paths, transitions
from rankfold.collapse.data.inputs import one_tensor
from rankfold.collapse.data.reading import Reading
from rankfold.collapse.losses import vectors
from rankfold.costs import evaluating
from rankfold.objectives import main_tensor
from rankfold.pipeline.trainings.stationarity import stationarity
from rankfold.run.progress import Progress
from rankfold.sites import SiteList, opened

_MOST_INPUTS = 4096  # numbers of an input, for the covariance that the transitions need
_EXACT_PARAMS = 20_000_000  # up to here the chain is computed in float64


@dataclass(frozen=True, eq=False)
class Theory:
    """What the chain says; NaN and nothing where there is none."""

    decay: float
    residual: float = float("nan")
    bounds: Mapping[str, LayerBound] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    paths: Paths | None = None
    transitions: Transitions | None = None


@dataclass(frozen=True, eq=False)
class InMemory:
    """Samples with a label: ``inputs`` (N, …), or None and ``why``; ``labels`` (N,). ``outputs``: how many numbers the
    model gives for each, None where that is not one row."""

    inputs: Tensor | None
    labels: Tensor
    outputs: int | None
    why: str = ""

    @classmethod
    def of(cls, root: nn.Module, data: Any, samples: int) -> InMemory:
        """The first ``samples`` of labelled ``data``."""
        batches = list(batches_of(data, 256, samples))
        labels = [Reading().labels(batch) for batch in batches]
        if labels[0].ndim > 1:
            found = torch.cat([label[label >= 0] for label in labels])
            return cls(None, found, None, "the labels are those of positions, and bounds are of whole samples")
        found = torch.cat(labels)
        inputs, why = one_tensor(root, batches)
        if inputs is None:
            return cls(None, found[found >= 0], None, why)
        inputs = inputs[(found >= 0).to(inputs.device)]
        with evaluating(root):
            answer = main_tensor(forward(root, inputs[:2]))
        if answer.ndim != 2:
            return cls(None, found[found >= 0], None, "the model's output is not one row of numbers for each sample")
        return cls(inputs, found[found >= 0], answer.shape[1])


def bounded(
    root: nn.Module,
    found: SiteList,
    given: InMemory,
    targets: Tensor,
    partition: Partition,
    decay: float | None,
    loss: str,
    tell: Progress,
) -> Theory:
    """Decay, bounds and transitions of a network of one tensor in and one row of numbers out."""
    inputs, classes = given.inputs, given.outputs
    assert inputs is not None
    assert classes is not None
    exact = root
    if sum(p.numel() for p in root.parameters()) <= _EXACT_PARAMS:
        exact = copied(root).double()
        inputs = inputs.double() if inputs.is_floating_point() else inputs
    place = next(p for p in exact.parameters() if p.is_floating_point())
    wanted = vectors(targets, classes, place.dtype)
    kappa, residual = stationarity(exact, found, inputs, wanted, loss, decay)
    if decay is None and residual > 1:
        kappa = float("nan")
    with opened(exact):
        ways = paths(exact, [site.name for site in found], inputs[:2])
    bounds: dict[str, LayerBound] = {}
    skipped: dict[str, str] = {}
    if kappa == kappa:
        tell("bounds", 0, 1)
        result = chain(exact, inputs, wanted, partition, kappa, LOSSES[loss])
        bounds, skipped = {layer.name: layer for layer in result.layers}, dict(result.skipped)
        tell("bounds", 1, 1)
    return Theory(kappa, residual, bounds, skipped, ways, _transitions(inputs, targets, classes, ways.longest, loss))


def _transitions(inputs: Tensor, targets: Tensor, classes: int, layers: int, loss: str) -> Transitions | None:
    if not inputs.is_floating_point() or not layers:
        return None
    rows = inputs.flatten(1)
    if rows.shape[1] > _MOST_INPUTS:
        return None
    return transitions(rows, vectors(targets, classes, torch.float64), layers, loss=loss)
