"""What a plan needs of decompositions, once these are let go: their errors at every rank, in memory and in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from torch import Tensor
from typing_extensions import TypedDict

from rankfold.compress.measured import Statistics
from rankfold.compress.methods.method import Forecast
from rankfold.compress.planning.candidates import Candidate, Decomposed
from rankfold.run.disk.container import Kind
from rankfold.run.disk.tensors import Checkpoint
from rankfold.sites import Factors, Form, SiteList


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
            "the factors of this decomposition are no longer held: ask the profile for a plan (Profile.plan), which "
            "fits layer after layer and makes them anew"
        )


@dataclass(frozen=True)
class Measured:
    """``metrics`` of the model's outputs by site; ``absorbers`` of all sites that were reached."""

    candidates: dict[str, list[Candidate]]
    unsolved: dict[str, str]
    metrics: Mapping[str, Tensor]
    absorbers: dict[str, str | None]
    unreached: tuple[str, ...]
    count: int = 0
    weighed: int = 0


def measured(part: SiteList, made: Decomposed, statistics: Statistics | None, let_go: bool) -> Measured:
    """What was decomposed of the sites of ``part``; with ``let_go`` their errors alone. Without ``statistics`` it was
    done without data, for want of memory."""
    curves = made.candidates
    if let_go:
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


_BEYOND = "truncated without data, as its moments take more than the bound of memory"


def _curve(candidate: Candidate) -> Curve:
    known = candidate.decomposition
    return Curve(known.errors.clone(), known.levels.clone(), known.ranks, known.comparable)


def joined(parts: Sequence[Measured]) -> Measured:
    """That of several parts together."""
    return reduce(_joined, parts, Measured({}, {}, {}, {}, ()))


def _joined(a: Measured, b: Measured) -> Measured:
    return Measured(
        a.candidates | b.candidates, a.unsolved | b.unsolved, {**a.metrics, **b.metrics}, a.absorbers | b.absorbers,
        (*a.unreached, *b.unreached), a.count + b.count, a.weighed + b.weighed,
    )  # fmt: skip


def write_part(file: Path, known: Measured) -> None:
    """Write ``known``, whose decompositions were let go; ``read_part`` reads it."""
    tensors: dict[str, Tensor] = {_METRIC + name: metric for name, metric in known.metrics.items()}
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
    _FILE.write_to(file, tensors, note)


def read_part(file: Path, part: SiteList) -> Measured | None:
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
            _check(curve, forecast)
            candidates[site.name].append(
                Candidate(site, Form(known["form"]), curve, known["bias"], forecast, known["note"])
            )
        metrics = {key.removeprefix(_METRIC): value for key, value in tensors.items() if key.startswith(_METRIC)}
        return Measured(candidates, note["unsolved"], metrics, note["absorbers"], tuple(note["unreached"]))

    with suppress(OSError, ValueError):
        return _FILE.read(file, built)
    return None


def _check(curve: Curve, forecast: Forecast | None) -> None:
    """``ValueError`` for a curve whose parts are of different ranks."""
    k = len(curve.errors) - 1
    held = [curve.errors, *([] if forecast is None else [forecast.errors, forecast.relative])]
    fits = all(tuple(each.shape) == (k + 1,) for each in held) and tuple(curve.levels.shape) == (k,)
    if not fits or any(not 0 <= rank <= k for rank in curve.ranks):
        raise ValueError("errors, levels, forecasts and ranks do not fit one another")


_METRIC = "metric|"


class OnDisk(Mapping[str, Tensor]):
    """The metrics in files of ``write_part``, each read when it is asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.checkpoints = [Checkpoint(file) for file in files]
        self.places = {
            name.removeprefix(_METRIC): known
            for known in self.checkpoints
            for name in known.names
            if name.startswith(_METRIC)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name].read(_METRIC + name).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


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
