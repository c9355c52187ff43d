"""Budgets: what the compressed model may cost, as the kept fraction of the whole model, or what it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rankfold.compress.ranks.numbers import is_number, plain, whole

if TYPE_CHECKING:
    from rankfold.costs import Cost
    from rankfold.costs.decoding import Phase


def _fraction(name: str, value: float) -> float:
    found = plain(value)
    if not is_number(found) or not 0 < found <= 1:
        # a whole number may be larger than any float
        given = f"{min(found, 1e300):g}" if is_number(found) else f"{found!r}, which is no number"
        raise ValueError(
            f"{name}, the share of the whole model that is kept, must be above 0 and at most 1, got {given}"
        )
    return float(found)


@dataclass(frozen=True)
class Resource:
    """At most the fraction ``keep`` of something that the whole model costs; the base of budgets of one's own.

    A subclass has a field ``kind`` and a method ``of(cost)``, which must be a sum over the layers, as parameters are.

    Args:
        keep: the fraction, above 0 and at most 1.
        kind: its name in text and in files.

    Raises:
        ValueError: a fraction out of range.

    Example:
        >>> isinstance(rf.Flops(0.5), rf.Resource), rf.Flops(0.5).of(rf.Cost(1, 2, 4))
        (True, 2.0)
    """

    keep: float
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", _fraction(self.kind, self.keep))

    def of(self, cost: Cost) -> float:
        """How much of it a layer or a model of this cost takes."""
        return float(getattr(cost, self.kind))

    @property
    def text(self) -> str:
        """As it is typed."""
        return f"{self.kind}={self.keep:g}"

    def describe(self) -> str:
        return f"{self.kind} ≤ {self.keep:g} of dense"


@dataclass(frozen=True)
class Params(Resource):
    """At most this fraction of the model's parameters; ``"params=0.5"`` in text.

    Args:
        keep: the fraction, above 0 and at most 1, of the whole model (of the layers that can be factored beside
            ``OfSites``).
        kind: "params".

    Raises:
        ValueError: a fraction out of range.

    Example:
        >>> rf.Params(0.5).describe()
        'params ≤ 0.5 of dense'
    """

    kind: Literal["params"] = "params"


@dataclass(frozen=True)
class Flops(Resource):
    """At most this fraction of the model's FLOPs; ``"flops=0.5"`` in text.

    Args:
        keep: the fraction, above 0 and at most 1, of the whole model (of the layers that can be factored beside
            ``OfSites``).
        kind: "flops".

    Raises:
        ValueError: a fraction out of range.

    Example:
        >>> rf.Flops(0.5).describe()
        'flops ≤ 0.5 of dense'
    """

    kind: Literal["flops"] = "flops"


@dataclass(frozen=True)
class Bytes(Resource):
    """At most this fraction of the model's bytes of parameters and buffers; ``"bytes=0.5"`` in text.

    Args:
        keep: the fraction, above 0 and at most 1, of the whole model (of the layers that can be factored beside
            ``OfSites``).
        kind: "bytes".

    Raises:
        ValueError: a fraction out of range.

    Example:
        >>> rf.Bytes(0.5).describe()
        'bytes ≤ 0.5 of dense'
    """

    kind: Literal["bytes"] = "bytes"


@dataclass(frozen=True)
class Latency(Resource):
    """At most this fraction of the dense model's time for one forward, measured here; ``"latency=0.8@64"`` in text.

    Args:
        keep: the fraction, above 0 and at most 1.
        batch: samples of one forward.
        phase: "forward"; of a language model "prefill", reading the prompt, or "decode", one further token from the
            cache.
        kind: "latency".

    Raises:
        ValueError: a fraction or a batch out of range, another phase.

    Cost: timing every site in about ten ranks where no table of this machine knows it (``rankfold doctor --latency``),
    and each plan beside the original.

    Example:
        >>> rf.Latency(0.8, batch=64).batch
        64
    """

    batch: int = 1
    phase: Literal["forward", "prefill", "decode"] = "forward"
    kind: Literal["latency"] = "latency"

    def __init__(
        self, keep: float, batch: int = 1, phase: Phase = "forward", kind: Literal["latency"] = "latency"
    ) -> None:
        for name, value in (("keep", keep), ("batch", batch), ("phase", phase), ("kind", kind)):
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "batch", whole("the batch of a latency", self.batch))
        if self.phase not in ("forward", "prefill", "decode"):
            raise ValueError(f"the phase of a latency must be forward, prefill or decode, got {self.phase!r}")

    @property
    def text(self) -> str:
        """As it is typed."""
        where = "" if self.phase == "forward" else f"{self.phase}:" if self.batch > 1 else self.phase
        batch = str(self.batch) if self.batch > 1 else ""
        return f"latency={self.keep:g}{'@' if where or batch else ''}{where}{batch}"

    @property
    def place(self) -> str:
        """Of what it is the time, in words."""
        return f"at batch {self.batch}" + ("" if self.phase == "forward" else f" of {self.phase}")

    def describe(self) -> str:
        return f"latency ≤ {self.keep:g} of dense {self.place}"


@dataclass(frozen=True)
class KeepEnergy:
    """Every site keeps at least this fraction of the energy (sum of squared singular values).

    Args:
        keep: the fraction, above 0 and at most 1.
        kind: "energy".

    Raises:
        ValueError: a fraction out of range.

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 16, bias=False))
        >>> plan = rf.plan(net, rf.KeepEnergy(0.9), "truncate", example=torch.randn(1, 16))
        >>> plan.entries[0].predicted_error <= 0.1 ** 0.5
        True
    """

    keep: float
    kind: Literal["energy"] = "energy"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", _fraction("energy", self.keep))

    def describe(self) -> str:
        return f"energy ≥ {self.keep:g} in each site"


@dataclass(frozen=True)
class Ranks:
    """Fixed ranks by site name; sites that are not named are kept.

    Args:
        ranks: rank of each site.
        kind: "ranks".

    Raises:
        ValueError: a rank that is no whole number of at least 1.

    Example:
        >>> net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        >>> plan = rf.plan(net, rf.Ranks({"1": 3}), "truncate", example=torch.randn(1, 16))
        >>> [(entry.form.value, entry.rank) for entry in plan.entries]
        [('keep', 16), ('factored', 3)]
    """

    ranks: Mapping[str, int]
    kind: Literal["ranks"] = "ranks"

    def __post_init__(self) -> None:
        if not isinstance(self.ranks, Mapping):
            raise TypeError(f"ranks must be a mapping from names of layers to ranks, got a {type(self.ranks).__name__}")
        ranks = {site: whole(f"the rank of {site}", rank) for site, rank in self.ranks.items()}
        object.__setattr__(self, "ranks", ranks)

    def describe(self) -> str:
        return f"ranks given for {len(self.ranks)} sites"


@dataclass(frozen=True)
class Multiples:
    """Ranks are multiples of ``multiple`` in every layer that is factored; says nothing of how large they are.

    For what comes afterwards and takes no other sizes: kernels, and quantisers that treat blocks of 32 or 64 weights.

    Args:
        multiple: 1 or more.
        kind: "multiple".

    Raises:
        ValueError: a multiple below 1.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64))
        >>> plan = rf.plan(net, [rf.Params(0.7), rf.Multiples(8)], "truncate", example=torch.randn(1, 64))
        >>> plan.entries[0].rank % 8
        0
    """

    multiple: int
    kind: Literal["multiple"] = "multiple"

    def __post_init__(self) -> None:
        object.__setattr__(self, "multiple", whole("multiple", self.multiple))

    def describe(self) -> str:
        return f"ranks in multiples of {self.multiple}"


@dataclass(frozen=True)
class OfSites:
    """Fractions beside it are of the layers that can be factored, as many papers count, not of the whole model.

    It stands beside the budgets that it is said of; ``"of=sites"`` in text.

    Args:
        kind: "of".

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
        >>> plan = rf.plan(net, ["params=0.7", "of=sites"], "truncate", example=torch.randn(1, 64))
        >>> plan.kept_of_factorable() <= 0.7
        True
    """

    kind: Literal["of"] = "of"

    def describe(self) -> str:
        return "fractions are of the layers that can be factored"


Budget = Resource | KeepEnergy | Ranks | Multiples | OfSites
