"""Why the layers of a model are as low-rank as they are: spectra, clusters, bounds and what follows, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, copied, forward, labels_of
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
from rankfold.linalg.brief import brief
from rankfold.objectives import main_tensor
from rankfold.pipeline.collapse.conclusion import conclusion, few
from rankfold.pipeline.collapse.groups import grouped
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

    __repr__ = brief

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
    of one sample. ``kinds``: what ``classes`` counts, "classes" or "clusters" of targets.
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
    kinds: str = "classes"

    __repr__ = brief

    @property
    def violations(self) -> int:
        return sum(layer.bound is not None and not layer.bound.holds for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "classes": self.classes,
            "kinds": self.kinds,
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
    loss: str | None = None,
    samples: int = 2048,
    clusters: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CollapseReport:
    """Measure ``model`` on ``samples`` labelled samples of ``data``: everything in ``CollapseReport``.

    ``decay``: κ, torch's coupled ``weight_decay`` of the training (2λ of λ‖Θ‖²), 0 without any: then there are no
    bounds; estimated if left out, where the weights tell one. ``clusters``: K of k-means, by default the number of
    classes. Targets that are numbers (regression) are put into so many clusters, 10 by default, which take the
    place of classes; the bounds use the targets themselves. ``loss``: by default cross-entropy of classes and
    squared error of numbers. The chain is computed in float64 for models of up to 20 million parameters. Cost: one
    decomposition of every site, two passes, two backward passes, and k-means at every layer.
    Raises ``ValueError``: no labels, an unknown loss, a decay below 0, weights that are not finite.
    """
    _check(decay, loss)
    root, tell = unwrap(model), progress or (lambda what, done, total: None)
    found = sites(root)
    groups = grouped(root, data, samples, clusters, seed)
    data, loss, numbers = groups.data, groups.loss_as(loss), groups.targets is not None
    measured = measure_layers(
        root, data, samples=samples, clusters=clusters, seed=seed, progress=tell, judged=not numbers
    )
    spectra = _spectra(root, found, tell)
    inputs, labels = _in_memory(data, samples)
    classes = _outputs(root, inputs)
    partition = Partition.of(labels, None if groups.note else classes)
    notes = [note for note in (groups.note, partition.note) if note]
    notes += _about_clusters(measured)
    theory = _Theory(float("nan") if decay is None else decay)
    if decay == 0:
        notes.append("there are no bounds: they hold of networks that were trained with weight decay")
    elif not isinstance(inputs, Tensor):
        several = "features are those of positions" if groups.note else "the model takes more than one tensor"
        notes.append(f"there are no bounds: {several}")
    elif classes is None:
        notes.append("there are no bounds: the model's output is not one row of numbers for each sample")
    else:
        numbered = labels if groups.targets is None else groups.targets
        theory = _bounded(root, found, inputs, numbered, classes, partition, decay, loss, tell)
    layers = tuple(
        LayerCollapse(site, spectra[site.name], measured.get(site.name), theory.bounds.get(site.name)) for site in found
    )
    return CollapseReport(
        layers, partition.clusters, len(labels), theory.decay, decay is None, loss, theory.residual, theory.transitions,
        dict(theory.skipped), found.left_out, tuple(notes), theory.paths, int((partition.counts == 1).sum()),
        "clusters" if groups.note else "classes",
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Theory:
    """What the chain says; NaN and nothing where there is none."""

    decay: float
    residual: float = float("nan")
    bounds: Mapping[str, LayerBound] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    paths: Paths | None = None
    transitions: Transitions | None = None


def _bounded(
    root: nn.Module,
    found: SiteList,
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    partition: Partition,
    decay: float | None,
    loss: str,
    tell: Progress,
) -> _Theory:
    """Decay, bounds and transitions of a network of one tensor in and one row of ``classes`` numbers out."""
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
    dying = _transitions(inputs, targets, classes, ways.longest, loss)
    return _Theory(kappa, residual, bounds, skipped, ways, dying)


def _check(decay: float | None, loss: str | None) -> None:
    if loss is not None and loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if decay is not None and not decay >= 0:
        raise ValueError(
            f"decay must be that of the training, or 0 where there was none, got {decay:g}: leave it out to have it "
            "estimated"
        )


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
    found = torch.cat([label.flatten()[label.flatten() >= 0] if label.ndim > 1 else label for label in labels])
    return (torch.cat(parts) if alike and labels[0].ndim == 1 else None), found


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
