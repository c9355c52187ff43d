"""The pass over calibration data: second moments of every site, streamed, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankfold.batches import check_rereadable, forward, size_of, two_halves
from rankfold.compress.absorbers import Absorbers
from rankfold.compress.affordable import check_affordable
from rankfold.compress.finite import check_finite
from rankfold.compress.measured import SiteStatistics, Statistics
from rankfold.compress.metric import output_metrics
from rankfold.compress.spread import Spread
from rankfold.compress.tokens import InPassing, token_metrics
from rankfold.costs import evaluating
from rankfold.linalg import Moments, NonFiniteError
from rankfold.objectives import Objective, ObjectiveError, Teacher
from rankfold.objectives.answer import unpadded
from rankfold.observe import PAGES, Samples, after, first_of
from rankfold.observe.halves import WHOLE, halves
from rankfold.observe.passes import Place, apart, held, laid_out, layout_for
from rankfold.run.processes.memory import give_back
from rankfold.run.processes.team import Team
from rankfold.run.progress import Progress, showing
from rankfold.sites import Site, SiteList, fingerprint, opened, unwrap

_ROWS = 8  # one row in so many is held back where rows cannot be told by samples


@showing
def calibrate(
    model: nn.Module,
    data: Any,
    sites: SiteList,
    *,
    samples: int | None = 2048,
    metric_samples: int = 1024,
    batch_size: int = 128,
    objective: Objective | None = None,
    tokenwise: bool = True,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Statistics:
    """Stream ``data`` through ``model`` in eval mode and gather the second moments of every reducible site.

    ``data``: anything ``rankfold.batches.batches_of`` understands. One sample in eight is held back (one in two of very
    few): their moments are kept apart. On the first ``metric_samples`` also the output metrics (see
    ``rankfold.compress.metric``; 0 for none), of the answers of ``objective``; None: every floating output. Of a
    language model, unless ``tokenwise`` is off, the token metric (``rankfold.compress.tokens``) and no new biases.
    What ``attention_mask`` leaves out counts nowhere. Cost: the
    forward passes and some of a few samples, one backward pass for the metrics, and d² for each row at each site, d its
    ``side``. Raises
    ``ValueError`` for empty data, for a site whose weights or activations are not finite, and for moments that would
    not fit into memory. Hooks, mode and gradients are left as found. With a ``team`` every process takes its share of
    the batches and ends with the statistics of all.
    """
    seen = Samples(data, samples, batch_size, team=team or Team())
    root, asked = unwrap(model), objective or Teacher()
    by_token, both = bool(metric_samples) and asked.by_token and tokenwise, None
    check_affordable(sites.reducible)
    if metric_samples:
        check_rereadable(data)
    with evaluating(root), opened(root):
        check_finite((site, site.weight(root), site.bias(root)) for site in sites.reducible)
        beside = InPassing.over(root, seen, sites, asked, metric_samples) if by_token else nullcontext()
        with beside as passing:
            taken = partial(gather, root, seen, sites, asked if metric_samples else None, progress)
            try:
                gathered = taken(None if passing is None else passing.run)
            except (RuntimeError, AssertionError):
                if passing is None:
                    raise
                passing.able = False  # code that cannot run with a graph
                gathered = taken()
        if passing is not None and passing.able and gathered.spread.names:
            both = passing.metrics(gathered.spread)
    if not gathered.samples:
        raise ValueError("the calibration data is empty: give at least one batch")
    give_back()
    metrics: Mapping[str, Tensor] = {}
    coarse: Mapping[str, Tensor] = {}
    few = seen.first(metric_samples)
    if by_token:
        both = both or token_metrics(root, few, sites, asked, gathered.spread, progress)
        metrics, coarse = both.fisher, both.outputs
    elif metric_samples:
        metrics = output_metrics(root, few, sites, asked, gathered.spread, progress)
    known = assembled(gathered, sites, metrics, coarse, by_token)
    give_back()
    return replace(known, model=fingerprint(model), spread=gathered.spread if gathered.spread.names else None)


def assembled(
    gathered: Gathered, sites: SiteList, metrics: Mapping[str, Tensor], coarse: Mapping[str, Tensor], tokens: bool
) -> Statistics:
    """Statistics of the sites from the moments that were gathered and the metrics; ``tokens``: these are of tokens."""
    reached, absorbers = {}, gathered.absorbers
    for site in sites.reducible:
        parts = gathered.moments.get(site.name)
        if parts is not None:
            absorber = None if site.layer.has_bias or not site.layer.takes_bias else absorbers.of(site.name)
            known = _of_site(parts, absorber, metrics.get(site.name))
            # code for language models knows no biases where the original has none; a row of padding is to stay zero
            free = site.layer.has_bias or (not tokens and site.layer.takes_bias) or absorber is not None
            idle = tuple((gathered.tokens[site.name] == 0).nonzero().flatten().tolist()) if site.layer.experts else ()
            side = site.layer.side if site.layer.whole else None
            reached[site.name] = replace(
                known, coarse=coarse.get(site.name), free=free, tokens=tokens, idle=idle, side=side
            )
    unreached = tuple(site.name for site in sites.reducible if site.name not in reached)
    return Statistics(reached, gathered.samples, unreached, nats=tokens and bool(metrics))


Run = Callable[[int, Any], Any]  # what the model, or a part of it, gives for the batch of a number
Parts = dict[bool, Moments]  # by whether its samples are held back


@dataclass
class Gathered:
    moments: dict[str, Parts] = field(default_factory=dict)
    absorbers: Absorbers = field(default_factory=Absorbers)
    spread: Spread = field(default_factory=Spread)
    tokens: dict[str, Tensor] = field(default_factory=dict)  # of each expert
    samples: int = 0


def _of_site(parts: Parts, absorber: str | None, metric: Tensor | None) -> SiteStatistics:
    if len(parts) < 2:
        (moments,) = parts.values()
        return SiteStatistics(moments, absorber, metric)
    whole = Moments.from_state_dict(parts[False].state_dict()).merge(parts[True])
    return SiteStatistics(whole, absorber, metric, parts=(parts[False], parts[True]))


def gather(
    root: nn.Module,
    seen: Samples,
    sites: SiteList,
    objective: Objective | None = None,
    progress: Progress | None = None,
    run: Run | None = None,
) -> Gathered:
    """One pass over the samples; the model must be ``opened`` and in eval mode. ``objective``: of whose answers the
    spread is measured. ``run``: in place of a forward of the whole model."""
    found, comparable = Gathered(), objective is not None
    back, batch = torch.zeros(0, dtype=torch.bool), None
    modules = {site.name: root.get_submodule(site.name) for site in sites.reducible}
    batches = seen.batches()
    first, places = next(batches, None), dict[str, Place]()
    if first is not None and not hasattr(root, PAGES):  # such weights are read block by block
        places = dict(apart(root, first[1], modules).places)
    fed = halves(root, first[1], modules) if first is not None and two_halves(first[1], root) else WHOLE
    called: Counter[str] = Counter()  # in the pass of one batch

    def watch(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            rows = site.layer.rows(module, first_of(args, kwargs), output).detach()
            if site.layer.experts:
                given = torch.bincount(args[1].flatten(), minlength=site.layer.experts)[: site.layer.experts].cpu()
                found.tokens[site.name] = found.tokens.get(site.name, torch.zeros_like(given)) + given
            parts = found.moments.setdefault(site.name, {})
            place = places.get(site.name, Place())
            decodes = fed.decodes(site.name, called[site.name])
            called[site.name] += 1
            mask = None if rows.dim() > 2 else _counted(output, place, batch, decodes)
            for side, part in _parted(rows, back, place.blocks(output.shape, len(back)), mask):
                if side not in parts:
                    parts[side] = Moments(rows.shape[-1], groups=rows.shape[0] if rows.dim() == 3 else None)
                _take(parts[side], part, site)
            found.absorbers.produced(site.name, output)

        return hook

    if run is None:
        layout = layout_for(root, seen.data)
        run = lambda index, batch: forward(root, laid_out(batch, layout))  # noqa: E731
    every, hooks = seen.held_back, {modules[site.name]: watch(site) for site in sites.reducible}
    with found.absorbers.watching(root.named_modules()), after(None, hooks), seen.team.agreed():
        for index, batch in () if first is None else chain((first,), batches):
            size = size_of(batch)
            back = held(size, found.samples, every)
            found.samples += size
            if index not in seen:
                continue
            called.clear()
            output = run(index, batch)
            if objective is not None and comparable:
                try:
                    found.spread.add(objective.answers(output, batch))
                except ObjectiveError:
                    found.spread, comparable = Spread(), False
            if progress is not None:
                progress("calibrating", found.samples, seen.samples or found.samples)
    return found if seen.team.size == 1 else _of_all(found, seen.team)


def _take(moments: Moments, rows: Tensor, site: Site) -> None:
    try:
        moments.update(rows)
    except NonFiniteError:
        raise ValueError(
            f"{site.title}: on the calibration data its activations in {rows.dtype} are NaN or infinite: look for bad "
            "samples, for weights before this layer that are NaN or infinite, or for overflow (then convert the model "
            "to float32)"
        ) from None


def _of_all(found: Gathered, team: Team) -> Gathered:
    """What all processes have gathered."""
    found.moments = _together(found.moments, team)
    found.spread = found.spread.joined(team)
    for given in found.tokens.values():
        dist.all_reduce(given)
    return found


def _counted(output: Tensor, place: Place, batch: Any, decodes: bool | None) -> Tensor | None:
    """Which positions of ``output`` are no padding, in the order of its rows; None where the batch does not say.
    ``decodes``: whether they are those of a decoder beside an encoder."""
    if place.inner or place.axis not in (0, 1):
        return None
    mask = unpadded(output.movedim(place.axis, 0), batch, decodes)
    return None if mask is None else mask.movedim(0, place.axis)


def _parted(rows: Tensor, back: Tensor, blocks: int = 1, mask: Tensor | None = None) -> Iterator[tuple[bool, Tensor]]:
    """Rows (…, R, d) of a batch in its two parts: so many ``blocks`` of all samples, in which each has as many rows,
    one sample after the other. ``mask`` has one for each row: those that are no padding."""
    if not bool(back.any()) and mask is None:
        yield False, rows
        return
    blocks = max(blocks, 1)
    each, rest = divmod(rows.shape[-2], max(len(back) * blocks, 1))
    sides = back.repeat_interleave(each).repeat(blocks) if not rest else held(rows.shape[-2], 0, _ROWS)
    counts = torch.ones_like(sides) if mask is None else mask.flatten().bool().cpu()
    for side in (False, True):
        chosen = (sides == side) & counts
        if bool(chosen.any()):
            yield side, rows[..., chosen.to(rows.device), :]


def _together(moments: dict[str, Parts], team: Team) -> dict[str, Parts]:
    """The moments of all processes, merged in the order of their ranks, in every process."""
    shares: list[Any] = [None] * team.size
    dist.all_gather_object(shares, moments)
    merged: dict[str, Parts] = {}
    for share in shares:
        for name, parts in share.items():
            mine = merged.setdefault(name, {})
            for side, known in parts.items():
                mine[side] = mine[side].merge(known) if side in mine else known
    return merged
