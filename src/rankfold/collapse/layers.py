"""Clusters and neural collapse of the features at every layer of a model, in two passes over data of any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, check_rereadable, forward, labels_of, size_of
from rankfold.collapse.features import Side, View, has_channels_first, rows, watched
from rankfold.collapse.neural_collapse import NeuralCollapse, Projected, neural_collapse
from rankfold.collapse.partition import kmeans
from rankfold.collapse.scatter import Clusters, Scatter, label_variation, scatter_of
from rankfold.costs import evaluating
from rankfold.linalg.brief import brief
from rankfold.objectives import main_tensor
from rankfold.run.progress import Progress
from rankfold.sites import opened, sites, unwrap

MEMORY = 256 * 2**20  # bytes of features kept for k-means
KMEANS_ROWS = 4096


@dataclass(frozen=True)
class LayerClusters:
    """What the data say of the features at one module; ``views`` whole, position, pooled (see ``features.rows``).

    ``classes`` and ``best`` by view: the partition by class labels, and the one of least variation of the features that
    was found. ``tcv`` by view: an upper bound of TCV_K (equation 7), the least sum over features and labels of both.
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

    __repr__ = brief

    @property
    def tcv(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for clusters in (self.classes, self.best):
            for view, each in clusters.items():
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


@dataclass
class _Place:
    """One module and view during the passes. ``kept``: a sample of at most ``limit`` rows, for k-means."""

    view: View
    scatter: Scatter
    limit: int
    kept: list[Tensor] = field(default_factory=list)
    held: int = 0
    seen: int = 0
    projected: Projected | None = None
    centres: Tensor | None = None
    found: Scatter | None = None
    table: Tensor | None = None  # (clusters of k-means, classes): rows of each
    note: str = ""


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
            are then seen by position alone, and labels below 0 count nowhere.
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
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        ``LayerClusters`` by name.

    Raises:
        ValueError: no data, data that can be read only once, no labels, labels other than (n,), features that are not
            finite, a module that is not there.

    Cost: two forward passes, three additions for each number, k-means.

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
        present, total = _classes(data, batch_size, samples)
        wanted = len(present) if clusters is None else clusters
        places: dict[str, dict[View, _Place]] = {}
        generator = torch.Generator().manual_seed(seed)
        for number in (1, 2):
            walk = _Walk(places, len(present), total, kmeans_rows, memory, generator, number == 1, judged)
            for seen in _pass(root, data, batch_size, samples, present, names, side, walk):
                tell(f"features, pass {number} of 2", seen, total)
            if number == 1:
                _between(places, wanted, restarts, seed)
        return {name: _result(root, name, side, places[name], len(present), judged) for name in names if name in places}


def _classes(data: Any, batch_size: int, samples: int | None) -> tuple[Tensor, int]:
    """The class labels that occur, ascending, and how many samples there are."""
    found = torch.zeros(0, dtype=torch.int64)
    count = 0
    for batch in batches_of(data, batch_size, samples):
        labels = labels_of(batch)
        if labels is None or labels.ndim not in (1, 2) or labels.is_floating_point():
            raise ValueError("clusters by class need one class label for each sample: give batches (inputs, labels)")
        if len(labels) != size_of(batch):
            raise ValueError(
                f"a batch of {size_of(batch)} samples has {len(labels)} labels: give one label for each sample"
            )
        found = torch.cat([found, (labels if labels.ndim == 1 else labels[labels >= 0]).cpu().long()]).unique()
        count += len(labels)
    if not count or not len(found):
        raise ValueError("the data is empty: give at least one labelled batch")
    return found, count


@dataclass
class _Walk:
    """One pass: what is gathered where, out of how many samples."""

    places: dict[str, dict[View, _Place]]
    classes: int
    total: int
    most: int
    memory: int
    generator: torch.Generator
    first: bool
    judged: bool = True
    done: int = 0

    def take(self, name: str, module: nn.Module, value: Tensor, index: Tensor, answers: Tensor | None) -> None:
        if not value.is_floating_point():
            return  # token ids have no mean
        if index.ndim > 1:
            self._positions(name, module, value, index, answers)
            return
        channels, places = has_channels_first(module, value), self.places.setdefault(name, {})
        views: tuple[View, ...] = ("whole",) if value.ndim <= 2 else ("whole", "position", "pooled")
        for view in views:
            found = rows(value, view, channels_first=channels).detach()
            labels = index.repeat_interleave(len(found) // len(index))
            if view not in places:
                size = found.shape[1]
                limit = 0 if view == "pooled" else min(self.most, self.memory // (8 * max(size, 1)))
                places[view] = _Place(view, Scatter(self.classes, size), limit)
            place = places[view]
            if found.shape[1] != place.scatter.means.shape[1]:
                place.note = "the samples have different sizes, so that they have no common mean"
            elif self.first:
                self._gather(place, found, labels, len(index))
            elif not place.note:
                _measure(place, found, labels, answers)

    def _positions(self, name: str, module: nn.Module, value: Tensor, index: Tensor, answers: Tensor | None) -> None:
        """Of sequences, the positions that have a label."""
        if value.ndim != 3 or value.shape[:2] != index.shape or has_channels_first(module, value):
            return
        kept = index.flatten() >= 0
        found, labels = value.detach().flatten(0, 1)[kept.to(value.device)], index.flatten()[kept]
        views = self.places.setdefault(name, {})
        if "position" not in views:
            limit = min(self.most, self.memory // (8 * max(found.shape[1], 1)))
            views["position"] = _Place("position", Scatter(self.classes, found.shape[1]), limit)
        if not len(found):
            return
        if self.first:
            self._gather(views["position"], found, labels, len(index))
        else:
            _measure(views["position"], found, labels, None if answers is None else answers[kept])

    def _gather(self, place: _Place, found: Tensor, labels: Tensor, samples: int) -> None:
        place.scatter.update(found, labels)
        place.seen += len(found)
        # as many rows of each batch as its share of all samples
        rate = max(1, len(found) // samples)
        due = min(place.limit * (self.done + samples) // self.total, rate * (self.done + samples)) - place.held
        if due > 0:
            chosen = torch.randperm(len(found), generator=self.generator)[:due]
            place.kept.append(found[chosen].cpu())
            place.held += len(chosen)


def _pass(
    root: nn.Module,
    data: Any,
    batch_size: int,
    samples: int | None,
    present: Tensor,
    names: Sequence[str],
    side: Side,
    walk: _Walk,
) -> Iterator[int]:
    """Every batch through the model, and its features to ``walk``; yields the number of samples so far."""
    taken: list[tuple[str, nn.Module, Tensor]] = []
    with watched(root, names, side, lambda name, module, value: taken.append((name, module, value))):
        for batch in batches_of(data, batch_size, samples):
            labels = labels_of(batch)
            assert labels is not None
            labels = labels.cpu().long()
            index = torch.searchsorted(present, labels)
            if labels.ndim > 1:
                index = torch.where(labels < 0, -1, index)
            output = main_tensor(forward(root, batch))
            answers = _compact(output, present) if walk.judged and output.ndim == index.ndim + 1 else None
            for name, module, value in taken:
                if len(value) == len(index):
                    walk.take(name, module, value, index, answers)
            taken.clear()
            walk.done += len(index)
            yield walk.done


def _compact(logits: Tensor, present: Tensor) -> Tensor | None:
    """The classes answered, numbered as the present ones are; −1 for a class of which there is no sample."""
    if logits.ndim not in (2, 3):
        return None
    answers = logits.argmax(-1).flatten().cpu()
    index = torch.searchsorted(present, answers).clamp_max(len(present) - 1)
    return torch.where(present[index] == answers, index, -1)


def _measure(place: _Place, found: Tensor, labels: Tensor, answers: Tensor | None) -> None:
    if place.projected is not None:
        place.projected.update(found, labels, answers)
    if place.centres is not None and place.found is not None and place.table is not None:
        middle = place.centres.mean(0)  # distances come from squares, in which large numbers in common would round
        nearest = torch.cdist(found.cpu().double() - middle, place.centres - middle).argmin(1)
        place.found.update(found, nearest)
        place.table.index_put_((nearest, labels), torch.ones(len(labels), dtype=torch.int64), accumulate=True)


def _between(places: dict[str, dict[View, _Place]], clusters: int, restarts: int, seed: int) -> None:
    """Between the passes: the axes of NC1, and the centres that k-means finds on the rows that were kept."""
    for views in places.values():
        chosen: View = next(iter(views)) if len(views) == 1 else "pooled"
        for view, place in views.items():
            if place.note:
                continue
            if view == chosen:
                place.projected = Projected(place.scatter)
            if 0 < clusters <= place.limit and place.kept:
                sample = torch.cat(place.kept)
                partition = kmeans(sample, clusters, restarts=restarts, seed=seed)
                place.centres = scatter_of(sample, partition).means
                place.found = Scatter(partition.clusters, sample.shape[1])
                place.table = torch.zeros(partition.clusters, len(place.scatter.counts), dtype=torch.int64)
            place.kept = []


def _result(
    root: nn.Module, name: str, side: Side, views: dict[View, _Place], classes: int, judged: bool = True
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
            better = classes <= len(place.found.counts) and by_class[view].wcss < found.wcss
            best[view] = by_class[view] if better else found
        elif view != "pooled" and place.limit < classes:
            notes.append(f"{view}: a row has {place.scatter.means.shape[1]} numbers, too many for k-means in memory")
    size = first.scatter.means.shape[1]
    return LayerClusters(name, side, size, by_class, best, collapse, chosen, tuple(notes))
