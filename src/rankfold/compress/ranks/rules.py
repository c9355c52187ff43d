"""Rank rules as values: how ranks are chosen, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Optimal:
    """Least predicted loss within the budget, keeping dense always among the choices. The default.

    ``probes``: truncations of each site whose effect on the loss is measured on ``samples`` calibration samples;
    0 compares sites by relative error alone, and so does a plan without data.
    """

    probes: int = 4
    samples: int = 256
    name: str = "optimal"


@dataclass(frozen=True)
class Local:
    """The same fraction of the full rank, or the same rank, in every site (LSVT); the largest that fits by default."""

    fraction: float | None = None
    rank: int | None = None
    name: str = "local"

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"the fraction of the full rank must be in (0, 1], got {self.fraction:g}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"the rank must be at least 1, got {self.rank}")


@dataclass(frozen=True)
class Global:
    """All spectra, each divided by its largest value, ranked together (GSVT)."""

    name: str = "global"


@dataclass(frozen=True)
class Iterative:
    """Performance-preserving truncation (ISVT; LoRITa, appendix A).

    Each step removes ``step`` parameters from the site where that raises the loss least on ``samples`` random
    calibration samples, drawn with ``seed``.
    """

    step: int = 500
    samples: int = 120
    seed: int = 0
    name: str = "iterative"

    def __post_init__(self) -> None:
        if self.step < 1 or self.samples < 1:
            raise ValueError(f"step and samples must be at least 1, got {self.step} and {self.samples}")


RankRule = Optimal | Local | Global | Iterative


def rule_named(name: str | RankRule) -> RankRule:
    if not isinstance(name, str):
        return name
    for rule in (Optimal(), Local(), Global(), Iterative()):
        if rule.name == name:
            return rule
    raise ValueError(f"no rank rule named {name!r}; there are optimal, local, global and iterative")
