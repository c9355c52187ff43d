"""Why the layers of a model are as low-rank as they are: spectra, clusters, bounds and what follows, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from rankfold.batches import evaluating
from rankfold.collapse import LOSSES, LayerBound, LayerClusters, Partition, Paths, Transitions, measure_layers
from rankfold.linalg.brief import brief
from rankfold.objectives import Objective
from rankfold.pipeline.collapse.bounded import InMemory, Theory, bounded
from rankfold.pipeline.collapse.conclusion import conclusion, few
from rankfold.pipeline.collapse.groups import grouped
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress, showing
from rankfold.sites import Site, SiteList, opened, sites, unwrap
from rankfold.spectrum import Spectrum, spectrum


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
@ordinarily
def collapse_report(
    model: nn.Module,
    data: Any,
    *,
    decay: float | None = None,
    loss: str | None = None,
    samples: int = 2048,
    clusters: int | None = None,
    seed: int = 0,
    objective: Objective | str | None = None,
    progress: Progress | None = None,
) -> CollapseReport:
    """Measure ``model`` on ``samples`` labelled samples of ``data``: everything in ``CollapseReport``.

    ``decay``: κ, torch's coupled ``weight_decay`` of the training (2λ of λ‖Θ‖²), 0 without any: then there are no
    bounds; estimated if left out, where the weights tell one. ``clusters``: K of k-means, by default the number of
    classes. Targets that are numbers, one for each output, are put into so many clusters, 10 by default, which take
    the place of classes; the bounds use the targets themselves. ``loss``: of the training, a name in
    ``rankfold.collapse.LOSSES``; by default cross-entropy of classes, and of numbers what ``rf.fit`` minimises: the
    mean over the outputs of squared errors, or of binary cross-entropy where all of them are 0 and 1. A network that
    was trained with the sum over p outputs needs "squared-error", or its decay over p. ``objective``: what outputs and
    targets mean, by default the one that they tell. The chain is computed in float64 for models of up to 20 million
    parameters. Cost: one decomposition of every site, two passes, two backward passes, and k-means at every layer.
    Raises ``ValueError``: no labels, or such that no layer has features for, a loss that is unknown or not of such
    targets, a decay below 0, weights that are not finite.
    """
    _check(decay, loss)
    root, tell = unwrap(model), progress or (lambda what, done, total: None)
    found = sites(root)
    groups = grouped(root, data, samples, clusters, seed, objective)
    asked, data, loss = loss, groups.data, groups.loss_as(loss)
    measured = measure_layers(
        root, data, samples=samples, clusters=clusters, seed=seed, progress=tell, judged=not groups.clustered,
        objective=groups.objective,
    )  # fmt: skip
    spectra = _spectra(root, found, tell)
    given = InMemory.of(root, data, samples)
    partition = Partition.of(given.labels, given.outputs if groups.targets is None else None)
    notes = [note for note in (groups.note, groups.of_loss(asked), partition.note) if note]
    notes += _about_clusters(measured)
    theory = Theory(float("nan") if decay is None else decay)
    if why := _why_none(found, given, decay):
        notes.append(f"there are no bounds: {why}")
    else:
        targets = given.labels if groups.targets is None else groups.targets
        with evaluating(root), torch.enable_grad():  # the chain itself restores the mode of the root alone
            theory = bounded(root, found, given, targets, partition, decay, loss, tell)
    layers = tuple(
        LayerCollapse(site, spectra[site.name], measured.get(site.name), theory.bounds.get(site.name)) for site in found
    )
    return CollapseReport(
        layers, partition.clusters, len(given.labels), theory.decay, decay is None, loss, theory.residual,
        theory.transitions, dict(theory.skipped), found.left_out, tuple(notes), theory.paths,
        int((partition.counts == 1).sum()), "clusters" if groups.clustered else "classes",
    )  # fmt: skip


def _why_none(found: SiteList, given: InMemory, decay: float | None) -> str:
    """Why there are no bounds; "" where there are."""
    if not found:
        reasons = dict.fromkeys(reason for _, reason in found.left_out)
        return f"the network has no layer that could be low-rank ({'; '.join(reasons) or 'it has no weights'})"
    if decay == 0:
        return "they hold of networks that were trained with weight decay"
    return given.why


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
