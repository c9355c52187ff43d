"""Second moments of every site over calibration data: streamed, float64, one small matrix for each site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.batches import check_rereadable, forward, size_of
from rankfold.compress.absorbers import Absorbers
from rankfold.compress.finite import check_finite
from rankfold.compress.metric import Spread, output_metrics
from rankfold.compress.planning.plan import fingerprint
from rankfold.costs import evaluating
from rankfold.linalg import Moments
from rankfold.objectives import Objective, ObjectiveError, Teacher
from rankfold.observe import Samples, after, first_of
from rankfold.observe.layout import laid_out, layout_for
from rankfold.observe.passes import held
from rankfold.run.container import Kind
from rankfold.run.files import write_atomically
from rankfold.run.memory import available, give_back
from rankfold.run.progress import Progress, showing
from rankfold.run.team import Team
from rankfold.sites import Site, SiteList, split_attention, unwrap

FREE = 0.9  # of the memory that is free: what moments may take
_ROWS = 8  # one row in so many is held back where rows cannot be told by samples


@dataclass(frozen=True)
class SiteStatistics:
    """What the data says of one site.

    ``moments`` at the layer's ``side``; ``absorber``: the BatchNorm that takes this site's output with nothing in
    between; ``metric``: how much the model's outputs move when this site's outputs do, (m, m), its diagonal (m,), or
    with a leading group axis. ``parts``: the moments of the samples to fit to, and of those that were held back so that
    a forecast can be checked on them; not saved.
    """

    moments: Moments
    absorber: str | None = None
    metric: Tensor | None = None
    parts: tuple[Moments, Moments] | None = field(default=None, compare=False, repr=False)

    @property
    def covariance(self) -> Tensor:
        """Centred second moment of one row, (d, d) or (groups, d, d)."""
        return self.moments.covariance_sum / max(self.moments.count, 1)

    @property
    def fitted(self) -> SiteStatistics | None:
        """The same of the samples to fit to alone."""
        return None if self.parts is None else replace(self, moments=self.parts[0], parts=None)

    @property
    def held_out(self) -> Tensor | None:
        """Second moment of one held-out row about the mean of the others: what a bias misses there counts too."""
        if self.parts is None:
            return None
        fitted, held = self.parts
        moved = held.mean - fitted.mean
        return held.covariance_sum / held.count + moved.unsqueeze(-1) * moved.unsqueeze(-2)


@dataclass(frozen=True)
class Statistics:
    """Statistics by site name; sites that the data never reached are listed instead.

    ``model``: fingerprint of the model they were taken of ("" if that is not known).
    """

    sites: Mapping[str, SiteStatistics]
    samples: int
    unreached: tuple[str, ...] = ()
    model: str = ""

    @property
    def kept(self) -> Statistics:
        """Without the parts that only forecasts need."""
        return replace(self, sites={name: replace(known, parts=None) for name, known in self.sites.items()})

    def to_bytes(self) -> bytes:
        """One safetensors file; ``load`` is the inverse."""
        tensors, absorbers = {}, {}
        for name, known in sorted(self.sites.items()):  # whatever the order in which they were read
            for key, value in known.moments.state_dict().items():
                tensors[f"{name}|{key}"] = torch.as_tensor(value)
            if known.metric is not None:
                tensors[f"{name}|metric"] = known.metric
            if known.absorber is not None:
                absorbers[name] = known.absorber
        note = _Note(samples=self.samples, unreached=list(self.unreached), absorbers=absorbers, model=self.model)
        return _FILE.write(tensors, note)

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | Path | bytes, name: str = "") -> Statistics:
        """What ``save`` wrote, from its file or its bytes; ``ValueError`` in one line if that is something else."""
        try:
            return _FILE.read(path, _built, name)
        except OSError as error:
            raise ValueError(
                f"{name or path!s}: cannot be read as a statistics file of rankfold ({error.strerror})"
            ) from None


class _Note(TypedDict):
    samples: int
    unreached: list[str]
    absorbers: dict[str, str]
    model: NotRequired[str]


_FILE = Kind[_Note](
    "rankfold.statistics",
    _Note,
    "a statistics file of rankfold",
    "make the plan again, with data",
)


def _built(tensors: Mapping[str, Tensor], note: _Note) -> Statistics:
    states: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        states.setdefault(name, {})[key] = value
    found = {
        name: SiteStatistics(Moments.from_state_dict(state), note["absorbers"].get(name), state.get("metric"))
        for name, state in states.items()
    }
    return Statistics(found, note["samples"], tuple(note["unreached"]), note.get("model", ""))


def moments_bytes(site: Site) -> int:
    """Memory of the moments of one site at its ``side``, and of decomposing them."""
    m, n = site.shape
    side = m if site.layer.side == "output" else n
    return 8 * site.groups * (4 * side * side + m * n)


def check_affordable(found: Sequence[Site]) -> None:
    """``ValueError`` where the moments of these sites need more memory than is free; names the largest."""
    need, free = sum(map(moments_bytes, found)), available()
    if free is None or need <= FREE * free:
        return
    largest = max(found, key=moments_bytes)
    raise ValueError(
        f"second moments of {len(found)} layers would take {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free "
        f"({largest.title} alone {moments_bytes(largest) / 1e9:,.1f} GB): leave layers out (--exclude, where=), take "
        "method 'sequential', which measures a few at a time (--memory, Calibration(memory=…)), or 'truncate', which "
        "needs none"
    )


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
    progress: Progress | None = None,
    team: Team | None = None,
) -> Statistics:
    """Stream ``data`` through ``model`` in eval mode and gather the second moments of every reducible site.

    ``data``: anything ``rankfold.batches.batches_of`` understands. One sample in eight is held back (one in two of very
    few): their moments are kept apart. On the first ``metric_samples`` also the output metrics (see
    ``rankfold.compress.metric``; 0 for none), of the answers of ``objective``; None: every floating output. Cost: the
    forward passes, one backward pass for the metrics, and d² for each row at each site, d its ``side``. Raises
    ``ValueError`` for empty data, for a site whose weights or activations are not finite, and for moments that would
    not fit into memory. Hooks, mode and gradients are left as found. With a ``team`` every process takes its share of
    the batches and ends with the statistics of all.
    """
    seen = Samples(data, samples, batch_size, team=team or Team())
    root, asked = unwrap(model), objective or Teacher()
    check_affordable(sites.reducible)
    if metric_samples:
        check_rereadable(data)
    with evaluating(root), split_attention(root):
        check_finite((site, site.weight(root), site.bias(root)) for site in sites.reducible)
        gathered = _gather(root, seen, sites, asked if metric_samples else None, progress)
    if not gathered.samples:
        raise ValueError("the calibration data is empty: give at least one batch")
    give_back()
    metrics = {}
    if metric_samples:
        metrics = output_metrics(root, seen.first(metric_samples), sites, asked, gathered.spread, progress)
    reached, absorbers = {}, gathered.absorbers
    for site in sites.reducible:
        parts = gathered.moments.get(site.name)
        if parts is not None:
            absorber = None if site.layer.has_bias else absorbers.of(site.name)
            reached[site.name] = _of_site(parts, absorber, metrics.get(site.name))
    unreached = tuple(site.name for site in sites.reducible if site.name not in reached)
    give_back()
    return Statistics(reached, gathered.samples, unreached, fingerprint(model))


Parts = dict[bool, Moments]  # by whether its samples are held back


@dataclass
class _Gathered:
    moments: dict[str, Parts] = field(default_factory=dict)
    absorbers: Absorbers = field(default_factory=Absorbers)
    spread: Spread = field(default_factory=Spread)
    samples: int = 0


def _of_site(parts: Parts, absorber: str | None, metric: Tensor | None) -> SiteStatistics:
    if len(parts) < 2:
        (moments,) = parts.values()
        return SiteStatistics(moments, absorber, metric)
    whole = Moments.from_state_dict(parts[False].state_dict()).merge(parts[True])
    return SiteStatistics(whole, absorber, metric, (parts[False], parts[True]))


def _gather(
    root: nn.Module, seen: Samples, sites: SiteList, objective: Objective | None, progress: Progress | None
) -> _Gathered:
    """One pass over the samples; attention must be split, the model in eval mode. ``objective``: of whose answers the
    spread is measured."""
    found, comparable = _Gathered(), objective is not None
    back = torch.zeros(0, dtype=torch.bool)

    def watch(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            rows = site.layer.rows(module, first_of(args, kwargs), output)
            if not bool(rows.isfinite().all()):
                raise ValueError(
                    f"{site.title}: activations in {rows.dtype} are not finite on the calibration data; look for bad "
                    "samples, for weights before this site that are not finite, or for overflow (convert to float32)"
                )
            parts = found.moments.setdefault(site.name, {})
            for side, part in _parted(rows, back):
                if side not in parts:
                    parts[side] = Moments(rows.shape[-1], groups=rows.shape[0] if rows.dim() == 3 else None)
                parts[side].update(part)
            found.absorbers.produced(site.name, output)

        return hook

    layout = layout_for(root, seen.data)
    every, hooks = seen.held_back, {root.get_submodule(site.name): watch(site) for site in sites.reducible}
    with found.absorbers.watching(root), after(None, hooks), seen.team.agreed():
        for index, batch in seen.batches():
            size = size_of(batch)
            back = held(size, found.samples, every)
            found.samples += size
            if index not in seen:
                continue
            output = forward(root, laid_out(batch, layout))
            if objective is not None and comparable:
                try:
                    found.spread.add(objective.answers(output, batch), size)
                except ObjectiveError:
                    found.spread, comparable = Spread(), False
            if progress is not None:
                progress("calibrating", found.samples, seen.samples or found.samples)
    if seen.team.size > 1:
        found.moments = _together(found.moments, seen.team)
        found.spread = found.spread.joined(seen.team)
    return found


def _parted(rows: Tensor, back: Tensor) -> Iterator[tuple[bool, Tensor]]:
    """Rows (…, R, d) of a batch in its two parts; each sample has as many rows, one sample after the other."""
    if not bool(back.any()):
        yield False, rows
        return
    each, rest = divmod(rows.shape[-2], len(back))
    mask = (back.repeat_interleave(each) if not rest else held(rows.shape[-2], 0, _ROWS)).to(rows.device)
    yield from ((side, rows[..., mask == side, :]) for side in (False, True) if bool((mask == side).any()))


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
