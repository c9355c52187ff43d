"""What a recorder asks of a network in training: clusters, neural collapse, the chain of bounds, on a fixed sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, labels_of, size_of
from rankfold.collapse.bounds import Chain, LayerBound, chain
from rankfold.collapse.centroid import centroids
from rankfold.collapse.data.inputs import one_tensor
from rankfold.collapse.data.reading import Reading, compact
from rankfold.collapse.features import counted_in, has_channels_first, order_of_calls, rows, watched
from rankfold.collapse.losses import LOSSES, vectors
from rankfold.collapse.neural_collapse import Projected, neural_collapse
from rankfold.collapse.partition import Partition
from rankfold.collapse.scatter import Scatter
from rankfold.costs import evaluating
from rankfold.objectives import main_tensor
from rankfold.sites import opened, sites, unwrap

COLUMNS = (
    "wcss", "total_variation", "normalised_wcss", "nc1", "cdnv", "nc2_norms", "nc2_angles", "nc3", "nc4",
    "to_rank_k", "chain_bound", "chain_joint", "chain_local", "chain_gradient", "chain_residual", "chain_holds",
)  # fmt: skip


class CollapseProbe:
    """For ``SpectrumRecorder(model, probe=…)``: measures of the features that enter each site.

    Call it with a model: columns ``COLUMNS`` for every site, of the class partition, over all calls of a site; NaN
    where a number does not exist. What ``attention_mask`` leaves out counts nowhere.

    Args:
        data: labelled batches of any form; the first ``samples`` samples are kept in memory.
        samples: how many.
        decay: κ of the training (torch's coupled ``weight_decay``), for the chain of theorem 3.4 at every record; None
            leaves it out.
        loss: a name in ``rankfold.collapse.LOSSES``, squared errors on one-hot targets; by default that of classes,
            "cross-entropy", or "binary-cross-entropy" where the model has one output.
        local: whether bounds of single layers are measured too.

    Raises:
        ValueError: data without one whole label for each sample, an unknown loss, or a decay below 0.

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
        loss: str | None = None,
        local: bool = True,
    ) -> None:
        if loss is not None and loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if decay is not None and not decay >= 0:
            raise ValueError(f"decay must be that of the training, or None where there was none, got {decay:g}")
        self.batches = list(batches_of(data, min(samples, 1024), samples))
        if not self.batches:
            raise ValueError("the probe got no data: give at least one labelled batch")
        self.labels = torch.cat([_labels(batch) for batch in self.batches])
        self.partition = Partition.of(self.labels)
        self.decay, self.loss, self.local = decay, loss, local
        self._fit: _Fit | None = None

    @property
    def inputs(self) -> Tensor:
        """All inputs (N, …) as one tensor. ``ValueError`` for batches that are given in another way."""
        if not all(isinstance(batch, tuple | list) and isinstance(batch[0], Tensor) for batch in self.batches):
            raise ValueError("the inputs of the probe are not one tensor: look into its batches")
        return torch.cat([batch[0] for batch in self.batches])

    def check(self, model: nn.Module) -> None:
        """Whether data, loss and ``model`` fit each other: ``ValueError`` in one line where they do not.

        The first record does so too; before a training it costs a forward pass of the first batch.
        """
        root = unwrap(model)
        with evaluating(root), opened(root):
            self._fit = self._fitting(root)

    def __call__(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Site → column → number, for the model as it is; its mode, hooks and gradients are left as found."""
        root = unwrap(model)
        with evaluating(root), opened(root):
            fit = self._fit = self._fit or self._fitting(root)
            names = order_of_calls(root, [site.name for site in sites(root)], lambda: self._few(root))
            bounds = None if fit.inputs is None else self._chain(root, fit, fit.inputs)
            if bounds is not None and set(names) <= set(bounds.features):
                parts = self._passed(root, bounds, fit.reading)
            else:
                parts = self._pass(root, names, fit.reading)
            table = {name: self._measure(root.get_submodule(name), part) for name, part in parts.items()}
        for layer in bounds.layers if bounds is not None else ():
            table.setdefault(layer.name, {}).update(_columns(layer))
        return table

    def _few(self, root: nn.Module) -> Any:
        return [forward(root, batch) for batch in batches_of(self.batches[:1], limit=2)]

    def _fitting(self, root: nn.Module) -> _Fit:
        batch = self.batches[0]
        output = forward(root, batch)
        reading, values = Reading.of(output, batch), main_tensor(output)
        if not self.decay:
            return _Fit(reading)
        inputs, why = one_tensor(root, self.batches)
        if inputs is None:
            raise ValueError(f"the probe cannot measure bounds: {why}; leave decay= out")
        if values.ndim != 2:
            raise ValueError(
                "the probe cannot measure bounds: they need one row of outputs for each sample, (n, C), and the model "
                f"gives {tuple(values.shape)}; leave decay= out"
            )
        outputs = values.shape[1]
        loss = self.loss or ("binary-cross-entropy" if outputs == 1 else "cross-entropy")
        if outputs == 1 and loss == "cross-entropy":
            raise ValueError(
                "the model has one output, of which cross-entropy says nothing: leave loss= out, or give "
                "binary-cross-entropy"
            )
        Partition.of(self.labels, max(outputs, 2))  # refuses labels that have no output
        return _Fit(reading, inputs, loss, outputs)

    def _chain(self, root: nn.Module, fit: _Fit, inputs: Tensor) -> Chain:
        assert self.decay is not None
        dtype = main_tensor(self._few(root)[0]).dtype
        inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        targets = vectors(self.labels, fit.outputs, dtype) if fit.outputs > 1 else self.labels.unsqueeze(1).to(dtype)
        with torch.enable_grad():
            return chain(root, inputs, targets, self.partition, self.decay, LOSSES[fit.loss], local=self.local)

    def _passed(self, root: nn.Module, bounds: Chain, reading: Reading) -> dict[str, list[_Part]]:
        """The features that the chain has seen, of layers that are called once."""
        known, index = self._known(bounds.answers, self.labels, reading), self.partition.index
        return {
            name: [_Part(rows(value, "pooled", channels_first=channels).double(), index, known)]
            for name, value in bounds.features.items()
            if value.is_floating_point()
            for channels in (has_channels_first(root.get_submodule(name), value),)
        }

    def _pass(self, root: nn.Module, names: Sequence[str], reading: Reading) -> dict[str, list[_Part]]:
        """The features of a forward pass, of all calls."""
        parts: dict[str, list[_Part]] = {}
        taken: list[tuple[str, Tensor]] = []
        start = 0

        def take(name: str, module: nn.Module, value: Tensor) -> None:
            if value.is_floating_point() and len(value) == len(labels):
                channels = has_channels_first(module, value)
                counted = counted_in(value, batch, channels_first=channels)
                taken.append((name, rows(value, "pooled", channels_first=channels, counted=counted).double()))

        with watched(root, names, "input", take):
            for batch in self.batches:
                labels = self.labels[start : start + size_of(batch)]
                known = self._known(forward(root, batch), labels, reading)
                index = self.partition.index[start : start + len(labels)]
                for name, found in taken:
                    parts.setdefault(name, []).append(_Part(found, index, known))
                taken.clear()
                start += len(labels)
        return {name: parts[name] for name in names if name in parts}

    def _known(self, output: Any, labels: Tensor, reading: Reading) -> Tensor | None:
        answers = reading.answers(output, labels)
        return None if answers is None else compact(answers, self.labels.unique())

    def _measure(self, module: nn.Module, parts: Sequence[_Part]) -> dict[str, float]:
        scatter = Scatter(self.partition.clusters, parts[0].rows.shape[1])
        for part in parts:
            scatter.update(part.rows, part.index)
        projected = Projected(scatter)
        for part in parts:
            projected.update(part.rows, part.index, part.answers)
        weight: Any = getattr(module, "weight", None)
        fits = isinstance(weight, Tensor) and weight.shape == scatter.means.shape
        clusters = scatter.clusters("class")
        return {
            "wcss": clusters.wcss,
            "total_variation": clusters.total,
            "normalised_wcss": clusters.normalised,
            **vars(neural_collapse(scatter, projected, weight if fits else None)),
        }


@dataclass(frozen=True, eq=False)
class _Fit:
    """How data and model go together. ``inputs``: (N, …) of the chain, None without one; ``loss``: its name."""

    reading: Reading
    inputs: Tensor | None = None
    loss: str = ""
    outputs: int = 0


@dataclass(frozen=True, eq=False)
class _Part:
    """Pooled features of one call, the clusters of their samples, and what the network answers of these."""

    rows: Tensor
    index: Tensor
    answers: Tensor | None


def _labels(batch: Any) -> Tensor:
    """One whole number for each sample, (n,), of columns and of numbers 0 and 1 too."""
    labels = labels_of(batch)
    if isinstance(labels, Tensor) and labels.ndim and labels.numel() == len(labels) == size_of(batch):
        binary = labels.dtype == torch.bool or bool(((labels == 0) | (labels == 1)).all())
        if binary or not (labels.is_floating_point() or labels.is_complex()):
            return labels.detach().flatten().cpu().long()
    raise ValueError(
        "the probe needs one class label for each sample: give batches (inputs, labels); of numbers to be predicted "
        "give the cluster that each sample belongs to, or use rankfold collapse, which forms them"
    )


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
