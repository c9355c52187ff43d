"""Budgets as they are asked for: in text, by the kind that a plan's file names, several at once, and of what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from math import inf, lcm
from typing import TYPE_CHECKING, Any

from rankfold.compress.ranks.budget import (
    Budget,
    Bytes,
    Flops,
    KeepEnergy,
    Latency,
    Multiples,
    OfSites,
    Params,
    Ranks,
    Resource,
)

if TYPE_CHECKING:
    from rankfold.costs import Cost

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
    phased = phase in ("prefill", "decode")
    batch = (batch if colon else "1") if phased else place
    if not batch.isdecimal():
        raise ValueError(f"after @ give a batch size, prefill, decode, or decode:4 for four sequences; got {place!r}")
    if not phased:
        return Latency(keep, int(batch))
    return Latency(keep, int(batch), "prefill" if phase == "prefill" else "decode")


def parse_budget(text: str) -> Budget:
    """``flops=0.5``, ``params=0.39``, ``bytes=0.5``, ``energy=0.99``, ``latency=0.8``, ``latency=0.8@64`` or
    ``latency=0.8@decode``; and ``of=sites``, which says of what the others are fractions."""
    if text == "of=sites":
        return OfSites()
    name, found, value = text.partition("=")
    fraction, at, batch = value.partition("@")
    try:
        if name == "latency":
            return _latency(_number(fraction), batch) if at else Latency(_number(fraction))
        if found and name in ("params", "flops", "bytes", "energy") and not at:
            return _KINDS[name](_number(value))
    except ValueError as error:
        percent = "; write 0.5 for 50 %" if "%" in value or value.isdecimal() else ""
        raise ValueError(f"budget {text!r}: {error}{percent}") from None
    near = get_close_matches(name, ["params", "flops", "bytes", "energy", "latency"], 1)
    meant = f"; did you mean {near[0]}{'' if found else '=0.5'}?" if near else ""
    raise ValueError(
        f"budget {text!r} is not understood: write NAME=FRACTION, where NAME is params, flops, bytes, latency "
        f"(latency=0.8@64 for batch 64, latency=0.8@decode for a token) or energy{meant}"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        several = "give budgets one by one, as ['params=0.5', 'flops=0.5'] or --budget params=0.5 --budget flops=0.5"
        remedy = f"; {several}" if "=" in text else "; write decimals with a point" if "," in text else ""
        raise ValueError(f"{text!r} is not a number{remedy}") from None


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


def check_together(budgets: Sequence[Budget]) -> None:
    """``ValueError`` for budgets that say too little, or cannot hold together."""
    if all(isinstance(each, Multiples | OfSites) for each in budgets):
        raise ValueError(
            f"the budget '{budgets[0].describe()}' does not say how small the network is to become: give another "
            "one too, such as 'flops=0.5'"
        )
    if sum(isinstance(each, Ranks) for each in budgets) > 1:
        raise ValueError("fixed ranks were given more than once: give all of them in one rankfold.Ranks({…})")
    if any(isinstance(each, OfSites) for each in budgets):
        for each in budgets:
            if isinstance(each, Latency):
                raise ValueError(
                    f"budget {each.describe()}: latency is always that of the whole model: leave of=sites (--of sites) "
                    "out"
                )


def multiple_of(budgets: Sequence[Budget]) -> int:
    """The number of which every rank must be a multiple; 1 where none was given."""
    return lcm(*(budget.multiple for budget in budgets if isinstance(budget, Multiples)))


def resources(budgets: Sequence[Budget]) -> tuple[Resource, ...]:
    """Those that bound what the model costs."""
    return tuple(budget for budget in budgets if isinstance(budget, Resource))


def amount(budget: Resource, cost: Cost) -> float:
    """How much of a budget's resource the whole model takes; ``ValueError`` where that is no number from 0 on."""
    found = budget.of(cost)
    if not isinstance(found, int | float) or not 0 <= found < inf:
        raise ValueError(
            f"budget {budget.describe()}: {type(budget).__name__}.of must give a number of at least 0 for the whole "
            f"model, got {found!r}"
        )
    return float(found)


def of_sites(budget: Resource, whole: Cost, factorable: Cost) -> Resource:
    """``budget``, whose fraction is of the layers that can be factored, with the same limit as a fraction of the whole.

    ``ValueError`` for what cannot be counted layer by layer.
    """
    check_together((budget, OfSites()))
    total, part = amount(budget, whole), amount(budget, factorable)
    return replace(budget, keep=1 - (1 - budget.keep) * part / total) if total else budget
