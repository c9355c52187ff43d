"""Second moments of every site over calibration data: streamed, float64, one small matrix for each site."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.batches import check_rereadable, forward, size_of
from rankfold.compress.absorbers import Absorbers
from rankfold.compress.finite import check_finite
from rankfold.compress.metric import output_metrics
from rankfold.compress.spread import Spread
from rankfold.compress.tokens import InPassing, token_metrics
from rankfold.costs import evaluating
from rankfold.forms import Side
from rankfold.linalg import Moments
from rankfold.linalg.brief import brief
from rankfold.objectives import Objective, ObjectiveError, Teacher
from rankfold.objectives.answer import unpadded
from rankfold.observe import Samples, after, first_of
from rankfold.observe.passes import held, laid_out, layout_for
from rankfold.run.disk.container import Kind
from rankfold.run.disk.files import write_atomically
from rankfold.run.processes.memory import available, give_back
from rankfold.run.processes.team import Team
from rankfold.run.progress import Progress, showing
from rankfold.sites import Site, SiteList, fingerprint, opened, unwrap

FREE = 0.9  # of the memory that is free: what moments may take
_ROWS = 8  # one row in so many is held back where rows cannot be told by samples


@dataclass(frozen=True)
class SiteStatistics:
    """What the data says of one site.

    ``moments`` at the layer's ``side``; ``absorber``: the BatchNorm that takes this site's output with nothing in
    between; ``metric``: how much the model's outputs move when this site's outputs do, (m, m), its diagonal (m,), or
    with a leading group axis; of a linear layer with m > n it may be (n, n): WᵀDW, all that is needed of it there.
    ``coarse``: another such metric, which ranks layers better where much is lost. ``free``: the new layer may carry a
    bias of its own, so that moments are taken about the mean. ``tokens``: both metrics are of tokens. ``parts``: the
    moments of the samples to fit to, and of those that were held back so that a forecast can be checked on them; not
    saved. ``idle``: experts that were given no token. ``side``: where moments were taken, if not where the layer says.
    """

    moments: Moments
    absorber: str | None = None
    metric: Tensor | None = None
    coarse: Tensor | None = None
    free: bool = True
    tokens: bool = False
    parts: tuple[Moments, Moments] | None = field(default=None, compare=False, repr=False)
    idle: tuple[int, ...] = field(default=(), compare=False)
    side: Side | None = None

    @property
    def covariance(self) -> Tensor:
        """Second moment of one row, (d, d) or (groups, d, d), about the mean where a bias is free."""
        total = self.moments.covariance_sum if self.free else self.moments.gram
        return total / max(self.moments.count, 1)

    @property
    def fitted(self) -> SiteStatistics | None:
        """The same of the samples to fit to alone."""
        return None if self.parts is None else replace(self, moments=self.parts[0], parts=None)

    @property
    def held_out(self) -> Tensor | None:
        """Second moment of one held-out row about the mean of the others: what a bias misses there counts too. About
        zero where no bias is free."""
        if self.parts is None:
            return None
        fitted, held = self.parts
        if not self.free:
            return held.gram / held.count
        moved = held.mean - fitted.mean
        return held.covariance_sum / held.count + moved.unsqueeze(-1) * moved.unsqueeze(-2)


@dataclass(frozen=True)
class Statistics:
    """Statistics by site name; sites that the data never reached are listed instead.

    ``model``: fingerprint of the model they were taken of ("" if that is not known). ``nats``: squared errors in the
    metric are nats of KL divergence per token. ``spread``: of the model's answers, where they can be compared; not
    saved.
    """

    sites: Mapping[str, SiteStatistics]
    samples: int
    unreached: tuple[str, ...] = ()
    model: str = ""
    nats: bool = False
    spread: Spread | None = field(default=None, compare=False)

    __repr__ = brief

    @property
    def kept(self) -> Statistics:
        """Without the parts that only forecasts need."""
        return self._with(lambda known: replace(known, parts=None))

    @property
    def decided(self) -> Statistics:
        """Without the metric that was not taken."""
        return self._with(lambda known: replace(known, coarse=None))

    @property
    def coarser(self) -> Statistics | None:
        """With the other metric in place of the one in nats; None where there is none."""
        if not any(known.coarse is not None for known in self.sites.values()):
            return None
        return replace(self._with(lambda known: replace(known, metric=known.coarse, coarse=None)), nats=False)

    def _with(self, change: Callable[[SiteStatistics], SiteStatistics]) -> Statistics:
        return replace(self, sites={name: change(known) for name, known in self.sites.items()})

    def to_bytes(self, parts: bool = False) -> bytes:
        """One safetensors file; ``load`` is the inverse. ``parts``: also what only forecasts need."""
        tensors, absorbers = {}, {}
        bound = [name for name, known in self.sites.items() if not known.free]
        for name, known in sorted(self.sites.items()):  # whatever the order in which they were read
            for key, value in known.moments.state_dict().items():
                tensors[f"{name}|{key}"] = torch.as_tensor(value)
            if known.metric is not None:
                tensors[f"{name}|metric"] = known.metric
            if known.coarse is not None:
                tensors[f"{name}|coarse"] = known.coarse
            if known.absorber is not None:
                absorbers[name] = known.absorber
            for place, moments in zip(_PARTS, known.parts or () if parts else (), strict=False):
                tensors |= {f"{name}|{place} {k}": torch.as_tensor(v) for k, v in moments.state_dict().items()}
        note = _Note(samples=self.samples, unreached=list(self.unreached), absorbers=absorbers, model=self.model)
        tokens = any(known.tokens for known in self.sites.values())
        if bound:  # an embedding of any network among them
            note["bound"] = sorted(bound)
        if tokens:
            note |= {"nats": self.nats, "tokens": tokens}
        sides = {name: known.side for name, known in sorted(self.sites.items()) if known.side is not None}
        if sides:
            note["sides"] = sides
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
                f"{name or path!s}: this cannot be read as a statistics file of rankfold ({error.strerror})"
            ) from None


_PARTS = ("fitted", "held")  # before the names of the moments of a part of the samples


class _Note(TypedDict):
    samples: int
    unreached: list[str]
    absorbers: dict[str, str]
    model: NotRequired[str]
    bound: NotRequired[list[str]]
    nats: NotRequired[bool]
    tokens: NotRequired[bool]
    sides: NotRequired[dict[str, Side]]


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
    bound = frozenset(note.get("bound", ()))
    found = {
        name: SiteStatistics(
            Moments.from_state_dict(state), note["absorbers"].get(name), state.get("metric"), state.get("coarse"),
            name not in bound, note.get("tokens", False), _parts_in(state), side=note.get("sides", {}).get(name),
        )
        for name, state in states.items()
    }  # fmt: skip
    unreached, nats = tuple(note["unreached"]), note.get("nats", False)
    return Statistics(found, note["samples"], unreached, note.get("model", ""), nats)


def _parts_in(state: Mapping[str, Tensor]) -> tuple[Moments, Moments] | None:
    if not any(key.startswith(_PARTS) for key in state):
        return None
    fitted, held = (
        Moments.from_state_dict({key.removeprefix(f"{place} "): value for key, value in state.items()
                                 if key.startswith(f"{place} ")})
        for place in _PARTS
    )  # fmt: skip
    return fitted, held


def moments_bytes(site: Site) -> int:
    """Memory of the moments of one site at its ``side``, and of decomposing them."""
    m, n = site.shape
    side = m if site.layer.side == "output" else n
    return 8 * site.groups * (4 * side * side + m * n)


def is_affordable(found: Sequence[Site]) -> bool:
    """Whether the moments of these sites fit into the memory that is free."""
    free = available()
    return free is None or sum(map(moments_bytes, found)) <= FREE * free


def check_affordable(found: Sequence[Site]) -> None:
    """``ValueError`` where the moments of these sites need more memory than is free; names the largest."""
    if is_affordable(found):
        return
    need, free = sum(map(moments_bytes, found)), available() or 0
    largest = max(found, key=moments_bytes)
    raise ValueError(
        f"the second moments of {len(found)} layers would take {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB "
        f"are free ({largest.title} alone takes {moments_bytes(largest) / 1e9:,.1f} GB): leave layers out "
        "(--exclude, where=); or use method 'sequential', which measures a few at a time (--memory, "
        "Calibration(memory=…)), or 'truncate', which needs no moments"
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
    forward passes, one backward pass for the metrics, and d² for each row at each site, d its ``side``. Raises
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
            except RuntimeError:
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

    def watch(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            rows = site.layer.rows(module, first_of(args, kwargs), output)
            rows = rows.detach()
            if not bool(rows.isfinite().all()):
                raise ValueError(
                    f"{site.title}: on the calibration data its activations in {rows.dtype} are NaN or infinite: "
                    "look for bad samples, for weights before this layer that are NaN or infinite, or for "
                    "overflow (then convert the model to float32)"
                )
            if site.layer.experts:
                given = torch.bincount(args[1].flatten(), minlength=site.layer.experts)[: site.layer.experts].cpu()
                found.tokens[site.name] = found.tokens.get(site.name, torch.zeros_like(given)) + given
            parts = found.moments.setdefault(site.name, {})
            mask = None if rows.dim() > 2 else unpadded(output, batch)
            for side, part in _parted(rows, back, mask):
                if side not in parts:
                    parts[side] = Moments(rows.shape[-1], groups=rows.shape[0] if rows.dim() == 3 else None)
                parts[side].update(part)
            found.absorbers.produced(site.name, output)

        return hook

    if run is None:
        layout = layout_for(root, seen.data)
        run = lambda index, batch: forward(root, laid_out(batch, layout))  # noqa: E731
    every, hooks = seen.held_back, {root.get_submodule(site.name): watch(site) for site in sites.reducible}
    with found.absorbers.watching(root.named_modules()), after(None, hooks), seen.team.agreed():
        for index, batch in seen.batches():
            size = size_of(batch)
            back = held(size, found.samples, every)
            found.samples += size
            if index not in seen:
                continue
            output = run(index, batch)
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
        for given in found.tokens.values():
            dist.all_reduce(given)
    return found


def _parted(rows: Tensor, back: Tensor, mask: Tensor | None = None) -> Iterator[tuple[bool, Tensor]]:
    """Rows (…, R, d) of a batch in its two parts; each sample has as many rows, one sample after the other. ``mask``
    (N, length), one for each row: those that are no padding."""
    if not bool(back.any()) and mask is None:
        yield False, rows
        return
    each, rest = divmod(rows.shape[-2], max(len(back), 1))
    sides = back.repeat_interleave(each) if not rest else held(rows.shape[-2], 0, _ROWS)
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
