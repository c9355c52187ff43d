"""The errors that every site would make at every rank, with the moments of a few sites in memory at a time.

What a plan needs of a decomposition are a few numbers for each rank; the moments they come from are d² each. As many
sites are measured at a time as the memory limit allows; the numbers are kept, and the moments let go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.compress.layerwise.layers import partition
from rankfold.compress.layerwise.pairs import bytes_needed
from rankfold.compress.methods.method import Forecast, Method
from rankfold.compress.planning.candidates import Candidate, decompose
from rankfold.compress.statistics import FREE, Statistics, calibrate, moments_bytes
from rankfold.objectives import Objective
from rankfold.observe import Samples
from rankfold.run.container import Kind
from rankfold.run.files import write_atomically
from rankfold.run.memory import available
from rankfold.run.progress import Progress
from rankfold.sites import Factors, Form, SiteList, sites


@dataclass(frozen=True)
class Curve:
    """What is left of a decomposition once it is let go: everything but the factors."""

    errors: Tensor
    levels: Tensor
    ranks: Sequence[int]
    comparable: bool

    def relative_error(self, rank: int) -> float:
        return float(self.errors[rank] / self.errors[0]) if self.errors[0] > 0 else 0.0

    def factors(self, rank: int) -> Factors:
        raise ValueError(
            "this decomposition was let go after planning: its factors come from fitting layer after layer"
        )


@dataclass(frozen=True)
class Measured:
    """``metrics`` of the model's outputs by site; ``absorbers`` of all sites that were reached."""

    candidates: dict[str, list[Candidate]]
    unsolved: dict[str, str]
    metrics: dict[str, Tensor]
    absorbers: dict[str, str | None]
    unreached: tuple[str, ...]
    count: int = 0
    weighed: int = 0


def memory_needed(model: nn.Module, memory: int | None = None, where: Any = None) -> tuple[int, int, list[str]]:
    """What second moments of all reducible sites take together in bytes, in how many passes they are taken within
    ``memory``, and the sites that alone need more: these are truncated without data. Nothing is computed.
    """
    found = sites(model, where)
    sizes = {site.name: max(moments_bytes(site), bytes_needed(site, 1)) for site in found.reducible}
    runs = partition(found.reducible, moments_bytes, memory)
    beyond = [name for name, size in sizes.items() if memory is not None and size > memory]
    return sum(sizes.values()), len(runs), beyond


def affordable(found: SiteList, memory: int | None) -> int | None:
    """``memory``, or where none was given and the moments would not fit into what is free here, half of that."""
    free = available()
    if memory is not None or free is None:
        return memory
    together, alone = sum(map(moments_bytes, found.reducible)), max(map(bytes_needed, found.reducible), default=0)
    return max(free // 2, 1) if max(together, alone) > FREE * free else None


def measure_in_parts(
    root: nn.Module,
    found: SiteList,
    method: Method,
    seen: Samples,
    objective: Objective | None = None,
    *,
    metric_samples: int = 1024,
    directory: Path | None = None,
    progress: Progress,
) -> Measured:
    """Curves of all reducible sites; attention must be split. A site beyond the limit is decomposed without data.

    ``directory``: finished parts are kept there and read back. Cost: for each part one pass over the samples.
    """
    runs = partition(found.reducible, moments_bytes, seen.memory)
    whole = Measured({}, {}, {}, {}, ())
    for number, run in enumerate(runs):
        file = None if directory is None else directory / f"measured-{number:04d}.safetensors"
        part = SiteList(tuple(run))
        known = _read(file, part) if file is not None else None
        if known is None:
            known = _measured(root, part, method, seen, objective, metric_samples, progress)
            if file is not None and seen.team.first:
                _write(file, known)
        whole = _joined(whole, known)
        if len(runs) > 1:
            progress("measuring part after part", number + 1, len(runs))
    return whole


_BEYOND = "truncated without data: its moments exceed the memory limit"


def _measured(
    root: nn.Module,
    part: SiteList,
    method: Method,
    seen: Samples,
    objective: Objective | None,
    metric_samples: int,
    tell: Progress,
) -> Measured:
    statistics: Statistics | None = None
    if seen.memory is None or sum(map(moments_bytes, part)) <= seen.memory:
        statistics = calibrate(
            root, seen.data, part, samples=seen.samples, batch_size=seen.batch_size, metric_samples=metric_samples,
            objective=objective, progress=tell, team=seen.team,
        )  # fmt: skip
    made = decompose(root, part, method, statistics, tell)
    curves = made.candidates
    if seen.memory is not None:
        curves = {name: [replace(each, decomposition=_curve(each)) for each in group] for name, group in curves.items()}
    if statistics is None:
        curves = {name: [replace(each, note=_BEYOND) for each in group] for name, group in curves.items()}
    known = {} if statistics is None else statistics.sites
    return Measured(
        curves,
        made.unsolved,
        {name: each.metric for name, each in known.items() if each.metric is not None},
        {name: each.absorber for name, each in known.items()},
        () if statistics is None else tuple(site.name for site in part.reducible if site.name not in known),
        made.count,
        made.weighed,
    )


def _curve(candidate: Candidate) -> Curve:
    known = candidate.decomposition
    return Curve(known.errors.clone(), known.levels.clone(), known.ranks, known.comparable)


def _joined(a: Measured, b: Measured) -> Measured:
    return Measured(
        a.candidates | b.candidates, a.unsolved | b.unsolved, a.metrics | b.metrics, a.absorbers | b.absorbers,
        (*a.unreached, *b.unreached), a.count + b.count, a.weighed + b.weighed,
    )  # fmt: skip


def _write(file: Path, known: Measured) -> None:
    tensors: dict[str, Tensor] = {f"metric|{name}": metric for name, metric in known.metrics.items()}
    curves: list[_Curve] = []
    for name, group in known.candidates.items():
        for candidate in group:
            key = f"{candidate.form}|{name}"
            curve = candidate.decomposition
            tensors |= {f"errors|{key}": curve.errors, f"levels|{key}": curve.levels}
            if candidate.forecast is not None:
                forecast = candidate.forecast
                tensors |= {f"forecast|{key}": forecast.errors, f"relative|{key}": forecast.relative}
            curves.append(
                {"site": name, "form": candidate.form, "ranks": list(curve.ranks), "bias": candidate.bias,
                 "comparable": bool(curve.comparable), "note": candidate.note}
            )  # fmt: skip
    note = _Note(curves=curves, unsolved=known.unsolved, absorbers=known.absorbers, unreached=list(known.unreached))
    write_atomically(file, _FILE.write(tensors, note))


def _read(file: Path, part: SiteList) -> Measured | None:
    """What an interrupted call has left; None for a file that is not there or not whole: it is measured again."""

    def built(tensors: Mapping[str, Tensor], note: _Note) -> Measured:
        candidates: dict[str, list[Candidate]] = {site.name: [] for site in part.reducible}
        for known in note["curves"]:
            key = f"{known['form']}|{known['site']}"
            curve = Curve(tensors[f"errors|{key}"], tensors[f"levels|{key}"], known["ranks"], known["comparable"])
            site = part[known["site"]]
            forecast = None
            if f"forecast|{key}" in tensors:
                forecast = Forecast(tensors[f"forecast|{key}"], tensors[f"relative|{key}"])
            candidates[site.name].append(
                Candidate(site, Form(known["form"]), curve, known["bias"], forecast, known["note"])
            )
        metrics = {key.partition("|")[2]: value for key, value in tensors.items() if key.startswith("metric|")}
        return Measured(candidates, note["unsolved"], metrics, note["absorbers"], tuple(note["unreached"]))

    with suppress(OSError, ValueError):
        return _FILE.read(file, built)
    return None


class _Curve(TypedDict):
    site: str
    form: str
    ranks: list[int]
    bias: bool
    comparable: bool
    note: str


class _Note(TypedDict):
    curves: list[_Curve]
    unsolved: dict[str, str]
    absorbers: dict[str, str | None]
    unreached: list[str]


_FILE = Kind[_Note]("rankfold.measured", _Note, "a part of what was measured", "it is measured again")
