"""The passes over data that measure layers: what is gathered of each module and view, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import batches_of, forward
from rankfold.collapse.data.reading import Reading, compact
from rankfold.collapse.features import Side, View, counted_in, has_channels_first, rows, watched
from rankfold.collapse.neural_collapse import Projected
from rankfold.collapse.partition import kmeans
from rankfold.collapse.scatter import Scatter, scatter_of

_UNEQUAL = "the samples have different sizes, so that they have no common mean"


@dataclass
class Place:
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


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch beside its features. ``index``: classes of its samples (n,) or positions (n, T), −1 where none counts;
    ``answers``: those of the model, in the order of ``index`` flattened, or None."""

    index: Tensor
    answers: Tensor | None
    batch: Any


@dataclass
class Walk:
    """One pass: what is gathered where, out of how many samples."""

    places: dict[str, dict[View, Place]]
    classes: int
    total: int
    most: int
    memory: int
    generator: torch.Generator
    first: bool
    size: int = 0  # samples of the batch
    done: int = 0

    def take(self, name: str, module: nn.Module, value: Tensor, seen: Seen) -> None:
        if not value.is_floating_point() or len(value) != len(seen.index):
            return  # token ids have no mean
        if seen.index.ndim > 1:
            self._positions(name, module, value, seen)
            return
        channels, places = has_channels_first(module, value), self.places.setdefault(name, {})
        counted = counted_in(value, seen.batch, channels_first=channels)
        lengths = None if counted is None else counted.sum(1).cpu()
        index, answers = seen.index, seen.answers
        kept = index >= 0
        if not bool(kept.all()):
            here = kept.to(value.device)
            value, index, answers = value[here], index[kept], None if answers is None else answers[kept]
            counted, lengths = (None if part is None else part[kept.to(part.device)] for part in (counted, lengths))
        if not len(index):
            return
        views: tuple[View, ...] = ("whole",) if value.ndim <= 2 else ("whole", "position", "pooled")
        for view in views:
            if view == "whole" and lengths is not None and len(lengths.unique()) > 1:
                self._place(places, view, value[0].numel()).note = _UNEQUAL
                continue
            found = rows(value, view, channels_first=channels, counted=counted).detach()
            repeats = len(found) // len(index) if view != "position" or lengths is None else lengths
            self._add(self._place(places, view, found.shape[1]), found, index.repeat_interleave(repeats), answers)

    def _place(self, places: dict[View, Place], view: View, size: int) -> Place:
        if view not in places:
            limit = 0 if view == "pooled" else min(self.most, self.memory // (8 * max(size, 1)))
            places[view] = Place(view, Scatter(self.classes, size), limit)
        return places[view]

    def _add(self, place: Place, found: Tensor, labels: Tensor, answers: Tensor | None) -> None:
        if found.shape[1] != place.scatter.means.shape[1]:
            place.note = _UNEQUAL
        elif self.first:
            self._gather(place, found, labels)
        elif not place.note:
            _measure(place, found, labels, answers)

    def _positions(self, name: str, module: nn.Module, value: Tensor, seen: Seen) -> None:
        """Of sequences, the positions that have a label."""
        if value.ndim == 3 and has_channels_first(module, value):
            value = value.movedim(1, -1)
        if value.ndim != 3 or value.shape[:2] != seen.index.shape:
            return
        kept = seen.index.flatten() >= 0
        found, labels = value.detach().flatten(0, 1)[kept.to(value.device)], seen.index.flatten()[kept]
        place = self._place(self.places.setdefault(name, {}), "position", found.shape[1])
        if len(found):
            self._add(place, found, labels, None if seen.answers is None else seen.answers[kept])

    def _gather(self, place: Place, found: Tensor, labels: Tensor) -> None:
        place.scatter.update(found, labels)
        place.seen += len(found)
        # as many rows of each batch as its share of all samples
        rate, samples = max(1, len(found) // self.size), self.done + self.size
        due = min(place.limit * samples // self.total, rate * samples) - place.held
        if due > 0:
            chosen = torch.randperm(len(found), generator=self.generator)[:due]
            place.kept.append(found[chosen].cpu())
            place.held += len(chosen)


def walked(
    root: nn.Module,
    data: Any,
    batch_size: int,
    samples: int | None,
    present: Tensor,
    names: Sequence[str],
    side: Side,
    walk: Walk,
    reading: Reading,
) -> Iterator[int]:
    """Every batch through the model, and its features to ``walk``; yields the number of samples so far."""
    taken: list[tuple[str, nn.Module, Tensor]] = []
    with watched(root, names, side, lambda name, module, value: taken.append((name, module, value))):
        for batch in batches_of(data, batch_size, samples):
            labels = reading.labels(batch)
            index = torch.where(labels < 0, -1, torch.searchsorted(present, labels))
            answers = reading.answers(forward(root, batch), labels)
            seen = Seen(index, None if answers is None else compact(answers, present), batch)
            walk.size = len(index)
            for name, module, value in taken:
                walk.take(name, module, value, seen)
            taken.clear()
            walk.done += len(index)
            yield walk.done


def _measure(place: Place, found: Tensor, labels: Tensor, answers: Tensor | None) -> None:
    if place.projected is not None:
        place.projected.update(found, labels, answers)
    if place.centres is not None and place.found is not None and place.table is not None:
        middle = place.centres.mean(0)  # distances come from squares, in which large numbers in common would round
        nearest = torch.cdist(found.cpu().double() - middle, place.centres - middle).argmin(1)
        place.found.update(found, nearest)
        place.table.index_put_((nearest, labels), torch.ones(len(labels), dtype=torch.int64), accumulate=True)


def between(places: dict[str, dict[View, Place]], clusters: int, restarts: int, seed: int) -> None:
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
