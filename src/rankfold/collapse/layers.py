"""Clusters and neural collapse of the features at every layer of a model, in two passes over data of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, check_rereadable, forward
from rankfold.collapse.data.reading import Reading
from rankfold.collapse.data.walk import Place, Walk, between, walked
from rankfold.collapse.features import Side, View
from rankfold.collapse.neural_collapse import NeuralCollapse, neural_collapse
from rankfold.collapse.scatter import Clusters, label_variation
from rankfold.costs import evaluating
from rankfold.linalg.brief import brief
from rankfold.objectives import Objective, objective_named
from rankfold.run.progress import Progress
from rankfold.sites import opened, sites, unwrap

MEMORY = 256 * 2**20  # bytes of features kept for k-means
KMEANS_ROWS = 4096


@dataclass(frozen=True)
class LayerClusters:
    """What the data say of the features at one module; ``views`` whole, position, pooled (see ``features.rows``).

    ``classes`` and ``best`` by view: the partition by class labels, and the one of least variation of the features that
    was found. ``tcv`` by view: an upper bound of TCV_K (equation 7) with K = ``clusters``, the least sum over features
    and labels of those of both that have at most K clusters; a view for which there is none is left out.
    ``collapse`` is measured on ``collapse_view``: whole of vectors, pooled of maps and sequences.
    """

    name: str
    side: Side
    size: int
    classes: Mapping[str, Clusters]
    best: Mapping[str, Clusters]
    collapse: NeuralCollapse
    collapse_view: View
    notes: tuple[str, ...] = ()
    clusters: int = 0

    __repr__ = brief

    @property
    def tcv(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for partitions in (self.classes, self.best):
            for view, each in partitions.items():
                if each.clusters <= self.clusters:
                    found[view] = min(each.variation, found.get(view, each.variation))
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "side": self.side,
            "size": self.size,
            "classes": {view: found.to_dict() for view, found in self.classes.items()},
            "best": {view: found.to_dict() for view, found in self.best.items()},
            "tcv": self.tcv,
            "collapse": self.collapse.to_dict(),
            "collapse_view": self.collapse_view,
            "notes": list(self.notes),
        }


def measure_layers(
    model: nn.Module,
    data: Any,
    modules: Sequence[str] | None = None,
    *,
    side: Side = "input",
    clusters: int | None = None,
    restarts: int = 4,
    kmeans_rows: int = KMEANS_ROWS,
    memory: int = MEMORY,
    samples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    judged: bool = True,
    objective: Objective | str | None = None,
    progress: Progress | None = None,
) -> dict[str, LayerClusters]:
    """Clusters and neural collapse of what enters modules, or leaves them.

    K-means is fitted to a random sample of rows; every row is then given to its nearest centre in the second pass, so
    that the value holds for all of the data and remains an upper bound. If the class partition has no more clusters and
    is better, it is the best one found. Model in eval mode; hooks, mode and gradients are left as found. Modules that
    the data never reach are left out; those that are called several times for a batch are measured over all calls.

    Args:
        model: a classifier.
        data: labelled batches, read twice. Labels (n, T) are those of the positions of sequences: features (n, T, C)
            are then seen by position alone. Labels below 0 count nowhere, nor does what ``attention_mask`` leaves out
            where a sample has one label.
        modules: names; all sites by default.
        side: "input" or "output" of them.
        clusters: K of k-means, by default the number of classes; 0 for none.
        restarts: of k-means.
        kmeans_rows: of its sample, or as many as fit into ``memory``.
        memory: bytes for each module and view.
        samples: at most so many.
        batch_size: of the passes.
        seed: of k-means.
        judged: whether outputs are scores of the classes, of which NC3 and NC4 speak.
        objective: what outputs and labels mean, which says where the classes lie; by default the one that they tell.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        ``LayerClusters`` by name.

    Raises:
        ValueError: no data, data that can be read only once, no labels, several targets for each sample, labels of
            positions that no module has, features that are not finite, a module that is not there.

    Cost: two forward passes and one batch, three additions for each number, k-means.

    Example:
        >>> x = torch.randn(32, 8); y = torch.arange(32) % 2
        >>> sorted(rf.collapse.measure_layers(nn.Sequential(nn.Linear(8, 2)), [(x, y)]))
        ['0']
    """
    check_rereadable(data)
    root = unwrap(model)
    tell = progress or (lambda what, done, total: None)
    names = tuple(site.name for site in sites(root)) if modules is None else tuple(modules)
    with evaluating(root), opened(root):
        reading = _read(root, data, batch_size, objective) if judged else Reading()
        present, total, shape = _classes(data, batch_size, samples, reading)
        wanted = len(present) if clusters is None else clusters
        places: dict[str, dict[View, Place]] = {}
        generator = torch.Generator().manual_seed(seed)
        for number in (1, 2):
            walk = Walk(places, len(present), total, kmeans_rows, memory, generator, number == 1)
            for seen in walked(root, data, batch_size, samples, present, names, side, walk, reading):
                tell(f"features, pass {number} of 2", seen, total)
            if number == 1:
                between(places, wanted, restarts, seed)
        if names and not places and len(shape) > 1:
            raise ValueError(
                f"labels of shape {tuple(shape)} were taken for those of positions, and no layer has features of "
                f"{shape[1]} positions for each sample: give one class label for each sample, (n,)"
            )
        k = wanted or len(present)
        return {
            name: _result(root, name, side, places[name], len(present), k, judged) for name in names if name in places
        }


def _read(root: nn.Module, data: Any, batch_size: int, objective: Objective | str | None) -> Reading:
    """What labels are to outputs, by the first batch."""
    asked = None if objective is None else objective_named(objective)
    for batch in batches_of(data, batch_size):
        return Reading.of(forward(root, batch), batch, asked)
    return Reading()


def _classes(data: Any, batch_size: int, samples: int | None, reading: Reading) -> tuple[Tensor, int, torch.Size]:
    """The class labels that occur, ascending, how many samples there are, and the shape of the labels of a batch."""
    found = torch.zeros(0, dtype=torch.int64)
    count, shape = 0, torch.Size()
    for batch in batches_of(data, batch_size, samples):
        labels = reading.labels(batch)
        found = torch.cat([found, labels[labels >= 0]]).unique()
        count, shape = count + len(labels), labels.shape
    if not count or not len(found):
        raise ValueError("the data is empty: give at least one labelled batch")
    return found, count, shape


def _result(
    root: nn.Module, name: str, side: Side, views: dict[View, Place], classes: int, k: int, judged: bool
) -> LayerClusters:
    by_class: dict[str, Clusters] = {}
    best: dict[str, Clusters] = {}
    notes = [f"{view}: {place.note}" for view, place in views.items() if place.note]
    first = next(iter(views.values()))
    collapse, chosen = NeuralCollapse(), first.view
    for view, place in views.items():
        if place.note:
            continue
        by_class[view] = place.scatter.clusters("class")
        if place.projected is not None:
            chosen = view
            weight = getattr(root.get_submodule(name), "weight", None) if judged and side == "input" else None
            fits = isinstance(weight, Tensor) and weight.shape == place.scatter.means.shape and len(weight) == classes
            collapse = neural_collapse(place.scatter, place.projected, weight if fits else None)
        if place.found is not None and place.table is not None:
            part = (
                ""
                if place.held >= place.seen
                else f"centres come from a random sample, {place.held} of {place.seen} rows"
            )
            found = place.found.clusters("k-means", part, label_variation(place.table))
            better = classes <= k and by_class[view].wcss < found.wcss
            best[view] = by_class[view] if better else found
        elif view != "pooled" and place.limit < classes:
            notes.append(f"{view}: a row has {place.scatter.means.shape[1]} numbers, too many for k-means in memory")
    size = first.scatter.means.shape[1]
    return LayerClusters(name, side, size, by_class, best, collapse, chosen, tuple(notes), k)
