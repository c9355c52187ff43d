"""What a look has found: of each network that was tried, and of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low
from typing import Any

from rankfold.costs import Cost
from rankfold.costs.times import apart
from rankfold.linalg.brief import brief
from rankfold.objectives import Figure

FASTER = 0.95  # of the original's time, from which on a network is called faster: less is noise


@dataclass(frozen=True)
class Saved:
    """What one layer gives: its new form and rank, and the shares of the whole network's FLOPs and parameters that
    this saves."""

    site: str
    form: str
    rank: int
    flops: float
    params: float

    def share(self, by: str) -> float:
        """Of what is to be small; of bytes that of the parameters."""
        return self.flops if by == "flops" else self.params


@dataclass(frozen=True)
class Tried:
    """One compressed network, not trained: its shares of the FLOPs, parameters and bytes, how it answers validation
    samples, how much worse than the original that is with a 95 % ``interval`` (None where samples are too few to tell),
    and milliseconds by batch size, of it and of the original ``beside`` it, measured in turns, where there was time.
    ``kl``: of a language model, how far its next tokens are from the original's, in nats a token."""

    flops: float
    params: float
    figure: Figure
    drop: float
    interval: tuple[float, float] | None
    latencies: Mapping[int, float]
    beside: Mapping[int, float]
    layers: tuple[Saved, ...]
    kl: float | None = None
    bytes: float = 1.0

    def speed(self, batch: int) -> float:
        """How many times as fast as the original."""
        return self.beside[batch] / self.latencies[batch]

    @property
    def faster(self) -> tuple[int, ...]:
        """The batch sizes at which it takes clearly less time than the original: 5 %, and quartiles that are apart."""
        return tuple(b for b, ms in self.latencies.items() if _clearly(ms, self.beside[b]))

    @property
    def slower(self) -> tuple[int, ...]:
        """The batch sizes at which it takes clearly more time."""
        return tuple(b for b, ms in self.latencies.items() if _clearly(self.beside[b], ms))


def _clearly(less: float, more: float) -> bool:
    return less < FASTER * more and apart(less, more)


@dataclass(frozen=True)
class Advice:
    """What was looked at, and what follows from it.

    Attributes:
        cost: of the original.
        sites: how many layers can be factored, tables that are looked up aside.
        covered: the shares of its parameters and FLOPs that lie in these.
        obstacles: the largest other parts, as (share of the parameters, name, reason).
        start: the judging figure of the original.
        tried: what was measured of each network that was made.
        allowed: how far the judging figure may fall, in its own unit.
        samples: for calibration and for judging.
        labelled: whether the data have targets.
        seconds: that the look took.
        unlearned: the original is no better than chance, so that nothing follows.
        untried: fractions of what is to be small that there was no time to try.
        untimed: batch sizes at which there was no time to time the network that counts.
        tables: the share of its parameters that lies in tables that can be factored.
        by: what is to be small: "flops", "params" or "bytes".

    Example:
        >>> figure, cost = rf.Figure("accuracy", 0.9, unit="fraction"), rf.Cost(100, 200, 400)
        >>> rf.Advice(cost, 1, (0.8, 0.9), (), figure, (), 0.01, (256, 256), True).best is None
        True
    """

    cost: Cost
    sites: int
    covered: tuple[float, float]
    obstacles: tuple[tuple[float, str, str], ...]
    start: Figure
    tried: tuple[Tried, ...]
    allowed: float
    samples: tuple[int, int]
    labelled: bool
    seconds: float = 0.0
    unlearned: bool = False
    untried: tuple[float, ...] = ()
    untimed: tuple[int, ...] = ()
    tables: float = 0.0
    by: str = "flops"

    __repr__ = brief

    @property
    def best(self) -> Tried | None:
        """The smallest network that was tried whose figure falls by no more than what is allowed."""
        good = [] if self.unlearned else [point for point in self.tried if point.drop <= self.allowed]
        return min(good, key=self.share, default=None)

    def share(self, point: Tried) -> float:
        """What a network keeps of what is to be small."""
        return float(getattr(point, self.by))

    @property
    def latencies(self) -> Mapping[int, float]:
        """Milliseconds of the original by batch size: the (lower) median of those beside the networks."""
        batches = sorted({batch for point in self.tried for batch in point.beside})
        return {b: median_low(point.beside[b] for point in self.tried if b in point.beside) for b in batches}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the sentences that follow from them."""
        from rankfold.pipeline.advice.words import sentences

        best = self.best
        return {
            "params": self.cost.params, "flops": self.cost.flops, "sites": self.sites,
            "covered_params": self.covered[0], "covered_flops": self.covered[1], "tables": self.tables,
            "obstacles": [{"params": share, "name": name, "reason": why} for share, name, why in self.obstacles],
            "figure": self.start.name, "value": self.start.value, "allowed": self.allowed,
            "latency_ms": dict(self.latencies), "calibration_samples": self.samples[0],
            "validation_samples": self.samples[1],
            "tried": [
                {
                    "flops": p.flops, "params": p.params, "bytes": p.bytes, "value": p.figure.value, "drop": p.drop,
                    "interval": p.interval, "latency_ms": dict(p.latencies), "original_ms": dict(p.beside),
                    "layers": [vars(layer) for layer in p.layers],
                } | ({} if p.kl is None else {"kl": p.kl})
                for p in self.tried
            ],
            "smallest": self.by, "best_flops": None if best is None else best.flops, "advice": list(sentences(self)),
            "seconds": self.seconds, "untried": list(self.untried), "untimed": list(self.untimed),
        }  # fmt: skip
