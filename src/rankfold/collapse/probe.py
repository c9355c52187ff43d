"""What a recorder asks of a network in training: clusters, neural collapse, the chain of bounds, on a fixed sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, labels_of
from rankfold.collapse.bounds import Chain, LayerBound, chain
from rankfold.collapse.centroid import centroids
from rankfold.collapse.features import has_channels_first, order_of_calls, rows, watched
from rankfold.collapse.losses import LOSSES, vectors
from rankfold.collapse.neural_collapse import Projected, neural_collapse
from rankfold.collapse.partition import Partition
from rankfold.collapse.scatter import scatter_of
from rankfold.costs import evaluating
from rankfold.objectives import main_tensor
from rankfold.sites import opened, sites, unwrap

COLUMNS = (
    "wcss", "total_variation", "normalised_wcss", "nc1", "cdnv", "nc2_norms", "nc2_angles", "nc3", "nc4",
    "to_rank_k", "chain_bound", "chain_joint", "chain_local", "chain_gradient", "chain_residual", "chain_holds",
)  # fmt: skip


class CollapseProbe:
    """For ``SpectrumRecorder(model, probe=…)``: measures of the features that enter each site.

    Call it with a model: columns ``COLUMNS`` for every site, of the class partition; NaN where a number does not exist.

    Args:
        data: labelled batches; the first ``samples`` samples are kept in memory.
        samples: how many.
        decay: κ of the training (torch's coupled ``weight_decay``), for the chain of theorem 3.4 at every record; None
            leaves it out.
        loss: "cross-entropy" or "squared-error" (on one-hot targets).
        local: whether bounds of single layers are measured too.

    Raises:
        ValueError: data without one whole label for each sample, or an unknown loss.

    Cost: of a record a forward pass over the sample and about d additions for each number; with ``decay`` a backward
    pass over it and one decomposition of each weight more.

    Example:
        >>> x = torch.randn(32, 8); y = torch.arange(32) % 2
        >>> probe = rf.collapse.CollapseProbe((x, y))
        >>> sorted(probe(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))))
        ['0', '2']
    """

    columns = COLUMNS

    def __init__(
        self,
        data: Any,
        *,
        samples: int = 512,
        decay: float | None = None,
        loss: str = "cross-entropy",
        local: bool = True,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        parts, labels = [], []
        for batch in batches_of(data, min(samples, 1024), samples):
            found = labels_of(batch)
            if found is None or found.ndim != 1 or found.is_floating_point():
                raise ValueError("the probe needs one class label for each sample: give batches (inputs, labels)")
            parts.append(batch[0])
            labels.append(found)
        if not parts:
            raise ValueError("the probe got no data: give at least one labelled batch")
        self.inputs, self.labels = torch.cat(parts), torch.cat(labels).long()
        self.partition = Partition.of(self.labels)
        self.decay, self.loss, self.local = decay, loss, local

    def __call__(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Site → column → number, for the model as it is; its mode, hooks and gradients are left as found."""
        root = unwrap(model)
        mode = root.training
        try:
            with evaluating(root), opened(root):
                names = order_of_calls(root, [site.name for site in sites(root)], lambda: self._answers(root, 2))
                bounds = self._chain(root) if self.decay else None
                if bounds is not None and set(names) <= set(bounds.features):
                    table = self._measure(root, bounds.features, bounds.answers)
                else:
                    features: dict[str, Tensor] = {}
                    with watched(root, names, "input", lambda name, _, value: features.__setitem__(name, value)):
                        answers = self._answers(root)
                    table = self._measure(root, features, answers)
            for layer in bounds.layers if bounds is not None else ():
                table.setdefault(layer.name, {}).update(_columns(layer))
            return table
        finally:
            root.train(mode)

    def _answers(self, root: nn.Module, count: int | None = None) -> Tensor:
        return main_tensor(forward(root, self.inputs[:count]))

    def _chain(self, root: nn.Module) -> Chain:
        assert self.decay is not None
        outputs = self._answers(root, 1)
        inputs = self.inputs.to(outputs.dtype) if self.inputs.is_floating_point() else self.inputs
        targets = vectors(self.labels, outputs.shape[-1], outputs.dtype)
        with torch.enable_grad():
            return chain(root, inputs, targets, self.partition, self.decay, LOSSES[self.loss], local=self.local)

    def _measure(self, root: nn.Module, features: Mapping[str, Tensor], answers: Tensor) -> dict[str, dict[str, float]]:
        table: dict[str, dict[str, float]] = {}
        guessed = answers.argmax(1).cpu() if answers.ndim == 2 else None
        known = None if guessed is None else self._compact(guessed)
        for name, value in features.items():
            if not value.is_floating_point() or len(value) != len(self.inputs):
                continue
            module = root.get_submodule(name)
            found = rows(value, "pooled", channels_first=has_channels_first(module, value)).double()
            scatter = scatter_of(found, self.partition)
            projected = Projected(scatter)
            projected.update(found, self.partition.index, known)
            weight: Any = getattr(module, "weight", None)
            fits = isinstance(weight, Tensor) and weight.shape == scatter.means.shape
            clusters = scatter.clusters("class")
            table[name] = {
                "wcss": clusters.wcss,
                "total_variation": clusters.total,
                "normalised_wcss": clusters.normalised,
                **vars(neural_collapse(scatter, projected, weight if fits else None)),
            }
        return table

    def _compact(self, answers: Tensor) -> Tensor:
        present = self.labels.unique()
        index = torch.searchsorted(present, answers).clamp_max(len(present) - 1)
        return torch.where(present[index] == answers, index, -1)


def _columns(layer: LayerBound) -> dict[str, float]:
    return {
        "to_rank_k": layer.distance,
        "chain_bound": layer.bound,
        "chain_joint": layer.joint,
        "chain_local": float("nan") if layer.local is None else layer.local,
        "chain_gradient": layer.gradient_part,
        "chain_residual": layer.residual_part,
        "chain_holds": float(layer.holds),
    }


def class_centroids(inputs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(centroids (K, …), one-hot targets (K, C), weights N_k/N (K,)) of labelled inputs: what L_C is taken of."""
    partition = Partition.of(labels)
    points = centroids(inputs, partition)
    return points, vectors(labels.unique(), classes, inputs.dtype), partition.counts.double() / len(labels)
