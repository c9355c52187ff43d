"""Accuracy against retained singular values: all matrices truncated in place, nothing else changed (LoRITa, 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankfold.compress.methods.truncate import Truncate, Truncated
from rankfold.compress.ranks.allocate import global_, local
from rankfold.compress.ranks.options import BudgetError, Option
from rankfold.run.progress import Progress
from rankfold.sites import Form, Site, sites
from rankfold.train import evaluate

Rule = Literal["local", "global"]
Measure = Literal["matrices", "values"]
Group = Callable[[Site], str]
RULES: tuple[Rule, ...] = ("local", "global")
MEASURES: tuple[Measure, ...] = ("matrices", "values")
FRACTIONS = tuple(percent / 100 for percent in (*range(2, 26), 28, 30, 35, 40, 50, 70, 100))


@dataclass(frozen=True, eq=False)
class Decomposed:
    """A model with the singular value decomposition of each of its matrices, computed once.

    ``weights``: the parameters as they are, which ``truncated`` puts back.
    """

    model: nn.Module
    sites: tuple[Site, ...]
    matrices: Mapping[str, Truncated]
    weights: Mapping[str, Tensor]

    def full_rank(self, site: str) -> int:
        return len(self.matrices[site].ranks)


@dataclass(frozen=True)
class Point:
    """``retained``: kept over all singular values of each matrix, averaged over the matrices (the paper's measure);
    ``retained_values``: kept over all singular values of all matrices together. ``drop``: accuracy lost."""

    rule: Rule
    retained: float
    retained_values: float
    ranks: Mapping[str, int]
    accuracy: float
    drop: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "retained": self.retained,
            "retained_values": self.retained_values,
            "accuracy": self.accuracy,
            "drop": self.drop,
        }


def decomposed(model: nn.Module, where: Any = None) -> Decomposed:
    """Decompose every matrix of ``model`` that ``where`` selects. Cost: one decomposition for each matrix."""
    found = tuple(sites(model, where).reducible)
    weights = {site.name: site.weight(model).clone() for site in found}
    method = Truncate()
    return Decomposed(
        model, found, {site.name: method.decompose(site, Form.DENSE, weights[site.name]) for site in found}, weights
    )


def one_group(site: Site) -> str:
    """All matrices ranked together."""
    return ""


def by_kind(site: Site) -> str:
    """Attention, convolutions and fully connected layers each by themselves, as in section 5.1 of the paper."""
    return "attention" if ".attention." in f".{site.name}." else site.kind


def ranks_at(
    known: Decomposed, rule: Rule, fraction: float, group: Group = one_group, measure: Measure = "matrices"
) -> dict[str, int]:
    """The rank of every matrix when at most ``fraction`` of the singular values are retained, in every group.

    "local" keeps one fraction of each matrix (LSVT); "global" divides the singular values of each matrix by its
    largest and keeps the largest of all (GSVT). No rank is below 1: a group of few small matrices may thus retain more
    than asked; ``BudgetError`` where all groups do.
    """
    choose = global_ if rule == "global" else local
    picked: dict[str, int] = {}
    refused: list[BudgetError] = []
    groups = dict.fromkeys(map(group, known.sites))
    for name in groups:
        options = _options(known, [site for site in known.sites if group(site) == name], measure)
        try:
            chosen = choose(options, (fraction * (1 + 1e-9),))
        except BudgetError as error:
            chosen = {site: ladder[0] for site, ladder in options.items()}
            refused.append(error)
        picked |= {site: option.rank for site, option in chosen.items()}
    if len(refused) == len(groups) > 0:
        raise refused[0]
    return picked


def _options(known: Decomposed, members: Sequence[Site], measure: Measure) -> dict[str, list[Option]]:
    """Every rank of every matrix; all full ranks together cost 1."""
    total = sum(known.full_rank(site.name) for site in members)
    options = {}
    for site in members:
        full, levels = known.full_rank(site.name), known.matrices[site.name].levels
        unit = 1 / total if measure == "values" else 1 / (full * len(members))
        options[site.name] = [
            Option(Form.DENSE, rank, 0.0, (rank * unit,), float(levels[rank - 1])) for rank in range(1, full + 1)
        ]
    return options


@contextmanager
def truncated(known: Decomposed, ranks: Mapping[str, int]) -> Iterator[nn.Module]:
    """The model with its matrices at ``ranks``, as dense as before; its weights are put back on leaving."""
    try:
        with torch.no_grad():
            for site in known.sites:
                if ranks[site.name] < known.full_rank(site.name):
                    module = known.model.get_submodule(site.name)
                    site.layer.write_(module, Form.DENSE, known.matrices[site.name].factors(ranks[site.name]))
        yield known.model
    finally:
        with torch.no_grad():
            for site in known.sites:
                site.weight(known.model).copy_(known.weights[site.name])


def retained(known: Decomposed, ranks: Mapping[str, int]) -> tuple[float, float]:
    """(mean over the matrices of rank over full rank, all ranks over all full ranks)."""
    full = [known.full_rank(site.name) for site in known.sites]
    kept = [ranks[site.name] for site in known.sites]
    return sum(k / f for k, f in zip(kept, full, strict=True)) / len(full), sum(kept) / sum(full)


def curve(
    known: Decomposed,
    data: Any,
    rules: Sequence[Rule] = RULES,
    fractions: Iterable[float] = FRACTIONS,
    group: Group = one_group,
    measures: Sequence[Measure] = MEASURES,
    progress: Progress | None = None,
) -> list[Point]:
    """Accuracy on ``data`` at every fraction that can be reached, of each measure, fewest singular values first.

    Cost: one pass over ``data`` for each choice of ranks that comes up.
    """
    whole = evaluate(known.model, data).accuracy
    choices: dict[tuple[Rule, tuple[int, ...]], dict[str, int]] = {}
    for rule in rules:
        for fraction in fractions:
            for measure in measures:
                try:
                    ranks = ranks_at(known, rule, fraction, group, measure)
                except BudgetError:
                    continue
                choices.setdefault((rule, tuple(ranks.values())), ranks)
    points = []
    for done, ((rule, _), ranks) in enumerate(choices.items(), start=1):
        with truncated(known, ranks):
            accuracy = evaluate(known.model, data).accuracy
        points.append(Point(rule, *retained(known, ranks), ranks, accuracy, whole - accuracy))
        if progress is not None:
            progress("truncating", done, len(choices))
    return sorted(points, key=lambda point: (point.rule, point.retained))


def drop_at(points: Sequence[Point], rule: Rule, fraction: float, measure: Measure = "matrices") -> float:
    """The accuracy lost with at most this fraction retained: of the point that retains most within it.

    NaN where no point retains so little.
    """
    within = [
        (x, point.drop) for point in points if point.rule == rule and (x := _x(point, measure)) <= fraction + 1e-9
    ]
    return max(within)[1] if within else math.nan


def smallest(points: Sequence[Point], rule: Rule, drop: float, measure: Measure = "matrices") -> Point | None:
    """The point from which upwards none loses more than ``drop``; None where that which retains most does.

    Its ranks are what was measured: of its fraction, a mean over all matrices, each group might keep other ones.
    """
    upwards = sorted((_x(point, measure), point.drop, number) for number, point in enumerate(points))
    of_rule = [points[number] for _, _, number in reversed(upwards) if points[number].rule == rule]
    within = list(takewhile(lambda point: point.drop <= drop + 1e-12, of_rule))
    return within[-1] if within else None


def needed(points: Sequence[Point], rule: Rule, drop: float, measure: Measure = "matrices") -> float:
    """The fraction that must be retained for at most this ``drop``: from it upwards no point loses more."""
    point = smallest(points, rule, drop, measure)
    return 1.0 if point is None else _x(point, measure)


def _x(point: Point, measure: Measure) -> float:
    return point.retained if measure == "matrices" else point.retained_values
