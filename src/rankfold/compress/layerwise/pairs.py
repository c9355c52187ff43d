"""Inputs of a few sites in the network compressed so far, paired with the outputs that they should give.

Both networks run on the same batches. The target of a layer is what the original network has at the pre-activation
behind it, less what everything else already brings there: without BatchNorm or addition on the way that is the
original output; with a residual connection the layer also makes good what its other branch has lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankfold.batches import batches_of, forward, size_of
from rankfold.compress.layerwise.preactivations import Followed, Following
from rankfold.linalg import NonFiniteError
from rankfold.linalg.cross_moments import CrossMoments
from rankfold.observe import Enough, after, first_of
from rankfold.run.team import Team
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
    """Moments of (x̃, t) in ``FOLDS`` halves of the batches, and what stands behind the layer.

    ``scale`` (m,) from the layer's output to its pre-activation, None for one; ``rows`` where they were asked for.
    """

    folds: list[CrossMoments]
    activation: str = ""
    slope: float = 0.0
    scale: Tensor | None = None
    rows: Rows | None = None

    @property
    def moments(self) -> CrossMoments:
        """Of both halves together."""
        whole = CrossMoments.from_state_dict(self.folds[0].state_dict())
        for fold in self.folds[1:]:
            whole.merge(fold)
        return whole


def bytes_needed(site: Site, folds: int = FOLDS) -> int:
    """Memory of the moments of one site, and of fitting it."""
    m, n = site.shape
    return 8 * site.groups * ((folds + 1) * n * (n + m) + 4 * n * n + 2 * n * m)


def gather(
    original: nn.Module,
    current: nn.Module,
    group: Sequence[Site],
    data: Any,
    *,
    samples: int | None,
    batch_size: int,
    rows: int = 0,
    folds: int = FOLDS,
    team: Team | None = None,
) -> dict[str, Pairs]:
    """Pairs of every site of ``group`` that is called and whose rows can be paired; attention must be split.

    ``group``: sites whose inputs do not depend on one another; in ``current`` they are not compressed yet. ``rows``:
    how many rows to keep of each (0: none). With a ``team`` every process takes its share of the batches and ends with
    the pairs of all. Cost: the forward passes of both networks up to the last site of the group.
    """
    team = team or Team()
    collected: dict[str, Pairs] = {}
    stops: dict[str, int | None] = {"original": None, "current": None}
    total = sum(size_of(batch) for batch in batches_of(data, batch_size, samples)) if rows else 0
    single = len(list(islice(batches_of(data, batch_size, samples), 2))) < 2
    with team.agreed():
        for index, batch in enumerate(batches_of(data, batch_size, samples)):
            if index % team.size != team.rank:
                continue
            seen = {}
            for name, network in (("original", original), ("current", current)):
                seen[name], follower = _run(network, group, batch, stops[name])
                if stops[name] is None and follower.found:
                    stops[name] = max(known.event for known in follower.found.values())
            for site in group:
                found = _paired(site, current, seen["original"][site.name], seen["current"][site.name])
                if found is not None:
                    share = -(-rows * size_of(batch) // total) if rows else 0
                    fold = None if single and folds > 1 else index % folds
                    _add(collected, site, found, fold, folds, share)
    if team.size > 1:
        _reduce(collected, group, team)
    return collected


@dataclass
class _Seen:
    """The calls of one site in one forward pass."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    followed: Followed | None = None


def _run(
    network: nn.Module, group: Sequence[Site], batch: Any, stop_after: int | None
) -> tuple[dict[str, _Seen], Following]:
    seen = {site.name: _Seen() for site in group}
    follower = Following(stop_after)

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            seen[name].inputs.append(first_of(args, kwargs).detach())
            seen[name].outputs.append(output.detach().clone())
            follower.produced(name, output)

        return hook

    watched = {network.get_submodule(site.name): watch(site.name) for site in group}
    with after(None, watched), suppress(Enough), torch.no_grad(), follower:
        forward(network, batch)
    for name, known in follower.found.items():
        seen[name].followed = known
    return seen, follower


@dataclass
class _Paired:
    inputs: Tensor  # (…, N, n)
    targets: Tensor  # (…, N, m) in units of the layer's output
    followed: Followed | None  # of the original; None: nothing is known behind the layer
    pre: Tensor | None = None  # (…, N, m) pre-activation of the original
    offset: Tensor | None = None


def _paired(site: Site, current: nn.Module, there: _Seen, here: _Seen) -> _Paired | None:
    if not there.inputs or len(there.inputs) != len(here.inputs):
        return None
    module, one = current.get_submodule(site.name), len(here.inputs) == 1
    theirs, ours = there.followed, here.followed
    if one and theirs is not None and ours is not None and theirs.pre.shape == ours.pre.shape:
        rows = site.layer.paired_rows(module, here.inputs[0], there.outputs[0], here.outputs[0], theirs.pre, ours.pre)
        if rows is None:
            return None
        x, y, now, pre, pre_now = (part.float() if part.dtype != torch.float64 else part for part in rows)
        if ours.scale is None:
            return _Paired(x, now + (pre - pre_now), theirs, pre, pre_now - now)
        scale = ours.scale.to(now).reshape(site.groups, 1, -1) if site.groups > 1 else ours.scale.to(now)
        usable = scale.abs() > _NO_SCALE * scale.abs().max()
        safe = torch.where(usable, scale, torch.ones_like(scale))
        target = torch.where(usable, now + (pre - pre_now) / safe, y)
        return _Paired(x, target, theirs, pre, pre_now - scale * now)
    parts = [site.layer.paired_rows(module, x, y) for x, y in zip(here.inputs, there.outputs, strict=True)]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    return _Paired(torch.cat([x for x, _ in known], -2), torch.cat([y for _, y in known], -2), None)


def _add(collected: dict[str, Pairs], site: Site, found: _Paired, fold: int | None, folds: int, share: int) -> None:
    """``fold`` None: the only batch, whose samples are shared out."""
    x, t = found.inputs, found.targets
    if site.name not in collected:
        groups = x.shape[0] if x.dim() == 3 else None
        collected[site.name] = Pairs([CrossMoments(x.shape[-1], t.shape[-1], groups) for _ in range(folds)])
    pairs = collected[site.name]
    try:
        if fold is None:
            for part, rows, targets in zip(pairs.folds, x.chunk(folds, -2), t.chunk(folds, -2), strict=False):
                part.update(rows, targets)
        else:
            pairs.folds[fold].update(x, t)
    except NonFiniteError as error:
        raise ValueError(
            f"{site.title}: activations are not finite on the calibration data ({error}); look for bad samples, or for "
            "overflow (convert to float32)"
        ) from error
    if found.followed is not None:
        pairs.activation, pairs.slope = found.followed.activation, found.followed.slope
        pairs.scale = found.followed.scale
    if share and x.dim() == 2 and found.pre is not None and found.offset is not None:
        pairs.rows = pairs.rows or Rows()
        picked = torch.arange(min(share, len(x)), device=x.device) * len(x) // min(share, len(x))
        for kept, rows in (
            (pairs.rows.inputs, x), (pairs.rows.targets, found.pre), (pairs.rows.offsets, found.offset),
        ):  # fmt: skip
            kept.append(rows[picked].cpu())


def _reduce(collected: dict[str, Pairs], group: Sequence[Site], team: Team) -> None:
    """Give every process the pairs of all, merged in the order of their ranks."""
    parts: list[Any] = [None] * team.size
    dist.all_gather_object(parts, collected)
    collected.clear()
    for site in group:
        for part in parts:
            if site.name not in part:
                continue
            if site.name not in collected:
                collected[site.name] = part[site.name]
                continue
            mine, theirs = collected[site.name], part[site.name]
            for fold, other in zip(mine.folds, theirs.folds, strict=True):
                fold.merge(other)
            if mine.rows is not None and theirs.rows is not None:
                for kept, rows in _lists(mine.rows, theirs.rows):
                    kept.extend(rows)


def _lists(mine: Rows, theirs: Rows) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    yield mine.inputs, theirs.inputs
    yield mine.targets, theirs.targets
    yield mine.offsets, theirs.offsets
