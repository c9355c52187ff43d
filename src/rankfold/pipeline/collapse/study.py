"""Why the layers of a model are as low-rank as they are: spectra, clusters, bounds and what follows, in one call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, labels_of
from rankfold.collapse import (
    LOSSES,
    LayerBound,
    LayerClusters,
    Partition,
    Paths,
    Transitions,
    chain,
    measure_layers,
    paths,
    transitions,
)
from rankfold.collapse.losses import vectors
from rankfold.costs import evaluating
from rankfold.objectives import main_tensor
from rankfold.pipeline.collapse.conclusion import conclusion, few
from rankfold.pipeline.trainings.stationarity import stationarity
from rankfold.run.progress import Progress, showing
from rankfold.sites import Site, SiteList, opened, sites, unwrap
from rankfold.spectrum import Spectrum, spectrum

_MOST_INPUTS = 4096  # numbers of an input, for the covariance that the transitions need
_EXACT_PARAMS = 20_000_000  # up to here the chain is computed in float64


@dataclass(frozen=True, eq=False)
class LayerCollapse:
    """One site: ``clusters`` of the features that enter it (None: the data never reach it), ``bound`` (None: none)."""

    site: Site
    spectrum: Spectrum
    clusters: LayerClusters | None
    bound: LayerBound | None

    def to_dict(self, classes: int) -> dict[str, Any]:
        return {
            "site": self.site.name,
            "kind": self.site.kind,
            "shape": list(self.site.shape),
            "stable_rank": self.spectrum.stable_rank,
            "effective_rank": self.spectrum.effective_rank,
            "numerical_rank": self.spectrum.numerical_rank(1e-2),
            "rank_99": self.spectrum.rank_for(0.99),
            "relative_distance_to_k": self.spectrum.relative_tail(classes),
            "tails": self.spectrum.tails().tolist(),
            "clusters": None if self.clusters is None else self.clusters.to_dict(),
            "bound": None if self.bound is None else self.bound.to_dict() | {"certain_from": self.bound.certain_from},
            "note": self.site.note,
        }


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """Everything that ``rankfold collapse`` says.

    ``decay``: κ, given or estimated (``decay_estimated``: the one that makes the gradient and the weights most nearly
    stationary). ``residual``: ‖∇L + κW‖ over κ‖W‖. NaN is the decay where none above 0 fits, or where the best leaves a
    residual above 1: −∇L/κ is then farther from the weights than 0 is, so that they tell no decay.
    ``transitions``: at which decays directions of the data die in a linear chain of as many layers as the longest of
    ``paths`` has; None where the inputs have no covariance. ``skipped``: cuts that were not possible. ``lone``: classes
    of one sample.
    """

    layers: tuple[LayerCollapse, ...]
    classes: int
    samples: int
    decay: float
    decay_estimated: bool
    loss: str
    residual: float
    transitions: Transitions | None
    skipped: dict[str, str]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    paths: Paths | None = None
    lone: int = 0

    @property
    def violations(self) -> int:
        return sum(layer.bound is not None and not layer.bound.holds for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "classes": self.classes,
            "samples": self.samples,
            "decay": None if self.decay != self.decay else self.decay,
            "decay_estimated": self.decay_estimated,
            "loss": self.loss,
            "residual": None if self.residual != self.residual else self.residual,
            "violations": self.violations,
            "layers": [layer.to_dict(self.classes) for layer in self.layers],
            "transitions": None if self.transitions is None else self.transitions.to_dict(),
            "paths": None if self.paths is None else asdict(self.paths),
            "conclusion": self.conclusion(),
            "skipped_cuts": self.skipped,
            "left_out": [{"parameter": name, "reason": reason} for name, reason in self.left_out],
            "notes": list(self.notes),
        }

    def conclusion(self) -> str:
        """In one paragraph: which layers are low-rank, and which become so at which weight decay."""
        return conclusion(self)


@showing
def collapse_report(
    model: nn.Module,
    data: Any,
    *,
    decay: float | None = None,
    loss: str = "cross-entropy",
    samples: int = 2048,
    clusters: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CollapseReport:
    """Measure ``model`` on ``samples`` labelled samples of ``data``: everything in ``CollapseReport``.

    ``decay``: κ, torch's coupled ``weight_decay`` of the training (2λ of λ‖Θ‖²); estimated if left out, where the
    weights tell one. ``clusters``: K of k-means, by default the number of classes. The chain is computed in float64 for
    models of up to 20 million parameters. Cost: one decomposition of every site, two passes, two backward passes, and
    k-means at every layer.
    Raises ``ValueError``: no labels, an unknown loss, a decay that is not positive, weights that are not finite.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is one of {', '.join(LOSSES)}, got {loss!r}")
    if decay is not None and not decay > 0:
        raise ValueError(f"decay must be above 0, got {decay:g}; leave it out to have it estimated")
    root, tell = unwrap(model), progress or (lambda what, done, total: None)
    found = sites(root)
    measured = measure_layers(root, data, samples=samples, clusters=clusters, seed=seed, progress=tell)
    spectra = _spectra(root, found, tell)
    inputs, labels = _in_memory(data, samples)
    classes = _outputs(root, inputs)
    partition = Partition.of(labels, classes)
    notes = [partition.note] if partition.note else []
    notes += _about_clusters(measured)
    bounds: dict[str, LayerBound] = {}
    skipped: dict[str, str] = {}
    estimated, kappa, residual = decay is None, float("nan") if decay is None else decay, float("nan")
    ways: Paths | None = None
    if not isinstance(inputs, Tensor):
        notes.append("no bounds: the model takes more than one tensor")
    elif classes is None:
        notes.append("no bounds: the model's output is not one row of numbers for each sample")
    else:
        exact = root
        if sum(p.numel() for p in root.parameters()) <= _EXACT_PARAMS:
            exact = copy.deepcopy(root).double()
            inputs = inputs.double() if inputs.is_floating_point() else inputs
        place = next(p for p in exact.parameters() if p.is_floating_point())
        targets = vectors(labels, classes, place.dtype)
        kappa, residual = stationarity(exact, found, inputs, targets, loss, decay)
        if estimated and residual > 1:
            kappa = float("nan")
        with opened(exact):
            ways = paths(exact, [site.name for site in found], inputs[:2])
        if kappa == kappa:
            tell("bounds", 0, 1)
            result = chain(exact, inputs, targets, partition, kappa, LOSSES[loss])
            bounds, skipped = {layer.name: layer for layer in result.layers}, dict(result.skipped)
            tell("bounds", 1, 1)
    layers = tuple(
        LayerCollapse(site, spectra[site.name], measured.get(site.name), bounds.get(site.name)) for site in found
    )
    predicted = None if ways is None else _transitions(inputs, labels, classes, ways.longest, loss)
    return CollapseReport(
        layers, partition.clusters, len(labels), kappa, estimated, loss, residual, predicted, skipped, found.left_out,
        tuple(notes), ways, int((partition.counts == 1).sum()),
    )  # fmt: skip


def _spectra(root: nn.Module, found: SiteList, tell: Progress) -> dict[str, Spectrum]:
    values = {}
    with opened(root):
        for done, site in enumerate(found):
            try:
                values[site.name] = spectrum(site.matrix(root))
            except (ValueError, ArithmeticError) as error:
                raise ValueError(f"{site.title}: {error}") from error
            tell("decomposing", done + 1, len(found))
    return values


def _about_clusters(measured: Mapping[str, LayerClusters]) -> list[str]:
    """What the clusters' numbers hide, each sentence once, with the layers it is true of."""
    found: dict[str, list[str]] = {}
    for name, layer in measured.items():
        told = list(layer.notes)
        if "whole" in layer.classes:
            told += [f"classes: {part}" for part in layer.classes["whole"].note.split("; ") if part]
        if "whole" in layer.best:  # a cluster of one row is what k-means may well find
            told += [f"k-means: {part}" for part in layer.best["whole"].note.split("; ") if "as many" in part]
        for note in told:
            found.setdefault(note, []).append(name)
    return [f"{note} ({'every layer' if len(names) == len(measured) else few(names)})" for note, names in found.items()]


def _in_memory(data: Any, samples: int) -> tuple[Any, Tensor]:
    """(inputs, labels) of the first samples; inputs are None where they are not one tensor of one shape."""
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches_of(data, 256, samples):
        found = labels_of(batch)
        assert found is not None  # measure_layers has seen them
        labels.append(found.cpu().long())
        if isinstance(batch, tuple | list) and isinstance(batch[0], Tensor):
            parts.append(batch[0])
    alike = len(parts) == len(labels) and len({part.shape[1:] for part in parts}) == 1
    return (torch.cat(parts) if alike else None), torch.cat(labels)


def _outputs(root: nn.Module, inputs: Any) -> int | None:
    if not isinstance(inputs, Tensor):
        return None
    with evaluating(root):
        answer = main_tensor(forward(root, inputs[:2]))
    return answer.shape[1] if answer.ndim == 2 else None


def _transitions(inputs: Any, labels: Tensor, classes: int | None, layers: int, loss: str) -> Transitions | None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or classes is None or not layers:
        return None
    rows = inputs.flatten(1)
    if rows.shape[1] > _MOST_INPUTS:
        return None
    return transitions(rows, vectors(labels, classes, torch.float64), layers, loss=loss)
