"""Why the layers of a model are as low-rank as they are: spectra, clusters, bounds and what follows, in one call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, labels_of, logits_of
from rankfold.collapse import (
    LOSSES,
    LayerBound,
    LayerClusters,
    Partition,
    Transitions,
    chain,
    measure_layers,
    transitions,
)
from rankfold.collapse.losses import vectors
from rankfold.costs import evaluating
from rankfold.pipeline.stationarity import stationarity
from rankfold.sites import Site, SiteList, sites, split_attention, unwrap
from rankfold.spectrum import Spectrum, spectrum

LOW = 0.05  # relative distance below which a layer counts as of that rank
_MOST_INPUTS = 4096  # numbers of an input, for the covariance that the transitions need
_EXACT_PARAMS = 20_000_000  # up to here the chain is computed in float64

Progress = Callable[[str, int, int], None]


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
    stationary; NaN where none above 0 does). ``transitions``: at which decays directions of the data die in a linear
    chain of as many layers; None where the inputs have no covariance. ``skipped``: cuts that were not possible.
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
            "conclusion": self.conclusion(),
            "skipped_cuts": self.skipped,
            "left_out": [{"parameter": name, "reason": reason} for name, reason in self.left_out],
            "notes": list(self.notes),
        }

    def conclusion(self) -> str:
        """In one paragraph: which layers are low-rank, and which become so at which weight decay."""
        k = self.classes
        wide = [layer for layer in self.layers if min(layer.site.shape) > k]
        if not wide:
            return f"No layer is larger than {k} in both directions: every one has rank at most {k} as it stands."
        low = [layer for layer in wide if layer.spectrum.relative_tail(k) < LOW]
        told = (
            f"{len(low)} of the {len(wide)} layers that could have a rank above the number of classes, {k}, are within "
            f"{100 * LOW:g} % of rank {k}" + (f": {_names(low)}." if low else ".")
        )
        others = [layer for layer in wide if layer not in low]
        if others:
            far = max(others, key=lambda layer: layer.spectrum.relative_tail(k))
            told += (
                f" The farthest is {far.site.name}: {100 * far.spectrum.relative_tail(k):.0f} % of its norm lies "
                f"beyond rank {k}."
            )
        if self.decay == self.decay:
            whose = "estimated from gradients and weights" if self.decay_estimated else "as given"
            told += f" With weight decay {self.decay:.3g} ({whose}) "
            useful = [layer for layer in wide if layer.bound is not None and not layer.bound.vacuous]
            if self.residual > 0.5:
                told += (
                    f"the network is not at a stationary point (residual {self.residual:.2f} of the norm of the "
                    "weights), so that no bound explains its ranks. "
                )
            else:
                told += (
                    f"the bound of theorem 3.4 says something about {len(useful)} of them and is vacuous for the rest. "
                )
            certain = sorted(
                (layer.bound.certain_from * self.decay, layer.site.name) for layer in others if layer.bound is not None
            )
            if certain:
                first, last = certain[0], certain[-1]
                told += (
                    f"With the gradients of today a stationary point would certainly be within {100 * LOW:g} % of "
                    f"rank {k} from weight decay {first[0]:.2g} on in {first[1]}"
                    + (f", and in all of them from {last[0]:.2g} on" if len(certain) > 1 else "")
                    + "; low rank usually comes much earlier. "
                )
        else:
            told += (
                " No weight decay above 0 fits gradients and weights, so that no bound is given; if the training's is "
                "known, give it. "
            )
        if self.transitions is not None and len(self.transitions.decays):
            found = self.transitions
            told += (
                f"A linear chain of {found.layers} layers on these data would have rank at most {len(found.decays)} "
                f"at any weight decay, lose its weakest direction at {float(found.decays[-1]):.2g} and all of its "
                f"weights at {float(found.decays[0]):.2g} ({found.about})."
            )
        return told.strip()


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

    ``decay``: κ, torch's coupled ``weight_decay`` of the training (2λ of λ‖Θ‖²); estimated if left out. ``clusters``: K
    of k-means, by default the number of classes. The chain is computed in float64 for models of up to 20 million
    parameters. Cost: one decomposition of every site, two passes, two backward passes, and k-means at every layer.
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
        if kappa == kappa:
            tell("bounds", 0, 1)
            result = chain(exact, inputs, targets, partition, kappa, LOSSES[loss])
            bounds, skipped = {layer.name: layer for layer in result.layers}, dict(result.skipped)
            tell("bounds", 1, 1)
    layers = tuple(
        LayerCollapse(site, spectra[site.name], measured.get(site.name), bounds.get(site.name)) for site in found
    )
    predicted = _transitions(inputs, labels, classes, len(measured), loss)
    return CollapseReport(
        layers, partition.clusters, len(labels), kappa, estimated, loss, residual, predicted, skipped, found.left_out,
        tuple(notes),
    )  # fmt: skip


def _spectra(root: nn.Module, found: SiteList, tell: Progress) -> dict[str, Spectrum]:
    values = {}
    with split_attention(root):
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
    return [
        f"{note} ({'every layer' if len(names) == len(measured) else _few(names)})" for note, names in found.items()
    ]


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
        answer = logits_of(forward(root, inputs[:2]))
    return answer.shape[1] if answer.ndim == 2 else None


def _transitions(inputs: Any, labels: Tensor, classes: int | None, layers: int, loss: str) -> Transitions | None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or classes is None or not layers:
        return None
    rows = inputs.flatten(1)
    if rows.shape[1] > _MOST_INPUTS:
        return None
    return transitions(rows, vectors(labels, classes, torch.float64), layers, loss=loss)


def _names(layers: Sequence[LayerCollapse]) -> str:
    return _few([layer.site.name for layer in layers])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
