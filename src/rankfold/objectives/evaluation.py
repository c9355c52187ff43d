"""What is measured of a network: figures with names, the evaluation that they make, and the sums they follow from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankfold.objectives.answer import filled_up

if TYPE_CHECKING:
    from rankfold.objectives.base import Objective

SPREAD = "spread "  # what is called so holds ``moments`` of each entry of the last axis, which may be a length
_ROWS = 4096  # samples of which whole rows are kept: neighbours among more cost their number squared


class ObjectiveError(ValueError):
    """Outputs or targets are not what the objective expects; one line that names what was expected and given.

    Example:
        >>> try:
        ...     rf.evaluate(nn.Identity(), (torch.eye(2), torch.tensor([0, 7])), objective="classification")
        ... except ValueError:
        ...     print("there are two classes")
        there are two classes
    """


@dataclass(frozen=True)
class Figure:
    """One number about a network.

    Args:
        name: of the figure.
        value: of the figure.
        higher: whether more is better.
        unit: "fraction" (printed in per cent), "nats", or "" for a plain number.

    Example:
        >>> print(rf.Figure("accuracy", 0.915, unit="fraction"), rf.Figure("perplexity", 4.613, higher=False), sep=", ")
        accuracy 91.50 %, perplexity 4.61
    """

    name: str
    value: float
    higher: bool = True
    unit: str = ""

    def better(self, other: Figure) -> float:
        """By how much this one is better than ``other``, in its unit; −∞ for what is not a number."""
        if not isfinite(self.value):
            return -float("inf")
        if not isfinite(other.value):
            return float("inf")
        return self.value - other.value if self.higher else other.value - self.value

    @property
    def text(self) -> str:
        """The value for a person: per cent of a fraction, otherwise three significant figures and the unit."""
        return _text(self.value, self.unit)

    def amount(self, value: float, digits: int = 3) -> str:
        """A difference of such figures, with as many digits: "1 point", "0.7 points" of a fraction, "0.02 nats"."""
        if self.unit != "fraction":
            return f"{value:.{digits}g} {self.unit}".rstrip()
        number = f"{100 * value:.{digits}g}"
        return f"{number} {'point' if number in ('1', '-1') else 'points'}"

    def less(self, other: Figure) -> str:
        """How far this one is from ``other``, with its sign: "+0.31 points" of a fraction, "−0.021" of a number."""
        moved = self.value - other.value
        sign = "−" if moved < 0 else "+"
        if self.unit == "fraction":
            return f"{sign}{abs(100 * moved):.2f} points"
        return f"{sign}{_text(abs(moved), self.unit)}"

    def __str__(self) -> str:
        return f"{self.name} {self.text}"


def _text(value: float, unit: str) -> str:
    if not isfinite(value):
        return str(value)
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if value == 0:
        said = "0"
    elif 0.99 < abs(value) < 1:  # a cosine or an r2: what is lacking counts
        said = f"{value:.{min(1 - math.floor(math.log10(1 - abs(value))), 9)}f}"
    elif 1e-4 <= abs(value) < 1e5:
        said = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    else:
        said = f"{value:.2e}"
    return f"{said} {unit}".rstrip()


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on some data: its figures, of which the first one judges.

    Attributes:
        figures: the judging one first.
        loss: mean over ``count`` counted positions, what training would minimise.
        count: number of these.
        chance: the judging figure of always giving the most frequent answer, where that means anything.
        objective: by which these were measured.

    Example:
        >>> found = rf.Evaluation((rf.Figure("accuracy", 0.9, unit="fraction"),), loss=0.3, count=100)
        >>> found.accuracy, found.judged.text
        (0.9, '90.00 %')
        >>> found
        Evaluation(accuracy 90.00 %, loss 0.300, count 100)
    """

    figures: tuple[Figure, ...]
    loss: float
    count: int
    chance: float | None = None
    objective: str = ""

    def __repr__(self) -> str:
        told = [*map(str, self.figures), f"loss {_text(self.loss, '')}", f"count {self.count:,}"]
        return f"Evaluation({', '.join(told)})"

    @property
    def judged(self) -> Figure:
        """The figure that decides which of two networks is better."""
        return self.figures[0]

    def __getitem__(self, name: str) -> float:
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(f"{name!r} was not measured: there are {', '.join(figure.name for figure in self.figures)}")

    @property
    def accuracy(self) -> float:
        """Share of right answers, for objectives that have one; ``AttributeError`` otherwise."""
        try:
            return self["accuracy"]
        except KeyError as error:
            raise AttributeError(f"accuracy: {error.args[0]}") from None

    @property
    def values(self) -> dict[str, float]:
        """Every figure by its name, the judging one first."""
        return {figure.name: figure.value for figure in self.figures}

    @property
    def rank(self) -> tuple[float, float]:
        """Orders evaluations of one objective, the better one last: by the judging figure, then by the loss.

        Outputs that are not finite are worse than anything.
        """
        if not isfinite(self.loss) or not isfinite(self.judged.value):
            return -float("inf"), -float("inf")
        return (self.judged.value if self.judged.higher else -self.judged.value), -self.loss

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``from_dict`` is the inverse."""
        values = asdict(self)
        return values | {"figures": list(values["figures"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """The evaluation with these values; those of a classifier may be written as ``accuracy`` alone."""
        values = dict(values)
        if "figures" not in values:
            values["figures"] = [asdict(Figure("accuracy", values.pop("accuracy"), True, "fraction"))]
        return cls(**{**values, "figures": tuple(Figure(**figure) for figure in values["figures"])})


def moments(values: Tensor, known: Tensor | None = None) -> Tensor:
    """How many rows of ``values`` (R, C) are ``known`` (R, C; by default all), their mean, and the sum of the squared
    distances from it, for each column: (3, C) float64. Sums of squares would lose what values far from 0 vary by."""
    wide = values.double()
    there = torch.ones_like(wide, dtype=torch.bool) if known is None else known
    if not len(wide):
        return wide.new_zeros(3, wide.shape[1])
    count = there.sum(0).double()
    start = torch.where(there, wide, -torch.inf).amax(0).masked_fill(count == 0, 0)  # so that of constants all is exact
    mean = start + torch.where(there, wide - start, 0.0).sum(0) / count.clamp_min(1)
    return torch.stack([count, mean, torch.where(there, wide - mean, 0.0).square().sum(0)])


def joined(one: Tensor, other: Tensor) -> Tensor:
    """``moments`` of two parts together (Chan, Golub, LeVeque 1983)."""
    (n, mean, square), (m, other_mean, other_square) = one, other
    count, apart = (n + m).clamp_min(1), other_mean - mean
    return torch.stack([n + m, mean + apart * m / count, square + other_square + apart.square() * n * m / count])


class Figures:
    """Running sums over batches, from which an ``Evaluation`` follows; sums of two parts of the data merge."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, list[Tensor]] = {}

    def add(
        self, output: Any, batch: Any, taught: Any = None, *, known: tuple[Tensor, int] | None = None, rows: bool = True
    ) -> None:
        """Take in one batch; ``taught``: what the original network answers to it.

        ``known``: the losses of this batch, where they are at hand. ``rows``: also what needs whole rows (neighbours).
        """
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            if self.objective.labelled and not self.objective.counts_losses:
                loss, count = self.objective.losses(output, batch) if known is None else known
                found = {"loss": loss.detach().double() * count, "count": torch.tensor(count)}
            found |= self.objective.measure(output, batch, taught)
        for name, value in found.items():
            if not name.endswith("[]"):
                self._sum(name, value.detach().double().cpu())
            elif rows and sum(map(len, self.rows.get(name, ()))) < _ROWS:
                self.rows.setdefault(name, []).append(value.detach().cpu())

    def merge(self, other: Figures) -> None:
        """Take in what another one has seen."""
        self.add_sums(other.sums)
        for name, parts in other.rows.items():
            self.rows.setdefault(name, []).extend(parts)

    def add_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Take in the sums alone of what another one has seen."""
        for name, value in sums.items():
            self._sum(name, value)

    def _sum(self, name: str, value: Tensor) -> None:
        before = self.sums.get(name)
        if name.startswith(SPREAD):
            self.sums[name] = value if before is None else joined(*filled_up(before, value))
            return
        if before is not None and before.shape != value.shape:
            raise ObjectiveError(
                f"{self.objective.name}: what is counted has the shape {tuple(before.shape)} in one batch and "
                f"{tuple(value.shape)} in another: pad outputs and targets to one size"
            )
        self.sums[name] = value if before is None else before + value

    def result(self) -> Evaluation:
        """Raises ``ObjectiveError`` where nothing was counted."""
        count = int(self.sums["count"]) if "count" in self.sums else 0
        if not count:
            raise ObjectiveError(
                f"{self.objective.name}: there is nothing to count: the data are empty, or every target is "
                "marked as left out"
            )
        sums = {**self.sums, **{name: torch.cat(parts)[:_ROWS] for name, parts in self.rows.items()}}
        figures, chance = self.objective.conclude(sums)
        loss = self.objective.mean_loss(sums)
        if math.isnan(figures[0].value) and isfinite(loss):  # where outputs are not numbers, the loss is none either
            raise ObjectiveError(
                f"{self.objective.name}: its figure is NaN, while the loss is {loss:.4g}: a number was expected "
                f"from {count} counted positions"
            )
        return Evaluation(figures, loss, count, chance, self.objective.name)
