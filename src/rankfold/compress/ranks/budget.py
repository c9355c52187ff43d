"""Budgets: what the compressed model may cost, as the kept fraction of the whole model, or what it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal


def _fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} is the kept fraction of the whole model, in (0, 1]; got {value:g}")


@dataclass(frozen=True)
class Params:
    """At most this fraction of the model's parameters."""

    keep: float
    kind: Literal["params"] = "params"

    def __post_init__(self) -> None:
        _fraction("params", self.keep)


@dataclass(frozen=True)
class Flops:
    """At most this fraction of the model's FLOPs."""

    keep: float
    kind: Literal["flops"] = "flops"

    def __post_init__(self) -> None:
        _fraction("flops", self.keep)


@dataclass(frozen=True)
class Bytes:
    """At most this fraction of the bytes of parameters and buffers."""

    keep: float
    kind: Literal["bytes"] = "bytes"

    def __post_init__(self) -> None:
        _fraction("bytes", self.keep)


@dataclass(frozen=True)
class Latency:
    """At most this fraction of the dense model's time for one forward of ``batch`` samples, measured here."""

    keep: float
    batch: int = 1
    kind: Literal["latency"] = "latency"

    def __post_init__(self) -> None:
        _fraction("latency", self.keep)
        if self.batch < 1:
            raise ValueError(f"latency is measured at a batch of at least 1, got {self.batch}")


@dataclass(frozen=True)
class KeepEnergy:
    """Every site keeps at least this fraction of the energy (sum of squared singular values) of its curve."""

    keep: float
    kind: Literal["energy"] = "energy"

    def __post_init__(self) -> None:
        _fraction("energy", self.keep)


@dataclass(frozen=True)
class Ranks:
    """Fixed ranks by site name; sites that are not named are kept."""

    ranks: Mapping[str, int]
    kind: Literal["ranks"] = "ranks"

    def __post_init__(self) -> None:
        for site, rank in self.ranks.items():
            if rank < 1:
                raise ValueError(f"rank of {site} must be at least 1, got {rank}")


Budget = Params | Flops | Bytes | Latency | KeepEnergy | Ranks
Resource = Params | Flops | Bytes | Latency


def parse_budget(text: str) -> Budget:
    """``flops=0.5``, ``params=0.39``, ``bytes=0.5``, ``energy=0.99``, ``latency=0.8`` or ``latency=0.8@64``."""
    name, found, value = text.partition("=")
    fraction, at, batch = value.partition("@")
    kinds: dict[str, type[Params | Flops | Bytes | KeepEnergy]]
    kinds = {"params": Params, "flops": Flops, "bytes": Bytes, "energy": KeepEnergy}
    try:
        if name == "latency":
            return Latency(float(fraction), int(batch)) if at else Latency(float(fraction))
        if found and name in kinds and not at:
            return kinds[name](float(value))
    except ValueError as error:
        percent = "; write 0.5 for 50 %" if "%" in value else ""
        raise ValueError(f"budget {text!r}: {error}{percent}") from None
    near = get_close_matches(name, [*kinds, "latency"], 1)
    raise ValueError(
        f"budget {text!r} is not understood: write NAME=FRACTION with NAME one of "
        "params, flops, bytes, latency (latency=0.8@64 for batch 64), energy"
        f"{f'; did you mean {near[0]}?' if near else ''}"
    )


def describe(budget: Budget) -> str:
    if isinstance(budget, Ranks):
        return f"ranks given for {len(budget.ranks)} sites"
    if isinstance(budget, Latency):
        return f"latency ≤ {budget.keep:g} of dense at batch {budget.batch}"
    if isinstance(budget, KeepEnergy):
        return f"energy ≥ {budget.keep:g} in each site"
    return f"{budget.kind} ≤ {budget.keep:g} of dense"
