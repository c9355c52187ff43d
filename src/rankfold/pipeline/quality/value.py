"""What was asked in quality, and what a search found: plain values that go through JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, isfinite
from typing import Any

from rankfold.compress.ranks.budget import Budget, Bytes, Flops, Latency, Params
from rankfold.compress.ranks.numbers import is_number, plain
from rankfold.compress.ranks.options import BudgetError
from rankfold.linalg.brief import brief
from rankfold.objectives import Figure
from rankfold.pipeline.quality.search import ROUNDING, Tried
from rankfold.run.disk.container import checked

BY: Mapping[str, Any] = {"flops": Flops, "params": Params, "bytes": Bytes, "latency": Latency}


def _expected(given: object) -> str:
    return (
        "max_drop (--max-drop), how far a figure may get worse, must be 0 or more: a number for the judging one, in "
        "points of a percentage or in the figure's own unit, or NAME=NUMBER for another, such as kl=0.02; got "
        f"{given!r}"
    )


@dataclass(frozen=True)
class MaxDrop:
    """At most so much worse in a figure: in points of a percentage where its unit is "fraction", else in the figure's
    own unit. ``by``: what is to be smallest, "flops", "params", "bytes" or "latency" (of one sample). ``figure``: by
    name; "" for the one that judges."""

    points: float
    by: str = "flops"
    figure: str = ""

    @classmethod
    def of(cls, asked: float | str, by: str) -> MaxDrop:
        """Of a number, or of a text: "0.5", or "kl=0.02" for a figure by its name."""
        if not isinstance(asked, str):
            return cls(asked, by)
        figure, _, number = asked.rpartition("=")
        try:
            points = float(number)
        except ValueError:
            raise ValueError(_expected(asked)) from None
        return cls(points, by, figure.strip())

    def __post_init__(self) -> None:
        points = plain(self.points)
        if not is_number(points) or not isfinite(points) or points < 0:
            raise ValueError(_expected(points))
        object.__setattr__(self, "points", float(points))
        if self.by not in BY:
            raise ValueError(
                f"smallest (--smallest), the resource that is to be smallest, must be one of {', '.join(BY)}, got "
                f"{self.by!r}"
            )

    def __str__(self) -> str:
        return f"{self.figure}={self.points:g}" if self.figure else f"{self.points:g}"

    def budget(self, fraction: float) -> Budget:
        """The budget in which this fraction of what is to be smallest is kept."""
        return BY[self.by](fraction)

    def allowed(self, start: Figure) -> float:
        """The drop in the figure's own unit; ``BudgetError`` where the original has no such figure to lose."""
        if not isfinite(start.value):
            raise BudgetError(
                f"the {start.name} of the original on the validation split is not a number ({start.value}), so "
                "that nothing can be compared with it"
            )
        if start.name == "r2" and self.points > start.value >= 0:
            raise BudgetError(
                f"max drop is {self.points:g} in r2's own unit, but r2 is {start.text}, and below 0 a network predicts "
                "worse than the mean of the targets does: allow less, such as 0.01"
            )
        if start.unit != "fraction":
            return self.points
        room = start.value if start.higher else 1 - start.value
        if self.points / 100 > room + ROUNDING:
            raise BudgetError(
                f"max drop is {start.amount(self.points / 100, 6)}, but {start.name} is {start.text} and can get worse "
                f"by at most {100 * room:.2f} points"
            )
        return self.points / 100

    def told(self, start: Figure) -> str:
        """What is allowed, as a sentence."""
        sign = -1 if start.higher else 1
        bound = Figure("", start.value + sign * self.allowed(start), unit=start.unit)
        way, end = ("fall", "no lower") if start.higher else ("rise", "no higher")
        most = start.amount(self.allowed(start), 6) + ("" if start.unit else f" in its own unit of {start.name}")
        return f"{start.name} may {way} by {most}, from {start.text} to {bound.text} and {end}"


Interval = tuple[float, float]


def worsened(figure: Figure, drop: float, interval: Interval | None) -> tuple[str, float, Interval | None]:
    """The words for a drop, how far that is, and its interval in the same direction."""
    if drop > 0:
        return "worse by", drop, interval
    way = "differs" if not drop else "rises" if figure.higher else "falls"
    return f"no worse: it {way} by", abs(drop), interval and (0.0 - interval[1], 0.0 - interval[0])


def _rounded(number: float) -> int:
    """Up to two digits: a number of samples is known no better."""
    step = 10 ** max(0, len(str(int(number))) - 2)
    return step * ceil(number / step)


@dataclass(frozen=True)
class Quality:
    """How good the found network is, on samples that the search did not use, and what was tried to find it.

    ``before``, ``after``, ``drop`` and its 95 % ``interval`` (None: too few samples or batches to tell) are of the
    judging figure on the judging half, in its own unit (a drop of 0.005 of a fraction is half a point), as are
    ``asked`` and the figures of ``tried``, which are of the searching half. ``samples``: how many each half has.
    ``judged``: how many networks the judging half has seen. ``fraction``: the budget of the found one, ``key`` its
    plan's decisions.
    """

    asked: float
    by: str
    figure: Figure  # of the original, on the searching half
    before: float
    after: float
    drop: float
    interval: tuple[float, float] | None
    samples: tuple[int, int]
    tried: tuple[Tried, ...]
    judged: int
    fraction: float
    key: str
    notes: tuple[str, ...] = ()

    __repr__ = brief

    @property
    def scale(self) -> float:
        """From the figure's unit to that of ``max_drop``."""
        return 100.0 if self.figure.unit == "fraction" else 1.0

    @property
    def unit(self) -> str:
        """The unit of ``max_drop``."""
        return "points" if self.figure.unit == "fraction" else self.figure.unit

    @property
    def text(self) -> str:
        """The drop and its interval, for a person."""
        _, moved, interval = worsened(self.figure, self.drop, self.interval)
        if interval is None:
            return f"{self.figure.amount(moved)} (no interval: too few samples or batches)"
        low, high = (self.scale * value for value in interval)
        return f"{self.figure.amount(moved)}, 95 % interval {low:.3g} to {high:.3g}"

    @property
    def judgement(self) -> str:
        """The drop in a sentence's first words: accuracy is worse by 1 point, 95 % interval -0.695 to 2.69."""
        return f"{self.figure.name} is {worsened(self.figure, self.drop, self.interval)[0]} {self.text}"

    @property
    def sentence(self) -> str:
        """What was found, and on what it was judged."""
        most = self.figure.amount(self.asked, 6)
        return (
            f"{self.judgement}, on {self.samples[1]} validation samples that the search did not use; {most} "
            f"{'was' if most == '1 point' else 'were'} allowed; {len(self.tried)} networks were tried on "
            f"{self.samples[0]} others, {self.judged} judged"
        )

    @property
    def caution(self) -> str:
        """That the drop may be larger than what was allowed, and what would tell; empty where that is all but sure."""
        if self.interval is None:
            return (
                f"nothing says how much the drop may be due to chance: the {self.samples[1]:,} samples judged are too "
                "few, or come in batches that cannot be cut: give more validation samples, in more batches"
            )
        if self.interval[1] <= self.asked:
            return ""
        high, most, reach = self.interval[1], self.figure.amount(self.asked, 6), self.interval[1] - self.drop
        said = f"the drop may be as large as {self.figure.amount(high)} (95 % interval), beyond the {most} allowed: "
        if not self.asked:
            return f"{said}no number of samples makes sure that nothing is lost; --max-drop allows a little"
        if reach < self.asked:
            less = self.figure.amount(self.asked - reach)
            return f"{said}asking for {less} (--max-drop) makes {most} all but sure"
        needed = _rounded(self.samples[1] * (reach / self.asked) ** 2)
        return (
            f"{said}{self.samples[1]:,} samples judged, and so few cannot tell {most} from none; about {needed:,} "
            f"could: give about {2 * needed:,} validation samples, of which half search, or allow more (--max-drop)"
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the result should know: the notes, and the caution where there is one."""
        return (*self.notes, *filter(None, [self.caution]))

    def to_dict(self) -> dict[str, Any]:
        """What ``rankfold compress --json`` has under "quality": drops in the unit of ``max_drop``."""
        return {
            "asked": self.scale * self.asked,
            "unit": self.unit,
            "smallest": self.by,
            "figure": self.figure.name,
            "before": self.before,
            "after": self.after,
            "drop": self.scale * self.drop,
            "interval": None if self.interval is None else [self.scale * value for value in self.interval],
            **({"caution": self.caution} if self.caution else {}),
            "samples": {"searched": self.samples[0], "judged": self.samples[1]},
            "networks": {"tried": len(self.tried), "judged": self.judged},
            "tried": [
                point.to_dict() | {"drop": self.scale * point.drop, "chosen": point.fraction == self.fraction}
                for point in self.tried
            ],
        }

    def kept(self) -> dict[str, Any]:
        """Plain values; ``read`` is the inverse."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Quality:
        """The value that ``kept`` gave; ``ValueError`` in one line for something else."""
        return checked(cls, dict(values))
