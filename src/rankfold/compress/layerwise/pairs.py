"""Inputs of a few sites in the network compressed so far, paired with the outputs that they should give.

The target of a layer is what the original network has at the pre-activation behind it, less what everything else
already brings there: without BatchNorm or addition on the way that is the original output; with a residual connection
the layer also makes good what its other branch has lost.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.layerwise.looking import Seen, There, counted, wide
from rankfold.compress.layerwise.preactivations import Followed
from rankfold.linalg import Moments, NonFiniteError
from rankfold.linalg.on_data.cross_moments import CrossMoments
from rankfold.run.processes.team import Team
from rankfold.sites import Site

FOLDS = 2
_NO_SCALE = 1e-3  # of the largest: through a smaller BatchNorm scale an output says nothing


@dataclass
class Rows:
    """A sample of rows: ``inputs`` (N, n), ``targets`` (N, m) pre-activations of the original, ``offsets`` (N, m):
    what everything but this layer brings there. In units of the pre-activation: the layer's output times its scale.
    """

    inputs: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    offsets: list[Tensor] = field(default_factory=list)


@dataclass
class Pairs:
    """Moments of (x̃, t) of one site, and what stands behind it.

    ``folds``: of the samples to fit to, in two halves where memory allows; ``judged``: of others; ``before``: of the
    inputs x in the original, of the samples to fit to. ``free``: the layer may have a bias of its own; without one
    ``moments``, ``trials`` and ``unseen`` are about zero. ``tokens``: the
    metric is one of tokens. ``scale`` (m,) from the layer's output to its pre-activation, None for one; ``rows`` where
    they were asked for.
    """

    folds: list[CrossMoments]
    judged: CrossMoments | None = None
    before: Moments | None = None
    free: bool = True
    tokens: bool = False
    activation: str = ""
    slope: float = 0.0
    scale: Tensor | None = None
    rows: Rows | None = None

    @property
    def moments(self) -> CrossMoments:
        """Of all the samples to fit to."""
        return self.merged(*self.folds)

    @property
    def unseen(self) -> CrossMoments | None:
        """Of the samples that nothing is fitted to."""
        return None if self.judged is None else self.merged(self.judged)

    @property
    def trials(self) -> Iterable[tuple[CrossMoments, CrossMoments]]:
        """Moments to fit to, and others to test the fit on: each half, and the rest. Made anew each time."""
        return _Trials(self)

    def merged(self, *parts: CrossMoments) -> CrossMoments:
        """Of all the rows in ``parts``, in the way that a fit needs them. Not to be added to."""
        if len(parts) == 1 and self.free:
            return parts[0]
        whole = parts[0].copy()
        for part in parts[1:]:
            whole.merge(part)
        return whole if self.free else whole.about_zero_()


@dataclass(frozen=True)
class _Trials:
    """A pair of moments at a time is in memory, as often as one goes through them."""

    pairs: Pairs

    def __iter__(self) -> Iterator[tuple[CrossMoments, CrossMoments]]:
        folds, judged, merged = self.pairs.folds, self.pairs.judged, self.pairs.merged
        others = [] if judged is None else [judged]
        if len(folds) > 1:
            for fold, other in permutations(folds, 2):
                yield merged(fold), merged(other, *others)
        elif judged is not None and judged.count >= judged.inputs.size:  # fewer rows tell nothing of a fit
            yield merged(*folds), merged(judged)


def bytes_needed(site: Site, folds: int = FOLDS) -> int:
    """Memory of the moments of one site, and of fitting it: what lives at once, in doubles, was counted."""
    m, n = site.shape
    return 8 * site.groups * ((folds + 14) * n * n + (folds + 8) * m * n + 2 * min(m, n) ** 2)


def bytes_beside(groups: Sequence[Sequence[Site]], beyond: Container[str]) -> int:
    """Memory of the original's moments that are gathered along with a block, of ``groups`` that each read one tensor:
    of their inputs, or, of sites ``beyond`` a bound, at their own side; where they share rows, once."""
    found = set[tuple[str, int, int]]()
    for bundle in (bundle for group in groups for bundle in bundles(group)):
        for site in bundle:
            own = site.name in beyond and site.layer.side == "output"
            found.add((site.name, site.groups, site.shape[0]) if own else (bundle[0].name, site.groups, site.shape[1]))
    return sum(8 * count * size * size for _, count, size in found)


@dataclass
class Paired:
    inputs: Tensor  # (…, N, n)
    targets: Tensor  # (…, N, m) in units of the layer's output
    followed: Followed | None  # of the original; None: nothing is known behind the layer
    pre: Tensor | None = None  # (…, N, m) pre-activation of the original
    offset: Tensor | None = None

    def of(self, rows: Tensor) -> Paired:
        """Those ``rows`` (N,) alone."""
        pre, offset = (None if part is None else part[rows] for part in (self.pre, self.offset))
        return Paired(self.inputs[rows], self.targets[rows], self.followed, pre, offset)


def paired(site: Site, module: nn.Module, there: There, here: Seen, batch: Any) -> Paired | None:
    """The rows of one batch that are no padding; ``module``: the layer in the compressed network, where it is still the
    original's."""
    if not there.outputs or len(there.outputs) != len(here.inputs):
        return None
    found = _paired(site, module, there, here)
    counts = None if found is None else counted(found.inputs, here, batch)
    return found if found is None or counts is None else found.of(counts)


def _paired(site: Site, module: nn.Module, there: There, here: Seen) -> Paired | None:
    ours, theirs = here.followed, there.followed
    if theirs is not None and ours is not None:
        rows = site.layer.paired_rows(module, here.inputs[0], here.outputs[0], ours.pre)
        if rows is None:
            return None
        y = there.outputs[0]
        x, now, pre_now = (wide(part) for part in rows)
        pre = y if there.pre is None else there.pre
        if pre.shape != pre_now.shape:
            return None
        if ours.scale is None:
            return Paired(x, now + (pre - pre_now), theirs, pre, pre_now - now)
        scale = ours.scale.to(now).reshape(site.groups, 1, -1) if site.groups > 1 else ours.scale.to(now)
        usable = scale.abs() > _NO_SCALE * scale.abs().max()
        safe = torch.where(usable, scale, torch.ones_like(scale))
        target = torch.where(usable, now + (pre - pre_now) / safe, y)
        return Paired(x, target, theirs, pre, pre_now - scale * now)
    parts = [site.layer.paired_rows(module, x, y) for x, y in zip(here.inputs, here.outputs, strict=True)]
    if any(part is None or wide(part[1]).shape != y.shape for part, y in zip(parts, there.outputs, strict=True)):
        return None
    known = [part for part in parts if part is not None]
    return Paired(wide(torch.cat([part[0] for part in known], -2)), torch.cat(there.outputs, -2), None)


JUDGING, WATCHING = -1, -2  # numbers of the parts of the samples that nothing is fitted to; the latter decides nothing


def bundles(group: Sequence[Site]) -> list[tuple[Site, ...]]:
    """Those of a group that reads one tensor which have the same rows of inputs: linear layers; a convolution has its
    own patches."""
    alike: dict[Any, list[Site]] = {}
    for site in group:
        alike.setdefault(site.shape[1] if site.layer.convolution is None else site.name, []).append(site)
    return [tuple(bundle) for bundle in alike.values()]


@dataclass
class Collected:
    """The pairs of a group of sites, as its batches come. ``rows``: how many of each site's to keep, of ``samples``.

    Linear layers that read the same rows share the moments of these. Memory: those, in each part.
    """

    group: Sequence[Site]
    rows: int = 0
    samples: int = 0
    moments: dict[tuple[str, ...], dict[int, CrossMoments]] = field(default_factory=dict)
    about: dict[str, Pairs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bundles = bundles(self.group)

    def add(self, found: Mapping[str, Paired], parts: Sequence[int], size: int) -> None:
        """A batch of ``size`` samples, for the part of that number; shared out where there are several."""
        for bundle in self.bundles:
            if all(site.name in found for site in bundle):
                rows = [found[site.name] for site in bundle]
                t = rows[0].targets if len(rows) == 1 else torch.cat([each.targets for each in rows], -1)
                self._add(bundle, rows[0].inputs, t, parts)
                for site, each in zip(bundle, rows, strict=True):
                    self._tell(site, each, 0 if JUDGING in parts else size)

    def _add(self, bundle: tuple[Site, ...], x: Tensor, t: Tensor, parts: Sequence[int]) -> None:
        known = self.moments.setdefault(tuple(site.name for site in bundle), {})
        for part, rows, targets in zip(parts, x.chunk(len(parts), -2), t.chunk(len(parts), -2), strict=False):
            if part not in known:
                known[part] = CrossMoments(x.shape[-1], t.shape[-1], x.shape[0] if x.dim() == 3 else None, single=True)
            try:
                known[part].update(rows, targets)
            except NonFiniteError as error:
                raise not_finite(bundle[0], error) from error

    def _tell(self, site: Site, found: Paired, size: int) -> None:
        about = self.about.setdefault(site.name, Pairs([]))
        if found.followed is not None:
            about.activation, about.slope = found.followed.activation, found.followed.slope
            about.scale = found.followed.scale
        share = -(-self.rows * size // self.samples) if self.rows else 0
        x = found.inputs
        number = min(share, len(x))
        if number and x.dim() == 2 and found.pre is not None and found.offset is not None:
            about.rows = about.rows or Rows()
            picked = torch.arange(number, device=x.device) * len(x) // number
            for kept, rows in (
                (about.rows.inputs, x), (about.rows.targets, found.pre), (about.rows.offsets, found.offset),
            ):  # fmt: skip
                kept.append(rows[picked].cpu())

    def together(self, team: Team) -> dict[str, Pairs]:
        """The pairs of each site from the batches of all processes, merged in the order of their ranks."""
        shares = team.gathered((self.moments, self.about))
        moments, about = shares[0]
        for other, told in shares[1:]:
            for names, parts in other.items():
                mine = moments.setdefault(names, {})
                for part, known in parts.items():
                    mine[part] = mine[part].merge(known) if part in mine else known
            for name, each in told.items():
                about[name] = _joined(about[name], each) if name in about else each
        found = {}
        for bundle in self.bundles:
            parts, first = moments.get(tuple(site.name for site in bundle), {}), 0
            for site in bundle if parts else ():
                m = site.shape[0]
                chosen = {part: known.of_targets(slice(first, first + m)) for part, known in parts.items()}
                first += m
                folds = [chosen[part] for part in sorted(chosen) if part != JUDGING]
                if folds:
                    found[site.name] = replace(about[site.name], folds=folds, judged=chosen.get(JUDGING))
        return found


def not_finite(site: Site, error: Exception) -> ValueError:
    return ValueError(
        f"{site.title}: on the calibration data its activations are NaN or infinite ({error}): look for bad "
        "samples, or for overflow (then convert the model to float32)"
    )


def _joined(mine: Pairs, theirs: Pairs) -> Pairs:
    if mine.rows is None or theirs.rows is None:
        return replace(mine, rows=mine.rows or theirs.rows)
    a, b = mine.rows, theirs.rows
    rows = Rows([*a.inputs, *b.inputs], [*a.targets, *b.targets], [*a.offsets, *b.offsets])
    return replace(mine, rows=rows)
