"""Cross-correlations of one-hot labels and what layers are given, with which compressed linear products begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, labels_of
from rankfold.costs import evaluating
from rankfold.induce.choose import Target
from rankfold.observe import before, first_of
from rankfold.observe.passes import Place, apart


def correlations(root: nn.Module, targets: Mapping[str, Target], data: Any, samples: int) -> dict[str, Tensor]:
    """Y Xᵀ (classes, n) of one-hot labels and the inputs of each layer, averaged over positions; float64, on the CPU.
    Samples with a negative label, which losses ignore, are left out.

    Raises ``ValueError`` for data without labels, for labels that are no class numbers, for a layer that the data never
    reach, and for one in whose inputs the samples are not found.
    """
    inputs: dict[str, list[Tensor]] = {}
    sums: dict[str, Tensor] = {}
    places: Mapping[str, Place] | None = None

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            inputs.setdefault(name, []).append(first_of(args, kwargs).detach())

        return hook

    for batch in batches_of(data, 128, samples):
        classes = _classes(labels_of(batch))
        if places is None:  # a linear layer gives the samples where it is given them
            places = apart(root, batch, {name: target.module for name, target in targets.items()}).places
        inputs.clear()
        with evaluating(root), before(root, {target.module: watch(name) for name, target in targets.items()}):
            forward(root, batch)
        for name, found in inputs.items():
            features = [_by_sample(targets[name], x, len(classes), places.get(name)).cpu() for x in found]
            sums[name] = _added(sums.get(name), classes, torch.stack(features).sum(0))
    missing = [name for name in targets if name not in sums]
    if missing:
        raise ValueError(
            f"the data never reach the layer {missing[0]}: give other data, or use start='random', which needs none"
        )
    if not all(len(total) for total in sums.values()):
        raise ValueError(
            "start='correlation' needs class numbers of at least 0, and every label is negative, which losses ignore: "
            "give other data, or use start='random', which needs none"
        )
    return sums


def _classes(labels: Any) -> Tensor:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex() or labels.dim() != 1:
        raise ValueError(
            "start='correlation' needs one class number for each sample: give labelled batches, or use "
            "start='gradient' or 'random'"
        )
    return labels.detach().cpu().long()


def _by_sample(target: Target, x: Tensor, samples: int, place: Place | None) -> Tensor:
    """(samples, n) the means over positions. ``place``: None where a model that takes no other batch does not tell."""
    place = place or (Place() if len(x) == samples else None)
    blocks = 0 if place is None else place.blocks(x.shape, samples)
    if not blocks:
        raise ValueError(
            f"{target.title}: which of its inputs, of shape {tuple(x.shape)}, belong to which of {samples} samples "
            "cannot be told: use start='gradient' or 'random'"
        )
    return x.reshape(blocks, samples, -1, x.shape[-1]).double().mean((0, 2))


def _added(total: Tensor | None, classes: Tensor, features: Tensor) -> Tensor:
    counted = classes >= 0
    count = max([0 if total is None else len(total), *(classes[counted] + 1).tolist()])
    wider = features.new_zeros(count, features.shape[-1])
    if total is not None:
        wider[: len(total)] = total
    return wider.index_add_(0, classes[counted], features[counted])
