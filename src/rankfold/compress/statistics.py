"""Second moments of every site over calibration data: streamed, float64, one small matrix for each site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.batches import batches_of, check_rereadable, forward, size_of
from rankfold.compress.absorb import Absorbers
from rankfold.compress.metric import output_metrics
from rankfold.compress.planning.plan import fingerprint
from rankfold.compress.sound import check_sound
from rankfold.costs import evaluating
from rankfold.linalg import Moments
from rankfold.run.container import Kind
from rankfold.run.files import write_atomically
from rankfold.run.progress import Progress, showing
from rankfold.run.team import Team
from rankfold.sites import Site, SiteList, split_attention, unwrap


@dataclass(frozen=True)
class SiteStatistics:
    """What the data says of one site.

    ``moments`` at the layer's ``side``; ``absorber``: the BatchNorm that takes this site's output with nothing in
    between; ``metric``: how much the model's outputs move when this site's outputs do, (m, m), its diagonal (m,), or
    with a leading group axis.
    """

    moments: Moments
    absorber: str | None = None
    metric: Tensor | None = None

    @property
    def covariance(self) -> Tensor:
        """Centred second moment of one row, (d, d) or (groups, d, d)."""
        return self.moments.covariance_sum / max(self.moments.count, 1)


@dataclass(frozen=True)
class Statistics:
    """Statistics by site name; sites that the data never reached are listed instead.

    ``model``: fingerprint of the model they were taken of ("" if that is not known).
    """

    sites: Mapping[str, SiteStatistics]
    samples: int
    unreached: tuple[str, ...] = ()
    model: str = ""

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
        return _FILE.read(path, _built, name)


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


@showing
def calibrate(
    model: nn.Module,
    data: Any,
    sites: SiteList,
    *,
    samples: int | None = 2048,
    metric_samples: int = 1024,
    batch_size: int = 128,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Statistics:
    """Stream ``data`` through ``model`` in eval mode and gather the second moments of every reducible site.

    ``data``: anything ``rankfold.batches.batches_of`` understands; labels are not used. On the first
    ``metric_samples`` also the output metrics (see ``rankfold.compress.metric``; 0 for none). Cost: the forward passes,
    one backward pass for the metrics, and d² for each row at each site, d its ``side``. Raises ``ValueError`` for empty
    data and for a site whose weights or activations are not finite. Hooks, mode and gradients are left as found.
    With a ``team`` every process takes its share of the batches and ends with the statistics of all.
    """
    team = team or Team()
    root = unwrap(model)
    if metric_samples:
        check_rereadable(data)
    # rows of a site become moments of the smaller side; None until the first call
    moments: dict[str, Moments] = {}
    absorbers = Absorbers()

    def watch(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            rows = site.layer.rows(module, inputs, output)
            if not bool(rows.isfinite().all()):
                raise ValueError(
                    f"{site.title}: activations in {rows.dtype} are not finite on the calibration data; look for bad "
                    "samples, for weights before this site that are not finite, or for overflow (convert to float32)"
                )
            if site.name not in moments:
                groups = rows.shape[0] if rows.dim() == 3 else None
                moments[site.name] = Moments(rows.shape[-1], groups=groups)
            moments[site.name].update(rows)
            absorbers.produced(site.name, output)

        return hook

    seen = 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(root))
        stack.enter_context(split_attention(root))
        check_sound(root, sites.reducible)
        for site in sites.reducible:
            handle = root.get_submodule(site.name).register_forward_hook(watch(site), with_kwargs=True)
            stack.callback(handle.remove)
        absorbers.watch_norms(root, stack)
        with team.agreed():
            for index, batch in enumerate(batches_of(data, batch_size, samples)):
                seen += size_of(batch)
                if index % team.size == team.rank:
                    forward(root, batch)
                if progress is not None:
                    progress("calibrating", seen, samples or seen)
    if not seen:
        raise ValueError("the calibration data is empty: give at least one batch")
    if team.size > 1:
        moments = _together(moments, team)
    metrics = output_metrics(root, data, sites, metric_samples, batch_size, progress, team) if metric_samples else {}
    reached = {
        site.name: SiteStatistics(
            moments[site.name], None if site.layer.has_bias else absorbers.of(site.name), metrics.get(site.name)
        )
        for site in sites.reducible
        if site.name in moments
    }
    unreached = tuple(site.name for site in sites.reducible if site.name not in moments)
    return Statistics(reached, seen, unreached, fingerprint(model))


def _together(moments: dict[str, Moments], team: Team) -> dict[str, Moments]:
    """The moments of all processes, merged in the order of their ranks, in every process."""
    parts: list[Any] = [None] * team.size
    dist.all_gather_object(parts, moments)
    merged: dict[str, Moments] = {}
    for part in parts:
        for name, known in part.items():
            merged[name] = merged[name].merge(known) if name in merged else known
    return merged
