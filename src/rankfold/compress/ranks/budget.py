"""Budgets: what the compressed model may cost, as the kept fraction of the whole model, or what it must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import inf, lcm
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rankfold.costs import Cost
    from rankfold.costs.decoding import Phase


def _fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(
            f"{name}, the share of the whole model that is kept, must be above 0 and at most 1, got {value:g}"
        )


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
        _fraction(self.kind, self.keep)

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
        _fraction("latency", self.keep)
        if self.batch < 1:
            raise ValueError(f"latency is measured for a batch of at least 1, got {self.batch}")
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
        _fraction("energy", self.keep)

    def describe(self) -> str:
        return f"energy ≥ {self.keep:g} in each site"


@dataclass(frozen=True)
class Ranks:
    """Fixed ranks by site name; sites that are not named are kept.

    Args:
        ranks: rank of each site.
        kind: "ranks".

    Raises:
        ValueError: a rank below 1.

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
        for site, rank in self.ranks.items():
            if rank < 1:
                raise ValueError(f"the rank of {site} must be at least 1, got {rank}")

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
        if isinstance(self.multiple, bool) or not isinstance(self.multiple, int) or self.multiple < 1:
            raise ValueError(f"multiple must be a whole number of at least 1, got {self.multiple!r}")

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
_KINDS: dict[str, Any] = {
    "params": Params, "flops": Flops, "bytes": Bytes, "latency": Latency, "energy": KeepEnergy, "ranks": Ranks,
    "multiple": Multiples, "of": OfSites,
}  # fmt: skip


def register_budget(kind: type[Resource]) -> type[Resource]:
    """Make a budget of one's own known by its ``kind``, to plans that are read; serves as a decorator.

    Args:
        kind: a subclass of ``Resource`` with a field ``kind``.

    Returns:
        ``kind``.

    Raises:
        ValueError: a kind that is taken, or none.

    Example:
        >>> from dataclasses import dataclass
        >>> @rf.register_budget
        ... @dataclass(frozen=True)
        ... class Reads(rf.Resource):
        ...     kind: str = "reads"
        ...     def of(self, cost):
        ...         return cost.bytes
        >>> Reads(0.5).describe()
        'reads ≤ 0.5 of dense'
    """
    name = next(field.default for field in fields(kind) if field.name == "kind")
    if not isinstance(name, str) or not name:
        raise TypeError(f"{kind.__name__}: a budget needs a default for its field 'kind', by which plans name it")
    _KINDS[name] = kind
    return kind


def budget_from(values: Any) -> Budget:
    """A budget from what a plan keeps of it; ``ValueError`` for something else."""
    if not isinstance(values, Mapping):
        if isinstance(values, Budget):
            return values
        raise ValueError(f"a budget was expected, got a {type(values).__name__}")
    kind, rest = values.get("kind"), {key: value for key, value in values.items() if key != "kind"}
    if not isinstance(kind, str):
        raise ValueError("the budget does not name its kind")
    known = _KINDS.get(kind)
    if known is None:
        raise ValueError(
            f"there is no budget of kind {kind!r}: the kinds are {', '.join(_KINDS)}. Register a budget of your "
            "own before reading a plan that names it (rankfold.register_budget)"
        )
    unknown = sorted(set(rest) - {field.name for field in fields(known)})
    if unknown:
        raise ValueError(f"a budget of kind {kind} has no field {unknown[0]!r}")
    try:
        return known(**rest)
    except TypeError as error:
        raise ValueError(f"a budget of kind {kind}: {error}") from None


def _latency(keep: float, place: str) -> Latency:
    """``64``, ``prefill``, ``decode``, or ``decode:4`` of four sequences."""
    phase, colon, batch = place.partition(":")
    if phase in ("prefill", "decode"):
        return Latency(keep, int(batch) if colon else 1, "prefill" if phase == "prefill" else "decode")
    if not place.isdigit():
        raise ValueError(f"after @ give a batch size, prefill, decode, or decode:4 for four sequences; got {place!r}")
    return Latency(keep, int(place))


def parse_budget(text: str) -> Budget:
    """``flops=0.5``, ``params=0.39``, ``bytes=0.5``, ``energy=0.99``, ``latency=0.8``, ``latency=0.8@64`` or
    ``latency=0.8@decode``; and ``of=sites``, which says of what the others are fractions."""
    if text == "of=sites":
        return OfSites()
    name, found, value = text.partition("=")
    fraction, at, batch = value.partition("@")
    try:
        if name == "latency":
            return _latency(float(fraction), batch) if at else Latency(float(fraction))
        if found and name in ("params", "flops", "bytes", "energy") and not at:
            return _KINDS[name](float(value))
    except ValueError as error:
        percent = "; write 0.5 for 50 %" if "%" in value or value.isdecimal() else ""
        raise ValueError(f"budget {text!r}: {error}{percent}") from None
    near = get_close_matches(name, ["params", "flops", "bytes", "energy", "latency"], 1)
    raise ValueError(
        f"budget {text!r} is not understood: write NAME=FRACTION, where NAME is params, flops, bytes, latency "
        "(latency=0.8@64 for batch 64, latency=0.8@decode for a token) or "
        f"energy{f'; did you mean {near[0]}?' if near else ''}"
    )


def parsed(budget: str | Budget | Sequence[str | Budget]) -> tuple[Budget, ...]:
    """Budgets from their text or as they are; ``ValueError`` if there is none."""
    given = [budget] if isinstance(budget, str) or not isinstance(budget, Sequence) else budget
    budgets = tuple(parse_budget(item) if isinstance(item, str) else item for item in given)
    for each in budgets:
        if not isinstance(each, Budget):
            raise ValueError(f"a budget was expected, such as 'flops=0.5' or rankfold.Flops(0.5), got {each!r}")
    if not budgets:
        raise ValueError("no budget was given: give one, such as 'flops=0.5'")
    return budgets


def multiple_of(budgets: Sequence[Budget]) -> int:
    """The number of which every rank must be a multiple; 1 where none was given."""
    return lcm(*(budget.multiple for budget in budgets if isinstance(budget, Multiples)))


def amount(budget: Resource, cost: Cost) -> float:
    """How much of a budget's resource the whole model takes; ``ValueError`` where that is no number from 0 on."""
    found = budget.of(cost)
    if not isinstance(found, int | float) or not 0 <= found < inf:
        raise ValueError(
            f"budget {budget.describe()}: {type(budget).__name__}.of must give a number of at least 0 for the whole "
            f"model, got {found!r}"
        )
    return float(found)


def resources(budgets: Sequence[Budget]) -> tuple[Resource, ...]:
    """Those that bound what the model costs."""
    return tuple(budget for budget in budgets if isinstance(budget, Resource))


def of_sites(budget: Resource, whole: Cost, factorable: Cost) -> Resource:
    """``budget``, whose fraction is of the layers that can be factored, with the same limit as a fraction of the whole.

    ``ValueError`` for what cannot be counted layer by layer.
    """
    if isinstance(budget, Latency):
        raise ValueError(
            f"budget {budget.describe()}: latency is always that of the whole model: leave of=sites (--of sites) out"
        )
    total, part = amount(budget, whole), amount(budget, factorable)
    return replace(budget, keep=1 - (1 - budget.keep) * part / total) if total else budget


def describe(budget: Budget) -> str:
    return budget.describe()
