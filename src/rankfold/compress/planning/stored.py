"""A profile on disk: plans follow from the file alone; what was decomposed is decomposed again where it is factored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from rankfold.compress.measured import Statistics
from rankfold.compress.methods import method_named
from rankfold.compress.methods.method import Decomposition, Forecast, Method, fits_layers
from rankfold.compress.methods.rounding import decomposed
from rankfold.compress.planning.candidates import Candidate, Counter, with_ridge
from rankfold.compress.planning.lawful import check_decomposition
from rankfold.compress.planning.profile import Calibration, Profile
from rankfold.compress.shared import statistics_of
from rankfold.costs import Cost
from rankfold.objectives import Objective, objective_named
from rankfold.run.disk.container import Kind
from rankfold.sites import Call, Factors, Form, SiteList, architecture, fingerprint, joint, opened, sites, unwrap


@dataclass(eq=False)
class Kept:
    """A decomposition by its errors; it is made again when factors are asked for."""

    errors: Tensor
    levels: Tensor
    ranks: Sequence[int]
    comparable: bool
    again: Any = field(repr=False)
    made: Decomposition | None = field(default=None, repr=False)

    @property
    def decomposition(self) -> Decomposition:
        if self.made is None:
            self.made = self.again()
        return self.made

    def relative_error(self, rank: int) -> float:
        return self.decomposition.relative_error(rank)

    def factors(self, rank: int) -> Factors:
        return self.decomposition.factors(rank)


class _Candidate(TypedDict):
    site: str
    form: str
    ranks: list[int]
    bias: bool
    comparable: bool
    ridge: float
    note: str
    few: NotRequired[bool]


class _Note(TypedDict):
    method: str
    candidates: list[_Candidate]
    calls: dict[str, list[tuple[list[int], list[int]]]]
    element_sizes: dict[str, int]
    example: int
    cost: tuple[int, int, int]
    flops: int
    fingerprint: str
    samples: int
    data: str
    unsolved: dict[str, str]
    unreached: list[str]
    others: dict[str, str]
    notes: list[str]
    statistics: bool
    decomposed: int
    weighed: int
    objective: NotRequired[str]
    probed: NotRequired[bool]
    prices: NotRequired[list[tuple[int, int, str, str]]]
    units: NotRequired[list[tuple[int, int, str]]]  # of these prices; without, what an earlier release wrote
    left_out: NotRequired[list[tuple[str, str]]]
    joint: NotRequired[list[list[str]]]


_FILE = Kind[_Note]("rankfold.profile", _Note, "a profile of rankfold", "make it again: rankfold.profile(model, data)")


def save_profile(known: Profile, path: str | Path) -> None:
    """Write ``known`` to one file, whole or not at all. ``ValueError`` for methods that fit layer after layer, whose
    factors are not in a profile."""
    if fits_layers(known.method):
        raise ValueError(
            f"method {known.method.name!r} makes its factors only after ranks are chosen, so that its profile "
            "cannot be saved: save its plans instead"
        )
    tensors: dict[str, Tensor] = {}
    noted: list[_Candidate] = []
    for candidate in (each for group in known.candidates.values() for each in group):
        made, key = candidate.decomposition, str(len(noted))
        tensors |= {f"errors|{key}": made.errors, f"levels|{key}": made.levels}
        if candidate.forecast is not None:
            tensors |= {f"forecast|{key}": candidate.forecast.errors, f"relative|{key}": candidate.forecast.relative}
        if candidate.coherence is not None:
            tensors[f"coherence|{key}"] = candidate.coherence
        noted.append(
            _Candidate(
                site=candidate.site.name, form=str(candidate.form), ranks=list(made.ranks), bias=candidate.bias,
                comparable=bool(made.comparable), ridge=candidate.ridge, note=candidate.note, few=candidate.few,
            )
        )  # fmt: skip
    if known.statistics is not None:
        tensors["statistics"] = torch.frombuffer(bytearray(known.statistics.to_bytes()), dtype=torch.uint8)
    counter = known.counter
    note = _Note(
        method=known.method.name, candidates=noted,
        calls={name: [(list(c.input), list(c.output)) for c in calls] for name, calls in counter.calls.items()},
        element_sizes=dict(counter.element_sizes), example=counter.samples,
        cost=(known.cost.params, known.cost.flops, known.cost.bytes), flops=known.flops,
        fingerprint=known.fingerprint, samples=known.samples, data=known.calibration.name,
        unsolved=dict(known.unsolved), unreached=list(known.unreached), notes=list(known.notes),
        others={site.name: site.note for site in known.sites if site.forms == {Form.KEEP}},
        statistics=known.statistics is not None, decomposed=known.decomposed, weighed=known.weighed,
    )  # fmt: skip
    if known.objective is not None:
        note["objective"] = known.objective.name
    note["left_out"] = list(known.sites.left_out)
    if known.sites.joint:
        note["joint"] = [list(each.names) for each in known.sites.joint]
    note["probed"], note["prices"] = known.data is not None or known.probed, []
    note["units"] = []
    for (probes, asked), (prices, unit) in known.prices.items():
        note["units"].append((probes, asked, unit))
        for (site, form), values in prices.items():
            tensors[f"price|{len(note['prices'])}"] = values
            note["prices"].append((probes, asked, site, str(form)))
    _FILE.write_to(Path(path), tensors, note)


def load_profile(
    path: str | Path,
    model: nn.Module,
    data: Any = None,
    *,
    method: Method | None = None,
    objective: Objective | None = None,
) -> Profile:
    """What ``save_profile`` wrote, for the ``model`` that it was made of; ``ValueError`` in one line for another one.

    ``data``: as they were given to ``profile``; needed by rules and budgets that run the model on them. ``method`` and
    ``objective``: those it was made with, where they are your own and not registered.
    """
    root = unwrap(model)

    def built(tensors: dict[str, Tensor], note: _Note) -> Profile:
        return _built(root, tensors, note, data, method, objective)

    found = _FILE.read(path, built)
    if fingerprint(root) != found.fingerprint:
        theirs = found.fingerprint.split(":")[0]
        kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        made_for = next((kind for kind in kinds if architecture(root, kind) == theirs), None)
        if made_for is not None and theirs != fingerprint(root).split(":")[0]:
            raise ValueError(
                f"{path}: it was made of the same network in {str(made_for).removeprefix('torch.')}: load it for that "
                "one, or make the profile of this model again"
            )
        raise ValueError(f"{path}: it was made of another model, or of other weights: make the profile again")
    return found


def _built(
    root: nn.Module,
    tensors: Mapping[str, Tensor],
    note: _Note,
    data: Any,
    method: Method | None,
    objective: Objective | None,
) -> Profile:
    method = method_named(note["method"]) if method is None else method
    if objective is None and "objective" in note:
        objective = objective_named(note["objective"])
    everything = sites(root)
    items = tuple(
        replace(site, forms=frozenset({Form.KEEP}), note=note["others"][site.name])
        if site.name in note["others"]
        else site
        for site in everything
        if site.name in note["element_sizes"]
    )
    statistics = Statistics.load(bytes(tensors["statistics"].numpy().tobytes())) if note["statistics"] else None
    found = SiteList(items, tuple((name, why) for name, why in note.get("left_out", everything.left_out)))
    found = replace(found, joint=tuple(joint([found[name] for name in names]) for names in note.get("joint", ())))
    candidates: dict[str, list[Candidate]] = {site.name: [] for site in (*found.reducible, *found.joint)}
    for index, one in enumerate(note["candidates"]):
        candidates[one["site"]].append(_candidate(root, tensors, str(index), one, found, method, statistics))
    calls = {
        name: [Call(tuple(into), tuple(out)) for into, out in each] for name, each in note["calls"].items()
    }  # fmt: skip
    return Profile(
        found, method, candidates, Counter(calls, note["example"], note["element_sizes"]), Cost(*note["cost"]),
        note["flops"], note["fingerprint"], Calibration(name=note["data"]), objective, note["samples"],
        note["unsolved"], tuple(note["unreached"]), tuple(note["notes"]), statistics, decomposed=note["decomposed"],
        weighed=note["weighed"], model=root, data=data, probed=note.get("probed", False),
        prices=_prices(tensors, note, candidates),
    )  # fmt: skip


def _prices(
    tensors: Mapping[str, Tensor], note: _Note, candidates: Mapping[str, Sequence[Candidate]]
) -> dict[Any, tuple[Mapping[tuple[str, Form], Tensor], str]]:
    found: dict[Any, dict[tuple[str, Form], Tensor]] = {}
    for index, (probes, asked, site, form) in enumerate(note.get("prices", ())):
        found.setdefault((probes, asked), {})[site, Form(form)] = tensors[f"price|{index}"]
    for candidate in (each for group in candidates.values() for each in group):
        for priced in found.values():
            values = priced.get((candidate.site.name, candidate.form))
            if values is not None and len(values) != len(candidate.decomposition.errors):
                raise ValueError(f"{candidate.site.name}: prices of other ranks than the errors")
    units = {(probes, asked): unit for probes, asked, unit in note.get("units", ())}
    return {key: (priced, units.get(key, "")) for key, priced in found.items()}


def _candidate(
    root: nn.Module,
    tensors: Mapping[str, Tensor],
    key: str,
    one: _Candidate,
    found: SiteList,
    method: Method,
    statistics: Statistics | None,
) -> Candidate:
    site, form = found[one["site"]], Form(one["form"])

    def again() -> Decomposition:
        with opened(root):
            known = statistics_of(statistics, site, partial(site.weight, root))
            chosen = with_ridge(method, one["ridge"])
            made = decomposed(chosen, site, form, site.weight(root), known, site.bias(root))
        if made is None:
            raise ValueError(f"{site.title}: method {method.name!r} does not make the form {form} of this layer")
        return made

    kept = Kept(tensors[f"errors|{key}"], tensors[f"levels|{key}"], one["ranks"], one["comparable"], again)
    check_decomposition(method, site, form, kept)
    forecast = None
    if f"forecast|{key}" in tensors:
        forecast = Forecast(tensors[f"forecast|{key}"], tensors[f"relative|{key}"])
        if not len(forecast.errors) == len(forecast.relative) == len(kept.errors):
            raise ValueError(f"{site.name}: a forecast of other ranks than the errors")
    coherence = tensors.get(f"coherence|{key}")
    if coherence is not None and len(coherence) != len(kept.errors):
        raise ValueError(f"{site.name}: a coherence of other ranks than the errors")
    return Candidate(
        site, form, kept, one["bias"], forecast, one["note"], one["ridge"], coherence, one.get("few", False)
    )
